"""A Faust transport that hands an agent whole batches: the records that one fetch brought of one partition.

Faust 0.15.3 delivers about 6,000 events a second one by one, since each passes through a dozen coroutines; a batch passes once. It is
used by broker URL and topic class, and needs nothing else of Headrace (docs/transport.md):

    app = faust.App("name", broker="headrace://127.0.0.1:9092", Topic=BatchTopic)

    @app.agent(app.topic("exposures"), supervisor_strategy=CrashingSupervisor)
    async def on_exposures(stream):
        async for tp, records in batches(stream):
            for record in records:  # aiokafka's records as they were parsed, in offset order: offset, timestamp, key, value, headers
                ...

A batch is acknowledged as a whole. By default the offset behind an acknowledged batch is committed, when all earlier batches of its
partition are. An application with state of its own sets an `owner`: it says where to begin, and what may be committed (`commit_at`).

It overrides methods that Faust and aiokafka do not document: the versions are pinned, and tests/headrace/test_transport.py holds the
seam. Faust counts batches where it says messages: keep `stream_buffer_maxsize` small.
"""

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from faust.topics import Topic
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from headrace.group_member import GroupMember, Records, Taken


class Owner(Protocol):
    """An application that keeps state for the partitions that it reads."""

    async def on_revoked(self) -> None:
        """The group moves on: finish what is in hand and touch no partition until the next assignment. Others may own them by then."""
        ...

    async def on_assigned(self, committed: Mapping[TP, int | None]) -> Mapping[TP, int]:
        """Own these partitions and no others; give the offsets to begin at where they are not the committed ones (None: no commit yet)."""
        ...


class BatchMessage(ConsumerMessage):  # type: ignore[misc]
    """A message whose value is a list of records; the offset behind it is the next that will be fetched."""

    __slots__ = ()


async def batches(stream: Any) -> AsyncIterator[tuple[TP, list[Any]]]:
    """The batches of an agent's stream. One is acknowledged when the next is asked for, hence never where the agent failed over it."""
    async for event in stream.events():
        event.message.incref()  # Faust would acknowledge it even then
        yield event.message.tp, event.value
        event.message.ack(stream.app.consumer)


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's Kafka consumer, delivering a batch where it would deliver a record."""

    owner: Owner | None = None
    records: Records = list

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._undone: defaultdict[TP, deque[BatchMessage]] = defaultdict(deque)
        self._commit_at: dict[TP, int] = {}
        self._held: set[TP] = set()

    def _new_consumer_thread(self) -> GroupMember:
        return GroupMember(self, loop=self.loop, beacon=self.beacon)

    @property
    def generation(self) -> int:
        """The generation of the group that the present assignment belongs to."""
        return int(self.app.consumer_generation_id)

    def is_member(self) -> bool:
        """Whether the group cannot have given this worker's partitions to another one yet: it was heard within the session time-out.

        It was not where the process had been frozen, or the broker is away. Outputs must wait then.
        """
        return self._thread.is_member()  # type: ignore[no-any-return]

    def heard_s(self) -> float:
        """When the group last answered that this worker is a member (s on the monotonic clock), partitions or none."""
        return self._thread.heard_s  # type: ignore[no-any-return]

    def hold(self, tp: TP) -> None:
        """Fetch nothing more of a partition until it is released, or assigned anew. What is on its way here is still delivered."""
        self._held.add(tp)

    def release(self, tp: TP) -> None:
        """Go on fetching a held partition where it was."""
        self._held.discard(tp)
        self._thread.look_again()

    def commit_at(self, tp: TP, offset: int) -> None:
        """Commit this offset of the partition next. Where there is an owner, nothing else is ever committed."""
        self._commit_at[tp] = offset

    def caught_up_at_s(self, tp: TP) -> float | None:
        """When the broker last said that it has no more of a partition than was delivered and acknowledged, in s since the epoch.

        None while records wait, here or there, and before the first fetch.
        """
        if not all(message.acked for message in self._undone.get(tp, ())):
            return None
        return self._thread.read_to_the_end_at_s(tp)  # type: ignore[no-any-return]

    def wants(self, tp: TP) -> bool:
        """Whether records of the partition may be taken now. The consumer's thread asks."""
        return self.flow_active and tp in self._active_partitions and tp not in self._held

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, BatchMessage]]:
        """Yield one message a fetched partition.

        What is not yielded is not lost: records are taken while the flow is active only, and it stops only before a new seek.
        """
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        for taken in await self._thread.take(timeout):
            if not self.flow_active or self.should_stop or taken.generation != self.generation:
                return
            self.app.monitor.track_tp_end_offset(taken.tp, self.highwater(taken.tp))
            yield taken.tp, self._batch_message(taken)

    def _batch_message(self, taken: Taken) -> BatchMessage:
        message = BatchMessage(
            taken.tp.topic,
            taken.tp.partition,
            taken.next_offset - 1,
            None if taken.newest_ms is None else taken.newest_ms / 1000,
            None,
            [],
            None,
            taken.records,
            None,
            tp=taken.tp,
            generation_id=taken.generation,
        )
        self._forget_done(taken.tp)
        self._undone[taken.tp].append(message)
        return message

    def _forget_done(self, tp: TP) -> None:
        """Let go of the acknowledged batches at the front, with their memory; without an owner, what is behind them may be committed."""
        undone = self._undone[tp]
        while undone and undone[0].acked:
            offset = undone.popleft().offset + 1
            if self.owner is None:
                self._commit_at[tp] = offset

    def resume_flow(self) -> None:
        """Let records be taken."""
        super().resume_flow()
        self._thread.look_again()

    def on_buffer_drop(self, tp: TP) -> None:
        """An agent's buffer has room again."""
        super().on_buffer_drop(tp)
        self._thread.look_again()

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> list[TP]:
        return [tp for tp in {*self._undone, *self._commit_at} if topics is None or tp in topics or tp.topic in topics]

    def _new_offset(self, tp: TP) -> int | None:
        self._forget_done(tp)
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)
        return self._commit_at.get(tp)

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        committed = {tp: self._committed_offset[tp] for tp in offsets}
        if await super()._commit_offsets(offsets, start_new_transaction):
            return True
        self._committed_offset.update(committed)  # Faust takes an attempt for a success
        return False

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing to do: within a batch offsets may jump, and batches are acknowledged whole."""

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """The group is about to rebalance: take nothing more, let the owner finish what it has in hand."""
        self.stop_flow()  # Faust does so only where something was assigned
        await super().on_partitions_revoked(revoked)
        if self.owner is not None:
            await self.owner.on_revoked()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """A rebalance is over. Faust seeks, and lets the flow go on, a little later; without partitions it has nothing to seek."""
        await super().on_partitions_assigned(assigned, generation_id)
        if self.owner is not None and not assigned:
            await self.owner.on_assigned({})

    async def perform_seek(self) -> None:
        """Begin at the committed offsets, or where the owner says. What was delivered before belongs to the past."""
        self._undone.clear()
        self._commit_at.clear()
        self._held.clear()
        await super().perform_seek()
        if self.owner is not None:
            assigned = {TP(tp.topic, tp.partition): None for tp in self.assignment()}
            committed = {**assigned, **{tp: offset for tp, offset in self._committed_offset.items() if tp in assigned}}
            for tp, offset in (await self.owner.on_assigned(committed)).items():
                await self.seek(tp, offset)
                self._read_offset[tp] = offset


class Transport(driver.Transport):  # type: ignore[misc]
    """`headrace://HOST:PORT`: Faust's Kafka transport with the batch consumer."""

    Consumer = BatchConsumer
    owner: Owner | None = None
    records: Records = list
    """What a batch is made of; called in the consumer's thread. Fewer and smaller objects a record are less work for the collector."""

    def create_consumer(self, callback: Any, **kwargs: Any) -> BatchConsumer:
        consumer: BatchConsumer = super().create_consumer(callback, **kwargs)
        consumer.owner, consumer.records = self.owner, self.records
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
