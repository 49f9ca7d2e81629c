"""One partition of the sink: gathers samples, writes them as files, merges small files. What is where on the target: journal.py."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.settings import ConfigError
from headrace.step import Count, Record
from joiner.sink.columns import (
    NEEDED,
    RetypedError,
    as_table,
    by_hour,
    decode_columns,
    encode_columns,
    evolved,
    parquet,
)
from joiner.sink.compaction import merge, plan_merge
from joiner.sink.dedup import SeenKeys, key_columns, key_hashes
from joiner.sink.journal import FileName, Journal
from joiner.sink.metrics import SinkMetrics
from joiner.sink.ownership import OwnedJournal
from joiner.sink.retry import persist
from joiner.sink.settings import SinkSettings
from joiner.sink.target import Target
from schemas.codec import WrongBatchError, decode_batch
from schemas.dead_letter import DeadLetter

log = logging.getLogger(__name__)

T = TypeVar("T")

STAGE = "sink"
FILES = "parquet"
"""Label of the rows written, where other stages name the topic that they sent rows to."""


@dataclass
class Chunk:
    """Samples that wait for their file: those of the messages at offsets in [first, next)."""

    first_offset: int
    next_offset: int
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0
    oldest_arrival_ms: int | None = None
    counts: Counter[Count] = field(default_factory=Counter)


class PartitionWriter:
    """One partition, from `open` until it is `abandoned`.

    `take` belongs to one thread; `open`, `flush` and `tidy`, which wait for the target, to another one, one of them at a time.
    """

    def __init__(self, partition: int, target: Target, settings: SinkSettings, metrics: SinkMetrics) -> None:
        self.partition = partition
        self.journal = Journal(topic=settings.topic)
        self.abandoned = threading.Event()
        self.columns: pa.Schema | None = None
        self._settings = settings
        self._target = target
        self._metrics = metrics
        self._owned = OwnedJournal(target, partition, self._do)
        self._key = key_columns(settings.topic)
        self._seen = SeenKeys(settings.dedup_horizon_rows)

    def _do(self, operation: Callable[[], T]) -> T:
        return persist(operation, self._target.explain, float("inf"), self.abandoned, self._metrics.retries.inc)

    def open(self, topic_id: str, now_ms: int) -> None:
        """Become the partition's owner, undo what an earlier one left unfinished, and learn which samples are there."""
        found = self._owned.claim() or self.journal
        self._require_same_topic(found, topic_id)
        for path in found.unfinished():
            self._do(partial(self._target.delete, path))
        self.journal = found.taken_over(topic_id, now_ms)
        self._owned.write(self.journal)
        self.columns = decode_columns(self.journal.columns)
        for path, _ in self.journal.recent:
            self._remember(path)
        log.info("sink %d: goes on at offset %d of %s", self.partition, self.journal.next_offset, self.journal.topic)

    def _require_same_topic(self, journal: Journal, topic_id: str) -> None:
        topic, uri = self._settings.topic, self._target.uri
        if journal.topic != topic:
            raise ConfigError(f"setting sink.topic = {topic!r}: {uri} holds {journal.topic}; name another sink.uri")
        if journal.topic_id and topic_id and journal.topic_id != topic_id:
            raise ConfigError(
                f"{uri} holds rows of an earlier topic {topic} (it was created anew, or its broker lost it): "
                "name another sink.uri, or move that one away"
            )

    def _remember(self, path: str) -> None:
        try:
            content = self._do(lambda: self._target.read(path))
        except FileNotFoundError:
            log.info("sink %d: %s was removed", self.partition, path)
            return
        table = pq.read_table(pa.BufferReader(content), columns=list(self._key), use_threads=False)
        for batch in table.to_batches():
            self._seen.add(key_hashes([batch[name] for name in self._key]))

    def take(self, chunk: Chunk, records: Sequence[Record], now_ms: int) -> list[DeadLetter]:
        """Put samples into the chunk; none that is there already. Raises ConfigError where a column was retyped."""
        letters = []
        for record in records:
            chunk.next_offset = record.offset + 1
            try:
                batch = self._decoded(record)
            except WrongBatchError as error:
                chunk.counts[Count("in", self._settings.topic)] += 1
                chunk.counts[Count("rejected", "malformed")] += 1
                letters.append(self._refused(record, str(error), now_ms))
                continue
            chunk.counts[Count("in", self._settings.topic)] += batch.num_rows
            fresh = self._fresh(batch)
            chunk.counts[Count("ignored", "duplicate")] += batch.num_rows - fresh.num_rows
            if fresh.num_rows:
                self._evolve(fresh.schema)
                chunk.batches.append(fresh)
                chunk.rows += fresh.num_rows
                chunk.size_bytes += fresh.nbytes
            if chunk.oldest_arrival_ms is None:
                chunk.oldest_arrival_ms = record.arrival_ms
        return letters

    def _decoded(self, record: Record) -> pa.RecordBatch:
        batch, _ = decode_batch(record.value, self._settings.topic)
        needed = dict.fromkeys((*NEEDED, *self._key))
        wrong = [name for name in needed if name not in batch.schema.names or batch[name].null_count]
        if wrong:
            raise WrongBatchError(f"a batch without {', '.join(wrong)}, or with nulls there")
        return batch

    def _fresh(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        hashes = key_hashes([batch[name] for name in self._key])
        known = self._seen.are_known(hashes)
        self._seen.add(hashes)
        return batch.filter(pa.array(~known)) if known.any() else batch

    def _evolve(self, schema: pa.Schema) -> None:
        try:
            self.columns = evolved(self.columns, schema)
        except RetypedError as error:
            raise ConfigError(
                f"sink.uri = {self._target.uri}: {error}: a column keeps its type; give the new one another name, or name another sink.uri"
            ) from error

    def _refused(self, record: Record, why: str, now_ms: int) -> DeadLetter:
        return DeadLetter(
            stage=STAGE,
            reason="malformed",
            detail=why[:200],
            source_topic=self._settings.topic,
            source_partition=self.partition,
            source_offset=record.offset,
            size_bytes=len(record.value),
            ts_ms=now_ms,
        )

    def flush(self, chunk: Chunk, now_ms: int) -> None:
        """Make the chunk's rows part of the data set, together with the offset behind them. Raises Abandoned, TakenOver, ConfigError."""
        start_s = time.perf_counter()
        schema = self.columns
        assert schema is not None or not chunk.batches
        files: dict[str, bytes] = {}
        rows: dict[str, int] = {}
        for folder, batches in by_hour(chunk.batches).items():
            path = f"{folder}/{FileName(self.partition, chunk.first_offset, chunk.next_offset, self._owned.owner).name}"
            files[path] = parquet([as_table(batches, schema)], schema)
            rows[path] = sum(batch.num_rows for batch in batches)
        if files:
            self._commit(self.journal.with_intent(files))
        self._write_files(files, "flush")
        counts = Counter({Count(name, label): number for name, label, number in self.journal.counts})
        counts.update(chunk.counts + Counter({Count("out", FILES): chunk.rows}))
        self._commit(
            self.journal.with_files(
                rows,
                chunk.next_offset,
                encode_columns(schema) if schema is not None else b"",
                [(count.name, count.label, number) for count, number in sorted(counts.items())],
                self._settings.dedup_horizon_rows,
                now_ms,
            )
        )
        took_s = time.perf_counter() - start_s
        self._metrics.flush_seconds.observe(took_s)
        size = sum(map(len, files.values()))
        log.info(
            "sink %d: wrote %d rows of offsets %d to %d, files: %d, bytes: %d, %.2f s",
            self.partition, chunk.rows, chunk.first_offset, chunk.next_offset - 1, len(files), size, took_s,
        )  # fmt: skip

    def _commit(self, journal: Journal) -> None:
        self._owned.write(journal)
        self.journal = journal

    def _write_files(self, files: Mapping[str, bytes], kind: str) -> None:
        for path, content in files.items():
            self._do(partial(self._target.write, path, content, self._owned.folder))
            self._metrics.files.labels(kind).inc()
            self._metrics.bytes.labels(kind).inc(len(content))

    def is_untidy(self, now_ms: int) -> bool:
        """Whether `tidy` has something to do."""
        return bool(self.journal.due(now_ms) or self.journal.quiet_hours(now_ms, self._quiet_ms))

    @property
    def _quiet_ms(self) -> int:
        return int(self._settings.compact_after_s * 1000)

    def tidy(self, now_ms: int) -> None:
        """Delete files whose time has come, else make one merge. Raises Abandoned, TakenOver, ConfigError."""
        due = self.journal.due(now_ms)
        if due:
            for path in due:
                self._do(partial(self._target.delete, path))
            self._commit(self.journal.without_deleted(due))
            return
        for folder in self.journal.quiet_hours(now_ms, self._quiet_ms)[:1]:
            self._merge_in(folder, now_ms)

    def _merge_in(self, folder: str, now_ms: int) -> None:
        standing = self._do(lambda: list(self._target.files(folder)))
        files = [(path, size) for path, size in standing if path not in self.journal.absent]
        plan = plan_merge(files, self.partition, self._owned.owner, self._settings.file_bytes)
        if plan is None:
            self._commit(self.journal.without_hour(folder))
            return
        try:
            contents = [self._do(partial(self._target.read, path)) for path in plan.originals]
        except FileNotFoundError:
            log.info("sink %d: files of %s were removed meanwhile", self.partition, folder)
            return
        content, rows = merge(contents)
        self._commit(self.journal.with_intent([plan.name], is_merge=True))
        self._write_files({plan.name: content}, "merge")
        delete_at_ms = now_ms + int(self._settings.keep_replaced_s * 1000)
        self._commit(self.journal.with_merged(plan.name, rows, plan.originals, delete_at_ms))
        log.info("sink %d: merged %d files of %s into one of %d rows, %d bytes", self.partition, len(contents), folder, rows, len(content))
