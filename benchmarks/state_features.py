"""Preprocessing and encoder of one specification, 90 dense features, 8 ids and a sequence of 50, beside plain loops and plain torch.

From columns: Arrow's as an opened batch has them, ids as strings -> hashed, normalised, the sequence looked up to its embedding matrix.
From payloads: whole exposure messages, unopened, to the same tensors; the peer is a loop over records with orjson, NumPy and zlib's CRC-32.
Encoder: the generated module beside the same layers as torch has them (nn.Embedding, nn.Conv1d, nn.Linear, nn.LayerNorm), same tensors.
"""

import random
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import torch
from torch import Tensor, nn

from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature
from schemas.message_reader import MessageReader
from schemas.raw_columns import ColumnMaker, OpenColumns
from trainer.network import Encoder, StateTensors, state_tensors
from trainer.settings import TrainerSettings
from trainer.zscore import Zscore, ZscoreConstants

DENSE, IDS, ITEMS = 90, 8, 50
BATCH_ROWS = 4096
ENCODE_ROWS = 512
SPEC = FeatureSpec(
    dense=tuple(DenseFeature(name=f"dense_{number}") for number in range(DENSE)),
    ids=tuple(IdFeature(name=f"id_{number}") for number in range(IDS)),
    sequences=(SequenceFeature(name="recent_items", length=ITEMS),),
)
SETTINGS = TrainerSettings()
Arrays = tuple[npt.NDArray[Any], ...]
Matrix = npt.NDArray[np.float32]


def payloads(count: int, seed: int) -> list[bytes]:
    """Exposure messages of pages of ten items. Items are drawn by a Zipf law (exponent 1.2) over a catalogue of 100,000."""
    rng = np.random.default_rng(seed)
    draw = random.Random(seed)
    made = []
    for number in range(count):
        state: dict[str, Any] = {name.name: round(float(value), 6) for name, value in zip(SPEC.dense, rng.normal(3, 2, DENSE), strict=True)}
        state |= {feature.name: f"v{draw.randrange(5000)}" for feature in SPEC.ids}
        state["recent_items"] = [f"item-{item}" for item in (rng.zipf(1.2, ITEMS) % 100_000).tolist()]
        items = [{"item_id": f"item-{item}", "position": item, "scores": {"click": 0.2134, "pay": 0.0231}} for item in range(10)]
        page = {"request_id": f"r-{number}", "user_id": f"u-{number % 999}", "ts_ms": 1_700_000_000_000 + number, "policy": "fusion"}
        made.append(msgspec.json.encode({**page, "state": state, "action": [1.1], "propensity": 0.8, "items": items}))
    return made


class Preprocessing:
    """Messages or columns -> the encoder's tensors and the sequence's matrix, as the trainer makes them."""

    def __init__(self, encoder: Encoder, normalise: ZscoreConstants) -> None:
        self._reader = MessageReader(SPEC)
        self._maker = ColumnMaker(SPEC)
        self._normalise = normalise
        self._table: Tensor = encoder.blocks[0].table.weight  # type: ignore[union-attr, assignment]

    def open(self, messages: list[bytes]) -> OpenColumns:
        """Unopened bytes to columns."""
        return self._reader.open(messages)[0]

    def from_columns(self, columns: OpenColumns) -> tuple[StateTensors, Tensor]:
        """Hash, normalise, look up."""
        tensors = state_tensors(self._maker.columns(columns.raw()), self._normalise, SPEC)
        with torch.no_grad():
            return tensors, nn.functional.embedding(tensors.sequences_BT[0], self._table)

    def from_payloads(self, messages: list[bytes]) -> tuple[StateTensors, Tensor]:
        """Both."""
        return self.from_columns(self.open(messages))


class OrjsonLoop:
    """What one writes without thinking of columns: record by record."""

    def __init__(self, encoder: Encoder, normalise: ZscoreConstants) -> None:
        self._mean, self._std, self._clip = normalise.mean_N, normalise.std_N, normalise.clip
        self._table: Matrix = encoder.blocks[0].table.weight.detach().numpy()  # type: ignore[union-attr, operator]
        self._names = [feature.name for feature in SPEC.dense]
        self._ids = [(feature.name, feature.buckets) for feature in SPEC.ids]
        self._buckets = SPEC.sequences[0].buckets

    def __call__(self, messages: list[bytes]) -> Arrays:
        count = len(messages)
        dense, ids = np.empty((count, DENSE), np.float32), np.empty((count, IDS), np.int64)
        items, matrix = np.zeros((count, ITEMS), np.int64), np.empty((count, ITEMS, self._table.shape[1]), np.float32)
        for row, message in enumerate(messages):
            state = orjson.loads(message)["state"]
            values = np.array([state.get(name, 0.0) for name in self._names])
            dense[row] = np.clip((values - self._mean) / self._std, -self._clip, self._clip)
            ids[row] = [_bucket(state.get(name, ""), buckets) for name, buckets in self._ids]
            newest = state.get("recent_items", [])[-ITEMS:]
            items[row, ITEMS - len(newest) :] = [_bucket(item, self._buckets) for item in newest]
            matrix[row] = self._table[items[row]]
        return dense, ids, items, matrix


class TunedOrjsonLoop(OrjsonLoop):
    """The same with all that is not decoding and hashing done once for the batch: the best that a loop over records can be."""

    def __call__(self, messages: list[bytes]) -> Arrays:
        count = len(messages)
        values, ids, items = np.empty((count, DENSE)), np.empty((count, IDS), np.int64), np.zeros((count, ITEMS), np.int64)
        for row, message in enumerate(messages):
            state = orjson.loads(message)["state"]
            values[row] = [state.get(name, 0.0) for name in self._names]
            ids[row] = [_bucket(state.get(name, ""), buckets) for name, buckets in self._ids]
            newest = state.get("recent_items", [])[-ITEMS:]
            items[row, ITEMS - len(newest) :] = [_bucket(item, self._buckets) for item in newest]
        dense = np.clip((values - self._mean) / self._std, -self._clip, self._clip).astype(np.float32)
        return dense, ids, items, self._table[items]


def _bucket(value: str, buckets: int) -> int:
    return 1 + crc32(value.encode()) % (buckets - 1) if value else 0


class PlainEncoder(nn.Module):
    """The generated encoder's layers as torch has them, with its weights."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        block: Any = encoder.blocks[0]
        self.tables = nn.ModuleList([_embedding(table) for table in encoder.tables])
        self.items = _embedding(block.table)
        dim, channels = block.table.embedding_dim, block.convolution.out_features
        self.convolution = nn.Conv1d(dim, channels, block.kernel, padding="same")
        with torch.no_grad():
            self.convolution.weight.copy_(block.convolution.weight.reshape(channels, block.kernel, dim).transpose(1, 2))
            self.convolution.bias.copy_(block.convolution.bias)  # type: ignore[union-attr]
        steps: list[nn.Module] = []
        for place, (layer, norm) in enumerate(zip(encoder.layers, encoder.norms, strict=True)):
            steps += [layer, norm, nn.Tanh() if place == len(encoder.layers) - 1 else nn.ReLU()]
        self.mlp = nn.Sequential(*steps)

    def forward(self, state: StateTensors) -> Tensor:
        (ids_BT,) = state.sequences_BT
        held_B1T = (ids_BT != 0).float().unsqueeze(1)
        maps_BCT = torch.relu(self.convolution(self.items(ids_BT).transpose(1, 2))) * held_B1T
        parts = [state.dense_BN, *(table(state.ids_BI[:, column]) for column, table in enumerate(self.tables))]
        pooled = [maps_BCT.amax(2), maps_BCT.sum(2) / held_B1T.sum(2).clamp(min=1.0)]
        code_BH: Tensor = self.mlp(torch.cat([*parts, *pooled], dim=1))
        return code_BH


def _embedding(table: Any) -> nn.Embedding:
    made = nn.Embedding(table.num_embeddings, table.embedding_dim, padding_idx=table.padding_idx)
    made.load_state_dict(table.state_dict())
    return made


def _cpu_s(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def measure(rounds: int, rows: int = 4 * BATCH_ROWS) -> dict[str, Any]:
    """Batch by batch every way in turn: medians of CPU seconds, and of the ratios within a turn. `faults` are ways to other tensors."""
    torch.set_num_threads(1)
    encoder = Encoder(SPEC, SETTINGS, torch.Generator().manual_seed(1))
    messages = payloads(rows, seed=1)
    size = min(rows, BATCH_ROWS)
    batches = [messages[start : start + size] for start in range(0, rows - size + 1, size)]
    zscore = Zscore(DENSE, half_life_rows=None, warm_up_rows=1, clip=5.0, min_variance=1e-6)
    zscore.update(MessageReader(SPEC).read(batches[0]).states.dense)
    ours, loop = Preprocessing(encoder, zscore.constants()), OrjsonLoop(encoder, zscore.constants())
    tuned, plain = TunedOrjsonLoop(encoder, zscore.constants()), PlainEncoder(encoder)
    faults = _faults(ours, [loop, tuned], batches[0], encoder, plain)
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for batch in batches:
            columns = ours.open(batch)
            few = _first(ours.from_columns(columns)[0], ENCODE_ROWS)
            ways: dict[str, Callable[[], object]] = {
                "columns": partial(ours.from_columns, columns),
                "payloads": partial(ours.from_payloads, batch),
                "orjson_loop": partial(loop, batch),
                "tuned_orjson_loop": partial(tuned, batch),
                "encoder": partial(_forward, encoder, few),
                "plain_torch": partial(_forward, plain, few),
            }
            for name, run in ways.items():
                taken_s = _cpu_s(run)
                if turn:  # the first one warms up
                    seconds.setdefault(name, []).append(taken_s)
    return {
        "message_bytes": round(statistics.mean(map(len, messages))),
        "rows_per_s": round(size / statistics.median(seconds["columns"])),
        "payload_rows_per_s": round(size / statistics.median(seconds["payloads"])),
        "payload_ratio_to_orjson": _ratio(seconds["orjson_loop"], seconds["payloads"]),
        "payload_ratio_to_tuned_orjson": _ratio(seconds["tuned_orjson_loop"], seconds["payloads"]),
        "encode_ratio_to_torch": _ratio(seconds["encoder"], seconds["plain_torch"]),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "faults": faults,
    }


def _ratio(ones: list[float], others: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(ones, others, strict=True)), 2)


def _first(state: StateTensors, rows: int) -> StateTensors:
    return StateTensors(state.dense_BN[:rows], state.plain_BP[:rows], state.ids_BI[:rows], (state.sequences_BT[0][:rows],), (None,))


def _forward(encoder: nn.Module, state: StateTensors) -> None:
    with torch.no_grad():
        for _ in range(20):
            encoder(state)


def _faults(ours: Preprocessing, loops: list[OrjsonLoop], batch: list[bytes], encoder: Encoder, plain: PlainEncoder) -> list[str]:
    """What is not the same in both: a fast way to other tensors is none."""
    state, matrix = ours.from_payloads(batch)
    made: Arrays = (state.dense_BN.numpy(), state.ids_BI.numpy(), state.sequences_BT[0].numpy(), matrix.numpy())
    names = ("dense", "ids", "items", "matrix")
    faults = [
        f"{name} of {type(peer).__name__}"
        for peer in loops
        for name, mine, theirs in zip(names, made, peer(batch), strict=True)
        if not np.allclose(mine, theirs, rtol=0, atol=1e-6)
    ]
    with torch.no_grad():
        if not torch.allclose(encoder(state), plain(state), rtol=0, atol=1e-5):
            faults.append("code of PlainEncoder")
    return faults
