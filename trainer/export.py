"""Export: the actor as an ONNX graph that takes states as served, and the candidate folder that the version controller judges.

The graph is built node by node from the weights (milliseconds, the same bytes for the same weights), the Z-score constants baked
in. Inputs: those of the feature specification (`FeatureSpec.inputs`). Outputs: `action` float32 [B, A] within the bounds, and
`normalised` float32 [B, N], what the normaliser made of the columns `dense`: whoever asks can compare it with the trainer's.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from schemas.features import ListedFeature
from schemas.id_hash import PADDING
from schemas.policy import Candidate
from schemas.state_columns import DENSE, IDS, PLAIN, list_input, rows_input
from trainer.checkpoint import write_folder
from trainer.ddpg import DDPG
from trainer.network import ACTOR_REACH, NO_ATTENTION, Actor, AttentionBlock, Encoder, SequenceBlock, SetBlock

OPSET = 18
IR_VERSION = 9
ACTOR_FILE = "actor.onnx"
CANDIDATE_FILE = "candidate.json"
ACTION, NORMALISED = "action", "normalised"
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def actor_onnx(learner: DDPG) -> bytes:
    """The ONNX model of mu(s) as the learner is now."""
    graph = _Graph()
    encoder, actor = learner.network.encoder, learner.network.actor
    code = _encoder(graph, learner, encoder)
    _actor(graph, code, actor)
    features = learner.feature_spec
    inputs = [helper.make_tensor_value_info(entry.name, _TYPES[entry.type], ["B", entry.width]) for entry in features.inputs()]
    outputs = [helper.make_tensor_value_info(ACTION, TensorProto.FLOAT, ["B", learner.action_spec.size])]
    if features.normalised:
        outputs.append(helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, ["B", len(features.normalised)]))
    built = helper.make_graph(graph.nodes, "actor", inputs, outputs, graph.constants)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="headrace", ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def write_candidate(candidates: Path, candidate: Candidate, model: bytes) -> Path:
    """Make the candidate's folder appear, whole. Raises CheckpointError where the disk refuses."""
    path = candidates / candidate.model_version
    write_folder(path, {ACTOR_FILE: model, CANDIDATE_FILE: msgspec.json.encode(candidate)})
    return path


class _Graph:
    """Nodes and constants in order; every name is made from the order alone."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: npt.NDArray[np.generic] | Tensor) -> str:
        name = f"c{len(self.constants)}"
        array = values.detach().numpy() if isinstance(values, Tensor) else values
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"{operator}_{len(self.nodes)}", **attributes))
        return name

    def linear(self, values: str, layer: nn.Linear) -> str:
        return self.node("Gemm", values, self.constant(layer.weight), self.constant(layer.bias), transB=1)

    def axes(self, *axes: int) -> str:
        return self.constant(np.array(axes, np.int64))


def _encoder(graph: _Graph, learner: DDPG, encoder: Encoder) -> str:
    features = learner.feature_spec
    parts = [_zscore(graph, learner)] if features.normalised else []
    parts += [PLAIN] if features.plain_size else []
    for column, table in enumerate(encoder.tables):
        assert isinstance(table, nn.Embedding)
        ids = graph.node("Gather", IDS, graph.constant(np.array(column, np.int64)), axis=1)
        parts.append(graph.node("Gather", graph.constant(table.weight), ids, axis=0))
    for feature, block in zip(features.listed, encoder.blocks, strict=True):
        match block:
            case SequenceBlock():
                parts.append(_sequence(graph, feature, block))
            case AttentionBlock():
                parts.append(_attention(graph, feature, block))
            case SetBlock():
                parts.append(_set(graph, feature, block))
    code = graph.node("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    for i, (layer, norm) in enumerate(zip(encoder.layers, encoder.norms, strict=True)):
        assert isinstance(layer, nn.Linear) and isinstance(norm, nn.LayerNorm)
        scale, shift = graph.constant(norm.weight), graph.constant(norm.bias)
        code = graph.node("LayerNormalization", graph.linear(code, layer), scale, shift, axis=-1, epsilon=norm.eps)
        code = graph.node("Tanh" if i == len(encoder.layers) - 1 else "Relu", code)
    return code


def _zscore(graph: _Graph, learner: DDPG) -> str:
    """In float64 like the trainer, so that large values with a small spread come out the same. A missing value (NaN) becomes 0."""
    constants = learner.features.constants()
    wide = graph.node("Cast", DENSE, to=TensorProto.DOUBLE)
    centred = graph.node("Sub", wide, graph.constant(constants.mean_N))
    scaled = graph.node("Div", centred, graph.constant(constants.std_N))
    limit = np.array(constants.clip, np.float64)
    clipped = graph.node("Clip", scaled, graph.constant(-limit), graph.constant(limit))
    held = graph.node("Where", graph.node("IsNaN", wide), graph.constant(np.array(0.0, np.float64)), clipped)
    return graph.node("Cast", held, to=TensorProto.FLOAT, output=NORMALISED)


def _held(graph: _Graph, ids: str) -> str:
    """1 where a position holds an id, else 0: float32 [B, T]."""
    is_padding = graph.node("Equal", ids, graph.constant(np.array(PADDING, np.int64)))
    return graph.node("Cast", graph.node("Not", is_padding), to=TensorProto.FLOAT)


def _matrix(graph: _Graph, feature: ListedFeature, table: nn.Embedding | None) -> str:
    """The embeddings of a list [B, T, D]: of its table, or as they come in."""
    if table is not None:
        return graph.node("Gather", graph.constant(table.weight), list_input(feature.name), axis=0)
    return graph.node("Reshape", rows_input(feature.name), graph.axes(-1, feature.length, feature.dim))


def _sequence(graph: _Graph, feature: ListedFeature, block: SequenceBlock) -> str:
    ids, matrix = list_input(feature.name), _matrix(graph, feature, block.table)
    maps = graph.node("Transpose", matrix, perm=[0, 2, 1])
    weight_CDK = block.convolution.weight.reshape(block.convolution.out_features, block.kernel, -1).transpose(1, 2)
    weights = graph.constant(weight_CDK), graph.constant(block.convolution.bias)
    maps = graph.node("Relu", graph.node("Conv", maps, *weights, kernel_shape=[block.kernel], pads=list(block.pads)))
    held = graph.node("Unsqueeze", _held(graph, ids), graph.axes(1))
    maps = graph.node("Mul", maps, held)
    largest = graph.node("ReduceMax", maps, graph.axes(2), keepdims=0)
    total = graph.node("ReduceSum", maps, graph.axes(2), keepdims=0)
    count = graph.node("Max", graph.node("ReduceSum", held, graph.axes(2), keepdims=0), graph.constant(np.array(1.0, np.float32)))
    return graph.node("Concat", largest, graph.node("Div", total, count), axis=1)


def _attention(graph: _Graph, feature: ListedFeature, block: AttentionBlock) -> str:
    ids, matrix = list_input(feature.name), _matrix(graph, feature, block.table)
    score = matrix
    for layer in (block.key, block.query):
        score = graph.node("Add", graph.node("MatMul", score, graph.constant(layer.weight.T)), graph.constant(layer.bias))
        score = graph.node("Tanh", score) if layer is block.key else graph.node("Squeeze", score, graph.axes(2))
    is_padding = graph.node("Equal", ids, graph.constant(np.array(PADDING, np.int64)))
    score = graph.node("Where", is_padding, graph.constant(np.array(NO_ATTENTION, np.float32)), score)
    weight = graph.node("Unsqueeze", graph.node("Softmax", score, axis=1), graph.axes(2))
    return graph.node("ReduceSum", graph.node("Mul", weight, matrix), graph.axes(1), keepdims=0)


def _set(graph: _Graph, feature: ListedFeature, block: SetBlock) -> str:
    matrix = _matrix(graph, feature, block.table)
    held = _held(graph, list_input(feature.name))
    count = graph.node("ReduceSum", held, graph.axes(1), keepdims=1)
    match block.pooling:
        case "sum":
            return graph.node("ReduceSum", matrix, graph.axes(1), keepdims=0)
        case "mean":
            total = graph.node("ReduceSum", matrix, graph.axes(1), keepdims=0)
            return graph.node("Div", total, graph.node("Max", count, graph.constant(np.array(1.0, np.float32))))
        case "max":
            lowest = graph.constant(np.array(np.finfo(np.float32).min, np.float32))
            is_held = graph.node("Unsqueeze", graph.node("Cast", held, to=TensorProto.BOOL), graph.axes(2))
            largest = graph.node("ReduceMax", graph.node("Where", is_held, matrix, lowest), graph.axes(1), keepdims=0)
            is_any = graph.node("Cast", count, to=TensorProto.BOOL)
            return graph.node("Where", is_any, largest, graph.constant(np.array(0.0, np.float32)))


def _actor(graph: _Graph, code: str, actor: Actor) -> str:
    hidden = graph.node("Relu", graph.linear(code, actor.hidden))
    reach = graph.node("Mul", graph.node("Tanh", graph.linear(hidden, actor.output)), graph.constant(np.array(ACTOR_REACH, np.float32)))
    u = graph.node("Min", graph.node("Max", reach, graph.constant(actor.u_low_A)), graph.constant(actor.u_high_A))
    action = graph.node("Add", graph.node("Mul", u, graph.constant(actor.half_A)), graph.constant(actor.baseline_A))
    within = graph.node("Max", action, graph.constant(actor.low_A))
    return graph.node("Min", within, graph.constant(actor.high_A), output=ACTION)
