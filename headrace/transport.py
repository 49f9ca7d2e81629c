"""A Faust transport that hands an agent whole batches: the records that one fetch brought of one partition.

Faust 0.15.3 delivers about 6,000 events a second one by one, since each passes through a dozen coroutines; a batch passes once. It is
used by broker URL and topic class, and needs nothing else of Headrace:

    app = faust.App("name", broker="headrace://127.0.0.1:9092", Topic=BatchTopic)

    @app.agent(app.topic("exposures"))
    async def on_exposures(stream):
        async for event in stream.events():
            for record in event.value:  # list of aiokafka ConsumerRecord, in offset order
                ...

A batch is acknowledged as a whole. By default the offset behind an acknowledged batch is committed, when all earlier batches of its
partition are. An application with state of its own says instead where to begin (`positions`) and what may be committed (`commit_at`).

It overrides methods that Faust does not document: the versions are pinned, and tests/headrace/test_transport.py holds the seam.
Faust counts batches where it says messages: keep `stream_buffer_maxsize` small.
"""

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from faust.topics import Topic
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

Positions = Callable[[Mapping[TP, int | None]], Mapping[TP, int]]
"""Given the committed offset of each assigned partition (None where there is none), the offsets to begin at where they differ."""


IDLE_S = 0.05
"""How often to look whether there is a partition to fetch again, where all are held or their buffers full."""


class BatchMessage(ConsumerMessage):  # type: ignore[misc]
    """A message whose value is a list of records; its offset is the last record's."""

    __slots__ = ()


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's Kafka consumer, delivering a batch where it would deliver a record."""

    positions: Positions | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._undone: defaultdict[TP, deque[BatchMessage]] = defaultdict(deque)
        self._commit_at: dict[TP, int] = {}
        self._held: set[TP] = set()

    def hold(self, tp: TP) -> None:
        """Fetch nothing more of a partition until it is released, or assigned anew. What is on its way here is still delivered."""
        self._held.add(tp)

    def release(self, tp: TP) -> None:
        """Go on fetching a held partition where it was."""
        self._held.discard(tp)

    def commit_at(self, tp: TP, offset: int) -> None:
        """Commit this offset of the partition next. Where `positions` is set, nothing else is ever committed."""
        self._commit_at[tp] = offset

    def caught_up_at_s(self, tp: TP) -> float | None:
        """When the broker last said that it has no more of a partition than was delivered and acknowledged, in s since the epoch.

        None while records wait, here or there, and before the first fetch.
        """
        subscription = self._thread._ensure_consumer()._subscription.subscription
        fetched = subscription and subscription.assignment and subscription.assignment.state_value(tp)
        if not fetched or fetched.highwater is None or fetched._position is None or fetched._position < fetched.highwater:
            return None
        if not all(message.acked for message in self._undone.get(tp, ())):
            return None
        return float(fetched.timestamp / 1000)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, BatchMessage]]:
        """Yield one message a fetched partition. A batch that is not yielded is fetched again: flow stops only before a new seek."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        wanted = self._get_active_partitions() - self._held
        if not wanted:  # aiokafka would take an empty set for all
            await self.sleep(IDLE_S)
            return
        records = await self._getmany(active_partitions=wanted, timeout=timeout)
        if self.should_stop:
            return
        if not self.flow_active:
            await self._seek_while_the_flow_is_stopped()
            return
        generation = self.app.consumer_generation_id
        for tp, batch in records.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if batch:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                yield tp, self._batch_message(tp, batch, generation)

    async def _seek_while_the_flow_is_stopped(self) -> None:
        try:
            await self.perform_seek()
        except Exception as error:  # the partitions may be gone by now; the next assignment seeks again
            self.log.warning("seek while the flow is stopped: %r", error)

    def _batch_message(self, tp: TP, batch: list[Any], generation: int) -> BatchMessage:
        last = batch[-1]
        message = BatchMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            [],
            None,
            batch,
            None,
            tp=tp,
            generation_id=generation,
        )
        self._undone[tp].append(message)
        return message

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> list[TP]:
        return [tp for tp in {*self._undone, *self._commit_at} if topics is None or tp in topics or tp.topic in topics]

    def _new_offset(self, tp: TP) -> int | None:
        undone, offset = self._undone[tp], None
        while undone and undone[0].acked:
            offset = undone.popleft().offset + 1
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)
        return offset if self.positions is None else self._commit_at.get(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing to do: within a batch offsets may jump, and batches are acknowledged whole."""

    async def perform_seek(self) -> None:
        """Begin at the committed offsets, or where `positions` says. What was delivered before belongs to the past."""
        self._undone.clear()
        self._commit_at.clear()
        self._held.clear()
        await super().perform_seek()
        if self.positions is not None:
            assigned = {TP(tp.topic, tp.partition): None for tp in self.assignment()}
            committed = {**assigned, **{tp: offset for tp, offset in self._committed_offset.items() if tp in assigned}}
            for tp, offset in self.positions(committed).items():
                await self.seek(tp, offset)
                self._read_offset[tp] = offset

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._undone.pop(tp, None)
            self._commit_at.pop(tp, None)
            self._held.discard(tp)


class Transport(driver.Transport):  # type: ignore[misc]
    """`headrace://HOST:PORT`: Faust's Kafka transport with the batch consumer."""

    Consumer = BatchConsumer
    positions: Positions | None = None

    def create_consumer(self, callback: Any, **kwargs: Any) -> BatchConsumer:
        consumer: BatchConsumer = super().create_consumer(callback, **kwargs)
        consumer.positions = self.positions
        return consumer


class BatchTopic(Topic):  # type: ignore[misc]
    """A topic whose events hold batches: their records are not decoded here."""

    decode: Callable[..., Awaitable[Any]]

    def _compile_decode(self) -> None:
        super()._compile_decode()
        decode_record = self.decode
        create_event = self.app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            if type(message) is BatchMessage:
                return create_event(None, message.value, None, message)
            return await decode_record(message, propagate=propagate)

        self.decode = decode
