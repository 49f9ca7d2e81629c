"""The sink's agent: samples in, Parquet files out."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import faust
from faust.types import TP

from headrace.app import add_metrics_page, create_app
from headrace.metrics import StageMetrics
from headrace.producer import StreamProducer
from headrace.settings import ConfigError, StreamSettings
from headrace.stage import TICK_S, stop_at_once
from headrace.stall import STALL_LOOKS, StallWatch
from headrace.step import Count, Record
from headrace.topic_ids import topic_ids
from headrace.transport import BatchConsumer
from joiner.sink.metrics import SinkMetrics
from joiner.sink.ownership import TakenOver
from joiner.sink.settings import SinkSettings
from joiner.sink.target import Target
from joiner.sink.writer import Chunk, PartitionWriter
from schemas.codec import encode_json
from schemas.topics import DEAD_LETTERS

log = logging.getLogger(__name__)


class Partition:
    """An assigned partition: its writer, what waits to be written, what is being written, and how far the topic was read."""

    def __init__(self, writer: PartitionWriter) -> None:
        self.number = writer.partition
        self.writer = writer
        self.opening: asyncio.Task[None] | None = None
        self.target_in_use = asyncio.Lock()
        self.received: int | None = None
        self.chunk = Chunk(0, 0)
        self.chunk_began_s = 0.0
        self.flushing: Chunk | None = None
        self.hole: int | None = None

    def cut(self) -> Chunk:
        """What waits; from now on something else does."""
        chunk, self.chunk = self.chunk, Chunk(self.chunk.next_offset, self.chunk.next_offset)
        return chunk

    def oldest_arrival_ms(self) -> int | None:
        """Of what is not written yet; None where nothing waits."""
        waiting = [chunk.oldest_arrival_ms for chunk in (self.flushing, self.chunk) if chunk and chunk.oldest_arrival_ms is not None]
        return min(waiting, default=None)


class Sink:
    """The partitions of this worker. The event loop takes samples in; threads wait for the target."""

    def __init__(
        self,
        settings: SinkSettings,
        target: Target,
        producer: StreamProducer,
        consumer: Callable[[], BatchConsumer],
        ids: Callable[[Collection[str]], Mapping[str, str]],
    ) -> None:
        self.partitions: dict[int, Partition] = {}
        self.stage_metrics = StageMetrics("sink", self._looks)
        self._settings = settings
        self._target = target
        self._producer = producer
        self._consumer = consumer
        self._topic_ids = ids
        self._metrics = SinkMetrics(self.stage_metrics.registry)
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch = StallWatch()

    async def on_revoked(self) -> None:
        """Nothing to finish: the journal on the target says who owns a partition, and refuses everybody else."""

    async def on_assigned(self, committed: Mapping[TP, int | None]) -> dict[TP, int]:
        """Keep what is still assigned, and go on behind what it has received. Others begin when they are opened."""
        assigned = {tp.partition for tp in committed}
        for number in self.partitions.keys() - assigned:
            self.partitions.pop(number).writer.abandoned.set()
        for number in assigned - self.partitions.keys():
            self.partitions[number] = Partition(PartitionWriter(number, self._target, self._settings, self._metrics))
        for part in self.partitions.values():
            part.hole = None
        return {tp: received for tp in committed if (received := self.partitions[tp.partition].received) is not None}

    async def on_batch(self, event: Any) -> None:
        """Take in one delivered batch of record batches."""
        part = self.partitions.get(event.message.tp.partition)
        if part is None:
            return  # revoked while the batch waited; its new owner reads it
        try:
            await self._opened(part)
            if part.received is None or await self._is_hole(part, event.message.tp, event.value[0].offset):
                return
            records = [Record(r.offset, r.timestamp, r.value or b"") for r in event.value if r.offset >= part.received]
            if not records:
                return
            if self._is_full(part):
                await self._flush(part)
            if part.chunk.next_offset == part.chunk.first_offset:
                part.chunk_began_s = time.monotonic()
            letters = part.writer.take(part.chunk, records, int(time.time() * 1000))
            part.received = part.chunk.next_offset
            if letters:
                messages = [(DEAD_LETTERS, letter.stage.encode(), encode_json(letter)) for letter in letters]
                await self._producer.send(part.number, messages)
            if self._is_full(part) and not part.target_in_use.locked():
                self._start(self._flush(part))
        except Exception as error:
            self._failed(part, error)

    async def _opened(self, part: Partition) -> None:
        if part.opening is None:
            part.opening = asyncio.ensure_future(self._open(part))
        await asyncio.shield(part.opening)

    async def _open(self, part: Partition) -> None:
        async with part.target_in_use:
            ids = await asyncio.to_thread(self._topic_ids, {self._settings.topic})
            await asyncio.to_thread(part.writer.open, ids.get(self._settings.topic, ""), int(time.time() * 1000))
            part.received = part.writer.journal.next_offset
            part.chunk = Chunk(part.received, part.received)

    async def _is_hole(self, part: Partition, tp: TP, first_offset: int) -> bool:
        """Whether messages are missing in front of a batch: then they are read again. A hole that is there again is the topic's own."""
        assert part.received is not None
        if first_offset <= part.received:
            return False
        if part.hole == first_offset:
            log.warning("sink %d: the topic no longer has offsets %d to %d", part.number, part.received, first_offset - 1)
            part.hole = None
            return False
        part.hole = first_offset
        await self._consumer().seek(tp, part.received)
        return True

    def _is_full(self, part: Partition) -> bool:
        return part.chunk.rows >= self._settings.flush_rows or part.chunk.size_bytes >= self._settings.flush_bytes

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush(self, part: Partition) -> None:
        async with part.target_in_use:
            part.flushing = part.cut()
            if part.flushing.next_offset == part.flushing.first_offset:
                return
            try:
                await asyncio.to_thread(part.writer.flush, part.flushing, int(time.time() * 1000))
                self._commit(part)
            except Exception as error:
                self._failed(part, error)
            finally:
                part.flushing = None

    def _commit(self, part: Partition) -> None:
        if self.partitions.get(part.number) is part:
            self._consumer().commit_at(TP(self._settings.topic, part.number), part.writer.journal.next_offset)

    async def on_tick(self) -> None:
        """Open what was assigned, flush what has waited long enough, tidy up what is written."""
        for part in list(self.partitions.values()):
            if not part.target_in_use.locked():
                self._start(self._tick(part))

    async def _tick(self, part: Partition) -> None:
        try:
            await self._opened(part)
            waits = part.chunk.next_offset > part.chunk.first_offset
            if waits and time.monotonic() - part.chunk_began_s >= self._settings.flush_s:
                await self._flush(part)
            elif part.writer.is_untidy(now_ms := int(time.time() * 1000)):
                async with part.target_in_use:
                    await asyncio.to_thread(part.writer.tidy, now_ms)
        except Exception as error:
            self._failed(part, error)

    def _failed(self, part: Partition, error: Exception) -> None:
        """End the process, unless the partition is another worker's by now anyway: its new owner reads from the journal."""
        if part.writer.abandoned.is_set():
            log.info("sink %d: left to another worker", part.number)
        elif isinstance(error, TakenOver):
            stop_at_once(
                ConfigError(
                    f"another worker writes partition {part.number} at {self._target.uri} now: this one was silent for too long, or there "
                    "is another sink with this uri (name another sink.uri)"
                )
            )
        else:
            stop_at_once(error)

    async def on_watch(self) -> None:
        """End the process where nothing is heard of the group, or of a partition that the target does not hold up."""
        consumer = self._consumer()
        assigned = consumer.assignment() if self.partitions else ()
        free = {TP(self._settings.topic, part.number): part for part in self.partitions.values() if not part.target_in_use.locked()}
        signs = {f"{tp.topic} {tp.partition}": (part.received, consumer.caught_up_at_s(tp)) for tp, part in free.items() if tp in assigned}
        fault = self._watch.fault("sink", signs, consumer.heard_s())
        if fault is not None:
            stop_at_once(fault)

    def _looks(self) -> dict[int, tuple[Counter[Count], dict[str, float]]]:
        now_s = time.time()
        looks: dict[int, tuple[Counter[Count], dict[str, float]]] = {}
        for number, part in self.partitions.items():
            journal, oldest_ms = part.writer.journal, part.oldest_arrival_ms()
            end = self._consumer().highwater(TP(self._settings.topic, number)) or 0
            gauges = {
                "lag_seconds": max(0.0, now_s - oldest_ms / 1000) if oldest_ms is not None else 0.0,
                "lag_records": float(max(0, end - journal.next_offset)),
                "unwritten_rows": float(part.chunk.rows + (part.flushing.rows if part.flushing else 0)),
            }
            looks[number] = Counter({Count(name, label): count for name, label, count in journal.counts}), gauges
        return looks

    def stop(self) -> None:
        """Leave the partitions: what waits is read again by whoever owns them next."""
        for part in self.partitions.values():
            part.writer.abandoned.set()
        self.partitions.clear()


def create(stream_settings: StreamSettings, settings: SinkSettings, target: Target, web_port: int) -> faust.App:
    """The sink's application."""
    app = create_app(f"sink-{settings.topic}", stream_settings, web_port)
    producer = StreamProducer(stream_settings.broker)
    sink = Sink(settings, target, producer, lambda: app.consumer, partial(topic_ids, stream_settings.broker))
    app.transport.owner = sink
    add_metrics_page(app, sink.stage_metrics)

    @app.agent(app.topic(settings.topic))
    async def on_samples(stream: Any) -> None:
        async for event in stream.events():
            await sink.on_batch(event)

    @app.timer(interval=TICK_S)
    async def on_tick() -> None:
        await sink.on_tick()

    @app.timer(interval=stream_settings.stall_timeout_s / STALL_LOOKS)
    async def on_watch() -> None:
        await sink.on_watch()

    @app.on_before_shutdown.connect
    async def _stop(*_: Any, **__: Any) -> None:
        sink.stop()
        await producer.stop()

    return app
