"""The thread of a batch consumer: a member of the consumer group that knows whether it still is one, and takes fetches whole.

It works on the inside of aiokafka 0.14.0, which makes one object of eleven fields a record, and tells nobody when its heartbeats were
last answered.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, CorruptRecordException, IllegalStateError
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

FETCH_MAX_WAIT_MS = 100
"""How long the broker may hold a fetch back that finds nothing. aiokafka has one fetch under way a broker, and only of partitions
that it has no records of: one that asks for none but silent partitions keeps all others waiting. Faust's 1500 ms cost 40 % of the
joiner's time in a backlog."""


class Taken(NamedTuple):
    """What was fetched of a partition: records below `next_offset`, taken while the group was in its `generation`."""

    tp: TP
    generation: int
    records: list[Any]
    next_offset: int
    newest_ms: int | None


Records = Callable[[Iterable[Any]], list[Any]]
"""Makes what the application wants of the records of a batch, as aiokafka's C code parses them: offset, timestamp, key, value, headers."""


class GroupMember(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread. Methods without `async` may be called from any thread."""

    heard_s = float("-inf")
    """When the group last answered that this is a member, on the monotonic clock."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        return consumer

    async def on_start(self) -> None:
        """Connect, and from then on note what the group answers."""
        await super().on_start()
        coordinator = self._consumer._coordinator
        send = coordinator._send_req

        async def send_and_note(request: Any) -> Any:
            sent_s = time.monotonic()
            response = await send(request)
            if isinstance(request, HeartbeatRequest | SyncGroupRequest) and response.error_code == 0:
                self.heard_s = sent_s  # the session is at least as long as that: it begins when the broker gets the request
            return response

        coordinator._send_req = send_and_note

    def is_member(self) -> bool:
        """Whether the group cannot have ended this member's session yet."""
        return time.monotonic() - self.heard_s < float(self.app.conf.broker_session_timeout)

    def read_to_the_end_at_s(self, tp: TP) -> float | None:
        """When the broker last said that it has no more of a partition than was taken, in s since the epoch; None where it has more."""
        subscription = self._ensure_consumer()._subscription.subscription
        state = subscription and subscription.assignment and subscription.assignment.state_value(tp)
        if not state or state.highwater is None or state._position is None or state._position < state.highwater:
            return None
        return float(state.timestamp / 1000)

    def look_again(self) -> None:
        """A partition may have become wanted: whoever waits in `take` must look."""
        if self._consumer is not None and not self.thread_loop.is_closed():
            self.thread_loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        fetcher = self._consumer._fetcher
        for waiter in fetcher._fetch_waiters:
            fetcher._notify(waiter)

    async def take(self, timeout_s: float) -> list[Taken]:
        """What was fetched of the partitions that the consumer wants, all of it; waits where there is nothing."""
        taken: list[Taken] = await self.call_thread(self._take, timeout_s)
        return taken

    async def _take(self, timeout_s: float) -> list[Taken]:
        consumer = self._ensure_consumer()
        fetcher, deadline_s = consumer._fetcher, time.monotonic() + timeout_s
        with fetcher._subscriptions.fetch_context():  # else the group takes this member for idle
            while self.consumer.flow_active:
                if consumer._closed or fetcher._closed:
                    raise ConsumerStoppedError
                taken = self._take_fetched(fetcher)
                left_s = deadline_s - time.monotonic()
                if taken or left_s <= 0:
                    return taken
                waiter = fetcher._create_fetch_waiter()
                await asyncio.wait([waiter], timeout=left_s)
                if waiter.done():
                    waiter.result()  # an error of the coordinator
                else:
                    waiter.cancel()
        return []

    def _take_fetched(self, fetcher: Any) -> list[Taken]:
        if fetcher._subscriptions.reassignment_in_progress:
            return []
        taken: list[Taken] = []
        for key in list(fetcher._records):
            tp = TP(key.topic, key.partition)
            if not self.consumer.wants(tp):
                continue
            fetched = fetcher._records[key]
            if type(fetched) is not FetchResult and taken:
                break  # an error: it is raised the next time
            del fetcher._records[key]
            fetcher._notify(fetcher._wait_consume_future)  # so that the next fetch can begin
            if type(fetched) is not FetchResult:
                fetched.check_raise()
            elif fetched.check_assignment(key):
                records, next_offset, newest_ms = unpack(fetched._partition_records, self.consumer.records)
                fetched._assignment.state_value(key).consumed_to(next_offset)
                if records:
                    taken.append(Taken(tp, self.app.consumer_generation_id, records, next_offset, newest_ms))
        return taken

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit, in the consumer's thread. False where the partitions are not this member's any more, as far as can be known."""
        consumer = self._ensure_consumer()
        if not self.is_member() or consumer._coordinator.generation != self.app.consumer_generation_id:
            return False  # one that is no member would be let to commit to an empty group
        try:
            await consumer.commit({TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()})
        except (CommitFailedError, IllegalStateError) as error:
            self.log.warning("not committed: %r", error)
            return False
        except Exception as error:
            self.log.exception("cannot commit: %r", error)
            await self.crash(error)
            return False
        self.tp_last_committed_at.update(dict.fromkeys(offsets, time.monotonic()))
        return True


def unpack(part: PartitionRecords, make: Records = list) -> tuple[list[Any], int, int | None]:
    """The records of one fetched partition, the offset behind them, and the last batch's newest time (ms).

    It is aiokafka's own loop without its object a record.
    """
    if part._isolation_level == READ_COMMITTED:
        records = list(part)
        return make(records), part.next_fetch_offset, records[-1].timestamp if records else None
    part._records_iterator = None  # not begun: a cycle that would keep the fetch's bytes until the collector runs
    made: list[Any] = []
    offset, newest_ms = part.next_fetch_offset, None
    while part._records.has_next():
        batch = part._records.next_batch()
        if part._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"Invalid CRC - {part._tp}")
        if not batch.is_control_batch:
            # A fetch brings the batch in which the offset lies, from its beginning. (Batches of Kafka 0.10 do not say where they begin.)
            is_cut = getattr(batch, "base_offset", -1) < offset
            made += make(record for record in batch if record.offset >= offset) if is_cut else make(batch)
            newest_ms = getattr(batch, "max_timestamp", None)
        offset = max(offset, batch.next_offset)
    return made, offset, newest_ms
