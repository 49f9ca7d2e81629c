"""Samples for the sink's tests, a target that fails on demand, and a driver that does what the agent does, in one thread."""

from collections import Counter as Multiset
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
from prometheus_client import CollectorRegistry

from headrace.step import Record
from joiner.sink.dataset import open_samples
from joiner.sink.metrics import SinkMetrics
from joiner.sink.settings import SinkSettings, StorageOptions
from joiner.sink.target import Target, open_target
from joiner.sink.writer import Chunk, PartitionWriter
from schemas.codec import encode_batch
from schemas.sample import label_column, sample_schema

HOUR_MS = 3_600_000
START_MS = 480_000 * HOUR_MS
NOW_MS = START_MS + 1_000 * HOUR_MS
KINDS = ("click",)

Row = tuple[int, str]


class Page(NamedTuple):
    """A page of samples: its exposure's offset, its event time, its items."""

    offset: int
    ts_ms: int = START_MS
    items: tuple[str, ...] = ("a", "b")

    @property
    def rows(self) -> list[Row]:
        return [(self.offset, item) for item in self.items]


def samples(pages: Sequence[Page], kinds: tuple[str, ...] = KINDS, partition: int = 0) -> pa.RecordBatch:
    """What the joiner sends for these pages."""
    rows = [(page, place, item) for page in pages for place, item in enumerate(page.items)]
    messages = pa.array([f'{{"request_id": "r{page.offset}"}}'.encode() for page in pages], pa.binary())
    columns = {
        "request_id": [f"r{page.offset}" for page, _, _ in rows],
        "user_id": ["u"] * len(rows),
        "item_id": [item for _, _, item in rows],
        "position": [place for _, place, _ in rows],
        "page_size": [len(page.items) for page, _, _ in rows],
        "ts_ms": [page.ts_ms for page, _, _ in rows],
        "policy": [""] * len(rows),
        "model_version": [""] * len(rows),
        **{label_column(kind): [float(place) for _, place, _ in rows] for kind in kinds},
        "label_delay_ms": [None] * len(rows),
        "feedback_arrival_ms": [None] * len(rows),
        "left": [False] * len(rows),
        "closed_by": ["window"] * len(rows),
        "source_partition": [partition] * len(rows),
        "source_offset": [page.offset for page, _, _ in rows],
        "feedback_offsets": [[]] * len(rows),
    }
    schema = sample_schema(kinds)
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names[:-1]]
    of_row = pa.array([pages.index(page) for page, _, _ in rows], pa.int32())
    return pa.RecordBatch.from_arrays([*arrays, pa.DictionaryArray.from_arrays(of_row, messages)], schema=schema)


def message(offset: int, *pages: Page, kinds: tuple[str, ...] = KINDS, partition: int = 0) -> Record:
    return Record(offset, NOW_MS, encode_batch(samples(pages, kinds, partition), 0))


class Crash(BaseException):
    """kill -9, as far as one process can play it: no handler catches it."""


class WatchedTarget(Target):
    """Calls `before` and `after` with the number of each single step; `torn` says at which write half of the bytes are written."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.uri, target.fs, target.root)
        self.steps = 0
        self.before: Callable[[int], None] = lambda step: None
        self.after: Callable[[int], None] = lambda step: None
        self.torn = -1

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        with_content = list(super().files(folder))
        self._step(lambda: None)
        return iter(with_content)

    def read(self, path: str) -> bytes:
        content = super().read(path)
        self._step(lambda: None)
        return content

    def _put(self, path: str, content: bytes) -> None:
        if self.steps == self.torn and not self._is_object_store:
            super()._put(path, content[: len(content) // 2])
            raise Crash
        self._step(lambda: super(WatchedTarget, self)._put(path, content))

    def _move(self, source: str, path: str) -> None:
        self._step(lambda: super(WatchedTarget, self)._move(source, path))

    def _remove(self, path: str) -> None:
        self._step(lambda: super(WatchedTarget, self)._remove(path))

    def _step(self, operation: Callable[[], None]) -> None:
        number, self.steps = self.steps, self.steps + 1
        self.before(number)
        operation()
        self.after(number)


def crash_at(step: int) -> Callable[[int], None]:
    def crash(number: int) -> None:
        if number == step:
            raise Crash

    return crash


def settings(uri: str | Path = "nowhere", **changed: object) -> SinkSettings:
    """Merges at once, deletes what was merged at once."""
    return SinkSettings(**{"uri": str(uri), "compact_after_s": 0.0, "keep_replaced_s": 0.0, "file_bytes": 1 << 20, **changed})  # type: ignore[arg-type]


def writer(target: Target, chosen: SinkSettings, partition: int = 0) -> PartitionWriter:
    return PartitionWriter(partition, target, chosen, SinkMetrics(CollectorRegistry()))


def run(
    target: Target,
    messages: Sequence[Record],
    chosen: SinkSettings,
    *,
    a_chunk: int = 2,
    now_ms: int = NOW_MS,
    partition: int = 0,
) -> PartitionWriter:
    """One life of a worker: open, write what is not written in chunks of so many messages, tidy up after each."""
    sink = writer(target, chosen, partition)
    sink.open("", now_ms)
    tidy(sink, now_ms)
    waiting = [record for record in messages if record.offset >= sink.journal.next_offset]
    for first in range(0, len(waiting), a_chunk):
        records = waiting[first : first + a_chunk]
        chunk = Chunk(records[0].offset, records[0].offset)
        sink.take(chunk, records, now_ms)
        sink.flush(chunk, now_ms)
        tidy(sink, now_ms)
    return sink


def tidy(sink: PartitionWriter, now_ms: int) -> None:
    while sink.is_untidy(now_ms):
        sink.tidy(now_ms)


def local(folder: Path) -> WatchedTarget:
    return WatchedTarget(open_target(str(folder), StorageOptions()))


def rows_of(dataset: ds.Dataset) -> Multiset[Row]:
    """How often each (source_offset, item_id) is in it."""
    table = dataset.to_table(columns=["source_offset", "item_id"])
    return Multiset(zip(table["source_offset"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def read(uri: str | Path, options: StorageOptions | None = None) -> Multiset[Row]:
    return rows_of(open_samples(str(uri), options))


def read_plainly(folder: Path) -> Multiset[Row]:
    """As somebody does who does not know of the journal."""
    return rows_of(ds.dataset(str(folder), format="parquet", partitioning="hive"))
