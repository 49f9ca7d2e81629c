"""Runs a stage's steps on the partitions that Faust assigns: apply, send, store, commit, in this order, whatever dies in between.

A crash before the send changes nothing. One between send and store sends the same outputs again: consumers know their ids. One
between store and commit is harmless: the stored offsets say what the state already covers. The offsets committed to Kafka are older
still (`Outcome.needed_from`): a worker without this disk re-reads from them and has the same state.
"""

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from faust.types import TP

from headrace.durable_rows import DurableRows
from headrace.metrics import StageMetrics
from headrace.producer import StreamProducer
from headrace.settings import ConfigError
from headrace.stall import StallWatch
from headrace.step import Count, MakeStep, Outcome, PartitionStep, PausingStep, Record
from headrace.store import PartitionStore
from headrace.transport import BatchConsumer
from schemas.codec import encode_json
from schemas.topics import DEAD_LETTERS

log = logging.getLogger(__name__)

TICK_S = 0.5
FRESH_S = 5.0
"""A topic is known to be read to its end for so long after the broker said so. A healthy consumer asks twice a second."""
CRASH_EXIT_CODE = 70
"""EX_SOFTWARE: the supervisor (or Kubernetes) starts the worker again."""


def stop_at_once(error: BaseException) -> NoReturn:
    """End the process without a further step: a half-applied state must not be stored, nor its offsets committed."""
    if isinstance(error, ConfigError):
        log.critical("%s", error)
    else:
        log.critical("the worker stops: %r", error, exc_info=error)
    logging.shutdown()
    os._exit(CRASH_EXIT_CODE)


class Partition:
    """One open partition: its input topics, its durable rows, its step in memory, and how far behind it was at the last batch."""

    def __init__(
        self, number: int, topics: Collection[str], folder: Path, make_step: MakeStep, open_store: Callable[[Path], DurableRows]
    ) -> None:
        self.number = number
        self.topics = frozenset(topics)
        self.store = open_store(folder)
        self._make_step = make_step
        self.step: PartitionStep = make_step(number, self.store)
        self._pauses = isinstance(self.step, PausingStep)
        self.lag_s = 0.0
        self.last_arrival_s: float | None = None
        self.begun_at: dict[str, int] = {}
        """Where reading of a topic began that the stored offsets do not name yet."""
        self.holes: dict[str, set[int]] = {}
        self.waiting: dict[str, deque[list[Record]]] = {}
        """By topic that is held, the batches that were on their way when it was: they are applied when it is released."""
        self.lock = asyncio.Lock()
        """Whoever applies something has it."""
        self.in_hand: asyncio.Task[None] | None = None
        """The last outcome, while it is sent and stored."""

    async def settled(self) -> None:
        """The last outcome is stored, and the next thing may be applied."""
        if self.in_hand is not None:
            await self.in_hand
            self.in_hand = None

    def covered(self, topic: str) -> int | None:
        """The next offset to apply, where it is known."""
        return self.store.offsets.get(topic, self.begun_at.get(topic))

    def paused(self) -> Collection[str]:
        """The topics that the step does not want now."""
        return cast(PausingStep, self.step).paused() if self._pauses else ()

    def is_behind(self, committed: Mapping[str, int | None]) -> bool:
        """Whether another worker has carried this partition on since, or the machine lost its last writes."""
        stored = self.store.offsets
        return any(offset is not None and stored.get(topic, offset if not stored else -1) < offset for topic, offset in committed.items())

    def belongs_to(self, topic_ids: Mapping[str, str]) -> None:
        """Remember which logs the offsets count. Raises ConfigError where the stored ones count others."""
        stored = self.store.topic_ids
        for topic, topic_id in topic_ids.items():
            if topic in self.store.offsets and stored.get(topic, topic_id) != topic_id:
                raise ConfigError(
                    f"the state in {self.store.folder} belongs to an earlier topic {topic} (it was created anew, or its broker lost it): "
                    f"remove {self.store.folder.parent} to begin with the topics as they are"
                )
        stored.update(topic_ids)

    def start_anew(self) -> None:
        """Forget the state; it is rebuilt from the committed offsets."""
        self.store.wipe()
        self.step = self._make_step(self.number, self.store)

    def begin(self, committed: Mapping[str, int | None]) -> None:
        """Reading begins anew, at the stored offsets or else the committed ones: what was on its way comes again."""
        self.begun_at = {topic: offset for topic, offset in committed.items() if offset is not None}
        self.holes.clear()
        self.waiting.clear()


class Stage:
    """The partitions of one stage on this worker."""

    def __init__(
        self,
        name: str,
        state_dir: Path,
        make_step: MakeStep,
        producer: StreamProducer,
        consumer: Callable[[], BatchConsumer],
        topic_ids: Callable[[Collection[str]], Mapping[str, str]],
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.open_store: Callable[[Path], DurableRows] = PartitionStore
        """Another one where the stores are to be opened in another way; set before there are partitions."""
        self.partitions: dict[int, Partition] = {}
        self._folder = state_dir / name
        self._make_step = make_step
        self._producer = producer
        self._consumer = consumer
        self._topic_ids = topic_ids
        self._clock_s = clock_s
        self._lock = asyncio.Lock()
        """Whoever opens and closes partitions has it."""
        self._generation: int | None = None
        """Of the group, when it gave this worker the partitions that are open; None while it rebalances, and another may have them."""
        self._rebalances = 0
        self._watch = StallWatch()
        self.metrics = StageMetrics(name, self.looks)

    async def on_revoked(self) -> None:
        """Finish what is in hand; nothing more is applied until the next assignment."""
        self._rebalances += 1
        await self._finish()

    async def _finish(self) -> None:
        self._generation = None
        for partition in list(self.partitions.values()):
            async with partition.lock:
                await partition.settled()

    async def on_assigned(self, committed: Mapping[TP, int | None]) -> dict[TP, int]:
        """Open what is assigned, close what is not, and say from where to read on."""
        by_partition: dict[int, dict[str, int | None]] = {}
        for tp, offset in committed.items():
            by_partition.setdefault(tp.partition, {})[tp.topic] = offset
        topics, rebalances = {tp.topic for tp in committed}, self._rebalances
        try:
            topic_ids = await asyncio.to_thread(self._topic_ids, topics) if topics else {}
            async with self._lock:
                await self._finish()
                for number in self.partitions.keys() - by_partition.keys():
                    self.partitions.pop(number).store.close()
                for number, offsets in by_partition.items():
                    self._open(number, offsets, topic_ids)
                if rebalances == self._rebalances:  # else they are revoked already
                    self._generation = self._consumer().generation
        except Exception as error:
            stop_at_once(error)
        return {
            TP(topic, number): partition.store.offsets[topic]
            for number, partition in self.partitions.items()
            for topic in by_partition[number]
            if topic in partition.store.offsets
        }

    def _open(self, number: int, committed: Mapping[str, int | None], topic_ids: Mapping[str, str]) -> None:
        if number not in self.partitions:
            self.partitions[number] = Partition(number, committed, self._folder / str(number), self._make_step, self.open_store)
        partition = self.partitions[number]
        partition.belongs_to(topic_ids)
        if partition.is_behind(committed):
            log.warning(
                "%s %d: stored offsets %s are behind the committed %s: rebuilding",
                self.name,
                number,
                partition.store.offsets,
                dict(committed),
            )
            partition.start_anew()
            partition.belongs_to(topic_ids)
        partition.begin(committed)
        self._hold(partition)
        log.info("%s %d: opened at %s", self.name, number, partition.store.offsets or "the committed offsets")

    async def on_batch(self, event: Any) -> None:
        """Apply one delivered batch, an event of a BatchTopic, once the last outcome of its partition is stored.

        While this one is sent and stored, other partitions go on: waiting for acknowledgements took a fifth of the joiner's time.
        """
        tp = event.message.tp
        partition = self.partitions.get(tp.partition)
        if partition is None:
            return  # revoked while the batch waited: it is read again by its next owner
        async with partition.lock:
            if event.message.generation_id != self._generation:
                return  # the same
            try:
                await self._release(partition)
                if self._generation is None:
                    return
                if tp.topic in partition.waiting:
                    partition.waiting[tp.topic].append(event.value)
                else:
                    await self._apply(partition, tp, event.value)
                    self._hold(partition)
            except Exception as error:
                stop_at_once(error)

    async def _apply(self, partition: Partition, tp: TP, batch: list[Record]) -> None:
        covered = partition.covered(tp.topic)
        if covered is not None and await self._is_hole(partition, tp, batch, covered):
            return
        records = batch if covered is None or batch[0].offset >= covered else [record for record in batch if record.offset >= covered]
        if not records:
            return
        if partition.last_arrival_s is None:
            log.info("%s %d: first batch, %d records of %s", self.name, tp.partition, len(records), tp.topic)
        began_s = self._clock_s()
        outcome = partition.step.apply(tp.topic, records, int(began_s * 1000))

        async def carry_out() -> None:
            await self._carry_out(partition, outcome, {tp.topic: records[-1].offset + 1})
            done_s = self._clock_s()
            partition.last_arrival_s = records[-1].arrival_ms / 1000
            partition.lag_s = max(0.0, done_s - partition.last_arrival_s)
            self.metrics.observe_batch(tp.topic, max(0.0, done_s - began_s))

        partition.in_hand = asyncio.create_task(carry_out())

    def _hold(self, partition: Partition) -> Collection[str]:
        """Have nothing more fetched of the topics that cannot be applied now, and give them: what the step does not want, or all of them.

        A worker that was frozen, or is cut off, may have been replaced without knowing: until the group has answered it is no owner.
        """
        held = partition.paused() if self._consumer().is_member() else partition.topics
        for topic in held:
            if topic not in partition.waiting:
                partition.waiting[topic] = deque()
                self._consumer().hold(TP(topic, partition.number))
        return held

    async def _release(self, partition: Partition) -> None:
        """Hold what cannot be applied, and apply what waits of that which can be again."""
        while self._generation is not None:
            await partition.settled()
            held = self._hold(partition)
            released = next((topic for topic in partition.waiting if topic not in held), None)
            if released is None:
                return
            if partition.waiting[released]:
                await self._apply(partition, TP(released, partition.number), partition.waiting[released].popleft())
            else:
                del partition.waiting[released]
                self._consumer().release(TP(released, partition.number))

    async def _is_hole(self, partition: Partition, tp: TP, batch: list[Record], covered: int) -> bool:
        """Whether records are missing in front of this batch: then they are read again. A hole that is there again is the topic's own.

        (Compaction, retention and transaction markers leave such holes. Anything else would be a record lost on its way here.)
        """
        first = batch[0].offset
        if first <= covered:
            return False
        seen = partition.holes.setdefault(tp.topic, set())
        if first in seen:
            log.warning("%s %s: the topic no longer has offsets %d to %d", self.name, tp, covered, first - 1)
            return False
        if not seen:
            log.warning("%s %s: expected offset %d, got %d: reading again", self.name, tp, covered, first)
        seen.add(first)
        await self._consumer().seek(tp, covered)
        return True

    async def on_tick(self) -> None:
        """Let time pass on every partition."""
        for partition in list(self.partitions.values()):
            async with partition.lock:
                try:
                    await self._release(partition)
                    if self._generation is not None and self._consumer().is_member():
                        await self._tick(partition)
                except Exception as error:
                    stop_at_once(error)

    async def _tick(self, partition: Partition) -> None:
        now_s = self._clock_s()
        unread = [topic for topic in partition.topics if not self._is_read_to_its_end(topic, partition, now_s)]
        outcome = partition.step.tick(int(now_s * 1000), unread)
        partition.in_hand = asyncio.create_task(self._carry_out(partition, outcome, {}))
        await self._release(partition)

    def _is_read_to_its_end(self, topic: str, partition: Partition, now_s: float) -> bool:
        at_s = self._consumer().caught_up_at_s(TP(topic, partition.number))
        return topic not in partition.waiting and at_s is not None and now_s - at_s < FRESH_S

    async def on_watch(self) -> None:
        """End the process where nothing is heard of the group, or of a partition: nothing applied, nor that nothing waits.

        It must not wait for a batch that hangs, so it looks without the lock.
        """
        consumer = self._consumer()
        assigned = consumer.assignment() if self.partitions else ()
        tps = [TP(topic, number) for number, partition in self.partitions.items() for topic in partition.topics - {*partition.paused()}]
        signs = {
            f"{tp.topic} {tp.partition}": (self.partitions[tp.partition].store.offsets.get(tp.topic), consumer.caught_up_at_s(tp))
            for tp in tps
            if tp in assigned
        }
        fault = self._watch.fault(self.name, signs, consumer.heard_s())
        if fault is not None:
            stop_at_once(fault)

    async def _carry_out(self, partition: Partition, outcome: Outcome, offsets: dict[str, int]) -> None:
        messages: list[tuple[str, bytes | None, bytes]] = [(output.topic, None, output.value) for output in outcome.outputs]
        messages += [(DEAD_LETTERS, letter.stage.encode(), encode_json(letter)) for letter in outcome.dead_letters]
        try:
            if messages:
                await self._producer.send(partition.number, messages)
            if offsets or outcome.changes or outcome.counts:
                partition.store.write(outcome.changes, offsets, outcome.counts)
                for topic in offsets:
                    partition.holes.pop(topic, None)
            for topic, offset in outcome.needed_from.items():
                self._consumer().commit_at(TP(topic, partition.number), offset)
        except Exception as error:
            stop_at_once(error)

    def looks(self) -> dict[int, tuple[Counter[Count], Mapping[str, float]]]:
        """Each partition's counts since its state began, and its gauges now."""
        return {
            number: (partition.store.counts, {**partition.step.gauges(), **self._lag(partition)})
            for number, partition in self.partitions.items()
        }

    def _lag(self, partition: Partition) -> dict[str, float]:
        """Records waiting, and how long ago the newest record in the state arrived: at its batch's end, or now if more are waiting."""
        waiting = self._lag_records(partition)
        lag_s = partition.lag_s
        if waiting and partition.last_arrival_s is not None:
            lag_s = max(0.0, self._clock_s() - partition.last_arrival_s)
        return {"lag_seconds": lag_s, "lag_records": waiting}

    def _lag_records(self, partition: Partition) -> int:
        """How many records the broker has beyond those in the state (the embedded broker counts a batch as one record)."""
        ends = {topic: self._consumer().highwater(TP(topic, partition.number)) for topic in partition.store.offsets}
        return sum(max(0, end - partition.store.offsets[topic]) for topic, end in ends.items() if end is not None)

    async def stop(self) -> None:
        """Finish what is in hand, then release the stores. What comes later is left to whoever owns the partitions next."""
        async with self._lock:
            await self._finish()
            self.close()

    def close(self) -> None:
        """Release the stores."""
        for partition in self.partitions.values():
            partition.store.close()
        self.partitions.clear()
