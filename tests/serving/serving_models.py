"""What the serving tests are made of: a tiny actor with the trainer's input and output names, and a producer in memory."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from schemas.action import ActionDimension, ActionSpec
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature
from serving.publisher import QueueFullError

FEATURES = FeatureSpec(
    dense=(DenseFeature(name="hour", default=12.0),),
    ids=(IdFeature(name="city", buckets=16),),
    sequences=(SequenceFeature(name="recent_items", length=4, buckets=32),),
)
ACTION = ActionSpec(
    dimensions=(ActionDimension(name="click_exponent", objective="click"), ActionDimension(name="pay_exponent", objective="pay"))
)
GOOD_METRICS = {"policy_advantage_mean": 0.2, "policy_advantage_se": 0.01, "random_advantage_mean": -0.1}


INPUTS = ("dense", "ids", "seq_recent_items")


def graph(
    answer: list[float], state_weight: float = 0.0, inputs: tuple[str, ...] = INPUTS, pole: float | None = None, table_rows: int = 0
) -> bytes:
    """action [B, A] = answer + state_weight * (sum of all inputs of the row), as an ONNX model; with a pole, + 1 / (sum - pole).

    With `table_rows`, ids are looked up in a table of so many zeros first: others than those fail.
    """
    entries = {
        "dense": helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["B", 1]),
        "plain": helper.make_tensor_value_info("plain", TensorProto.FLOAT, ["B", 1]),
        "ids": helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", 1]),
        "seq_recent_items": helper.make_tensor_value_info("seq_recent_items", TensorProto.INT64, ["B", 4]),
    }
    nodes = [helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT) for name in inputs]
    summed = [f"{name}_float" for name in inputs]
    if table_rows:
        nodes.append(helper.make_node("Gather", ["table", "ids"], ["looked_up"], axis=0))
        summed.append("looked_up")
    nodes += [
        helper.make_node("Concat", summed, ["row"], axis=1),
        helper.make_node("ReduceSum", ["row", "axes"], ["total"], keepdims=1),
        helper.make_node("Mul", ["total", "weight"], ["shift"]),
        helper.make_node("Add", ["shift", "answer"], ["action" if pole is None else "finite"]),
    ]
    if pole is not None:
        nodes += [
            helper.make_node("Sub", ["total", "pole"], ["distance"]),
            helper.make_node("Reciprocal", ["distance"], ["peak"]),
            helper.make_node("Add", ["finite", "peak"], ["action"]),
        ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("weight", TensorProto.FLOAT, [1], [state_weight]),
        helper.make_tensor("answer", TensorProto.FLOAT, [1, len(answer)], answer),
    ]
    if table_rows:
        constants.append(helper.make_tensor("table", TensorProto.FLOAT, [table_rows], [0.0] * table_rows))
    if pole is not None:
        constants.append(helper.make_tensor("pole", TensorProto.FLOAT, [1], [pole]))
    output = helper.make_tensor_value_info("action", TensorProto.FLOAT, ["B", len(answer)])
    made = helper.make_graph(nodes, "actor", [entries[name] for name in inputs], [output], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


GOLDEN_INPUTS = {"dense": [[13.0]], "ids": [[3.0]], "seq_recent_items": [[0.0, 0.0, 5.0, 7.0]]}


def golden_action(model: bytes) -> list[float]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    feeds = {name: np.asarray(rows, np.float32 if name == "dense" else np.int64) for name, rows in GOLDEN_INPUTS.items() if name in wanted}
    return session.run(None, feeds)[0][0].tolist()


WriteVersion = Callable[..., Path]


class MemoryProducer:
    """Keeps what it is given; `full` and `why` make it refuse."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bytes]] = []
        self.full = False
        self.why = ""
        self.started = self.stopped = False
        self._lock = threading.Lock()

    def start(self) -> None:
        self.started = True

    def send(self, topic: str, key: str, value: bytes) -> None:
        if self.full:
            raise QueueFullError("the broker is away")
        with self._lock:
            self.sent.append((topic, key, value))

    def trouble(self) -> str:
        return self.why

    def stop(self, timeout_s: float) -> int:
        self.stopped = True
        return 0
