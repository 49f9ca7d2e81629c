"""The batch transport by itself, without the rest of Headrace: one Faust application, or several, in this process."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from aiokafka.protocol.group import HeartbeatRequest
from faust.types import TP
from reader import PARTITIONS, Reader, committed, fill, new_topic, until

from headrace.group_member import Taken


class Begin:
    """An owner that begins where it is told, and remembers what it was told."""

    def __init__(self, at: Mapping[TP, int]) -> None:
        self.at = at
        self.events: list[str] = []
        self.committed: Mapping[TP, int | None] = {}

    async def on_revoked(self) -> None:
        self.events.append("revoked")

    async def on_assigned(self, committed: Mapping[TP, int | None]) -> Mapping[TP, int]:
        self.events.append(f"assigned {len(committed)}")
        self.committed = committed
        return {tp: offset for tp, offset in self.at.items() if tp in committed}


def group_name() -> str:
    return f"g-{uuid.uuid4().hex[:12]}"


async def test_a_batch_has_the_records_of_one_fetch_of_one_partition_in_offset_order(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic = new_topic(address)
    fill(address, topic, 0, 500)
    async with Reader(address, group_name(), [topic], tmp_path, session_s) as reader:
        await until(lambda: len(reader.records) == 500 * PARTITIONS, "all records")

        assert all(reader.offsets(TP(topic, partition)) == list(range(500)) for partition in range(PARTITIONS))
        assert len(reader.seen) < 20
        assert {(record.key, record.value) for record in reader.records} == {(b"k%d" % n, b"%d" % n) for n in range(500)}
        assert reader.app.monitor.messages_received_total == len(reader.seen)
        assert reader.app.monitor.tp_read_offsets[TP(topic, 0)] == 499


async def test_no_commit_passes_a_batch_in_hand_and_the_next_life_reads_it_again(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    fill(address, topic, 0, 10, 1)
    async with Reader(address, group, [topic], tmp_path, session_s) as reader:
        await until(lambda: committed(address, group, topic, 1) == [10], "a commit behind the first batch")
        reader.gate.clear()
        fill(address, topic, 10, 20, 1)
        await until(lambda: len(reader.seen) == 2, "the second batch")
        fill(address, topic, 20, 30, 1)
        await reader.app.consumer.commit()
        assert committed(address, group, topic, 1) == [10]
        # No way out but the end: the agent never comes to the end of its batch.
        reader.fail_at = 10
    assert committed(address, group, topic, 1) == [10]

    async with Reader(address, group, [topic], tmp_path, session_s) as reader:
        await until(lambda: reader.offsets(TP(topic, 0))[-1:] == [29], "the rest")
        assert reader.offsets(TP(topic, 0)) == list(range(10, 30))
        await until(lambda: committed(address, group, topic, 1) == [30], "the commit of all")


async def test_a_batch_over_which_the_agent_fails_is_not_skipped(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    fill(address, topic, 0, 10, 1)
    reader = Reader(address, group, [topic], tmp_path, session_s)
    reader.fail_at = 15
    async with reader:
        await until(lambda: committed(address, group, topic, 1) == [10], "a commit behind the first batch")
        fill(address, topic, 10, 20, 1)
        await until(lambda: reader.app.crashed, "the end of the application")
    assert committed(address, group, topic, 1) == [10]

    async with Reader(address, group, [topic], tmp_path, session_s) as reader:
        await until(lambda: reader.offsets(TP(topic, 0)) == list(range(10, 20)), "the batch again")


async def test_an_application_that_seeks_reads_on_from_there(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic = new_topic(address, 1)
    fill(address, topic, 0, 100, 1)
    async with Reader(address, group_name(), [topic], tmp_path, session_s) as reader:
        await until(lambda: len(reader.records) == 100, "all records")
        await reader.app.consumer.seek(TP(topic, 0), 57)  # in the middle of what the producer sent as one
        fill(address, topic, 100, 110, 1)
        await until(lambda: reader.offsets(TP(topic, 0))[-1] == 109, "the rest")
        assert reader.offsets(TP(topic, 0)) == [*range(100), *range(57, 110)]


async def test_nothing_of_a_held_partition_is_fetched_until_it_is_released(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic = new_topic(address, 2)
    fill(address, topic, 0, 10, 2)
    held, other = TP(topic, 0), TP(topic, 1)
    async with Reader(address, group_name(), [topic], tmp_path, session_s) as reader:
        await until(lambda: len(reader.records) == 20, "all records")
        reader.app.consumer.hold(held)
        for number in range(10, 20):
            fill(address, topic, number, number + 1, 2)
            await until(lambda number=number: reader.offsets(other)[-1] == number, "the other partition goes on")
        assert reader.offsets(held) == list(range(10))

        reader.app.consumer.release(held)
        await until(lambda: reader.offsets(held) == list(range(20)), "what waited", timeout_s=0.9)  # at once, not at the next poll


async def test_when_all_partitions_are_held_none_is_fetched(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic = new_topic(address, 1)
    fill(address, topic, 0, 10, 1)
    async with Reader(address, group_name(), [topic], tmp_path, session_s) as reader:
        await until(lambda: len(reader.records) == 10, "all records")
        reader.app.consumer.hold(TP(topic, 0))
        fill(address, topic, 10, 20, 1)
        await until(lambda: reader.app.consumer._thread._consumer._fetcher._records, "a fetch")
        await asyncio.sleep(1.2)  # more than one poll
        assert len(reader.records) == 10

        reader.app.consumer.release(TP(topic, 0))
        await until(lambda: reader.offsets(TP(topic, 0)) == list(range(20)), "what waited", timeout_s=0.9)


async def test_an_owner_says_where_to_begin_and_what_is_committed(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address), group_name()
    fill(address, topic, 0, 50)
    owner = Begin({TP(topic, 1): 20, TP(topic, 2): 50})
    async with Reader(address, group, [topic], tmp_path, session_s, owner) as reader:
        await until(lambda: len(reader.records) == 130, "130 records")
        assert [reader.offsets(TP(topic, partition))[:1] for partition in range(PARTITIONS)] == [[0], [20], [], [0]]
        assert owner.committed == dict.fromkeys((TP(topic, partition) for partition in range(PARTITIONS)), None)
        reader.app.consumer.commit_at(TP(topic, 3), 33)
        await until(lambda: committed(address, group, topic)[3] == 33, "the commit that was asked for")
        assert committed(address, group, topic)[:3] == [-1001, -1001, -1001]

    owner = Begin({})
    async with Reader(address, group, [topic], tmp_path, session_s, owner) as reader:
        await until(lambda: len(reader.records) == 167, "167 records")
        assert owner.committed[TP(topic, 3)] == 33


async def test_a_commit_that_failed_is_made_again(any_broker: tuple[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    async with Reader(address, group, [topic], tmp_path, session_s) as reader:
        await until(reader.numbers, "an assignment")
        thread, failed = reader.app.consumer._thread, []
        send = thread._consumer.commit

        async def fail_once(offsets: object) -> None:
            if not failed:
                failed.append(offsets)
                raise broker_error()
            await send(offsets)

        monkeypatch.setattr(thread._consumer, "commit", fail_once)
        fill(address, topic, 0, 10, 1)
        await until(lambda: committed(address, group, topic, 1) == [10], "the commit")
        assert failed


def broker_error() -> Exception:
    from aiokafka.errors import CommitFailedError

    return CommitFailedError("the group has already rebalanced")


async def test_a_member_that_the_group_has_not_heard_commits_nothing(
    any_broker: tuple[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    async with Reader(address, group, [topic], tmp_path, session_s) as reader:
        await until(reader.numbers, "an assignment")
        thread = reader.app.consumer._thread
        await until(reader.app.consumer.is_member, "a heartbeat")
        with monkeypatch.context() as frozen:
            frozen.setattr(thread, "is_member", lambda: False)
            fill(address, topic, 0, 10, 1)
            await until(lambda: len(reader.records) == 10, "all records")
            await reader.app.consumer.commit()
            assert committed(address, group, topic, 1) == [-1001]
        await until(lambda: committed(address, group, topic, 1) == [10], "the commit")


@pytest.mark.slow
async def test_a_member_whose_heartbeats_are_not_answered_is_none_after_the_session_time_out(
    any_broker: tuple[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, session_s = any_broker
    topic = new_topic(address, 1)
    async with Reader(address, group_name(), [topic], tmp_path, session_s) as reader:
        await until(reader.app.consumer.is_member, "the assignment")
        await asyncio.sleep(1.5 * session_s)
        assert reader.app.consumer.is_member()
        client = reader.app.consumer._thread._consumer._client
        send = client.send

        async def away(node: int, request: object, **how: object) -> object:
            return await (send(node, request, **how) if type(request) is not HeartbeatRequest else asyncio.sleep(3600))

        monkeypatch.setattr(client, "send", away)
        silent_s = time.monotonic()
        await until(lambda: not reader.app.consumer.is_member(), "the end of the session")
        assert reader.app.consumer.heard_s() <= silent_s, "an answer counts from when it was asked for"
        monkeypatch.undo()


@pytest.mark.slow
async def test_three_members_have_the_same_partition_numbers_of_both_topics(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topics, group = [new_topic(address, 6), new_topic(address, 6)], group_name()
    readers = [Reader(address, group, topics, tmp_path, session_s) for _ in range(3)]
    async with readers[0], readers[1], readers[2]:

        def is_spread() -> bool:
            numbers = [reader.numbers() for reader in readers]
            return sorted(number for each in numbers for number in each.get(topics[0], ())) == list(range(6))

        await until(is_spread, "every partition with one member")
        for reader in readers:
            numbers = reader.numbers()
            assert len(numbers[topics[0]]) == 2
            assert numbers[topics[0]] == numbers[topics[1]]


@pytest.mark.slow
async def test_members_that_come_and_go_under_load_skip_nothing(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address), group_name()
    first, second = (Reader(address, group, [topic], tmp_path, session_s) for _ in range(2))
    async with first:
        produced = 0
        async with second:
            while not (second.records and len(first.records) > 100):
                fill(address, topic, produced, produced + 20)
                produced += 20
                await asyncio.sleep(0.05)
            fill(address, topic, produced, produced + 100)
        produced += 100
        fill(address, topic, produced, produced + 50)
        produced += 50

        def is_all_read() -> bool:
            return all(
                {*first.offsets(TP(topic, partition)), *second.offsets(TP(topic, partition))} == set(range(produced))
                for partition in range(PARTITIONS)
            )

        await until(is_all_read, "all records")
        await until(lambda: committed(address, group, topic) == [produced] * PARTITIONS, "the commit of all")


@pytest.mark.slow
async def test_a_batch_in_hand_while_the_group_rebalances_is_read_again_by_its_next_owner(
    any_broker: tuple[str, float], tmp_path: Path
) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address), group_name()
    fill(address, topic, 0, 10)
    first, second = (Reader(address, group, [topic], tmp_path, session_s) for _ in range(2))
    first.gate.clear()
    async with first:
        await until(lambda: first.seen, "a batch in hand")
        async with second:
            await until(lambda: second.numbers() and len(first.numbers().get(topic, ())) == 2, "a partition for each")
            first.gate.set()

            def is_all_read() -> bool:
                return all({*first.offsets(TP(topic, p)), *second.offsets(TP(topic, p))} == set(range(10)) for p in range(PARTITIONS))

            await until(is_all_read, "all records")
            await until(lambda: committed(address, group, topic) == [10] * PARTITIONS, "the commit of all")
            assert all(second.offsets(TP(topic, number)) == list(range(10)) for number in second.numbers()[topic])


@pytest.mark.slow
async def test_an_owner_that_has_no_partition_any_more_is_told_so(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    owners = [Begin({}), Begin({})]
    first, second = (Reader(address, group, [topic], tmp_path, session_s, owner) for owner in owners)
    async with first:
        await until(lambda: "assigned 1" in owners[0].events, "the partition")
        async with second:
            await until(lambda: owners[0].events[-2:] != ["revoked", "assigned 1"] or len(owners[0].events) > 2, "a rebalance")
            await until(lambda: owners[1].events and owners[0].events[-1] != "revoked", "both assigned")
            assert sorted([owners[0].events[-1], owners[1].events[-1]]) == ["assigned 0", "assigned 1"]
        for owner in owners:
            told = [event.split()[0] for event in owner.events]
            assert told == ["revoked", "assigned"] * (len(told) // 2) + ["revoked"] * (len(told) % 2)


class Slow(Begin):
    """An owner that takes a while to open its partitions."""

    open_at: int | None = None

    async def on_assigned(self, committed: Mapping[TP, int | None]) -> Mapping[TP, int]:
        if committed:
            await asyncio.sleep(1.3)  # longer than one poll
            self.open_at = self.batches_seen()
        return await super().on_assigned(committed)

    batches_seen: Callable[[], int]


@pytest.mark.slow
async def test_nothing_is_delivered_before_the_owner_has_opened_its_first_partitions(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    fill(address, topic, 0, 50, 1)
    owner = Slow({TP(topic, 0): 20})
    first, second = (Reader(address, group, [topic], tmp_path, session_s, each) for each in (Begin({}), owner))  # nobody commits
    owner.batches_seen = lambda: len(second.seen)
    await first.app.start()
    async with second:
        await until(lambda: owner.events[-1:] == ["assigned 0"], "a member without partitions")
        await first.app.stop()
        await until(lambda: second.offsets(TP(topic, 0))[-1:] == [49], "the partition")
        assert owner.open_at == 0
        assert second.offsets(TP(topic, 0)) == list(range(20, 50))


async def test_what_was_taken_before_a_rebalance_is_not_delivered_after_it(
    any_broker: tuple[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    async with Reader(address, group, [topic], tmp_path, session_s) as reader:
        await until(reader.numbers, "an assignment")
        take, taken_before = reader.app.consumer._thread.take, []

        async def take_late(timeout_s: float) -> list[Taken]:
            taken = await take(timeout_s)
            if taken and not taken_before:
                taken_before.extend(taken)
                return [each._replace(generation=each.generation - 1) for each in taken]
            return list(taken)

        monkeypatch.setattr(reader.app.consumer._thread, "take", take_late)
        fill(address, topic, 0, 10, 1)
        await until(lambda: taken_before, "the batch")
        await reader.app.consumer.seek(TP(topic, 0), 0)  # as the rebalance does
        await until(lambda: reader.offsets(TP(topic, 0)) == list(range(10)), "the batch, once")
        await until(lambda: committed(address, group, topic, 1) == [10], "nothing holds the commit up")


async def test_a_graceful_stop_commits_what_is_done(any_broker: tuple[str, float], tmp_path: Path) -> None:
    address, session_s = any_broker
    topic, group = new_topic(address, 1), group_name()
    fill(address, topic, 0, 100, 1)
    reader = Reader(address, group, [topic], tmp_path, session_s)
    reader.app.conf.broker_commit_interval = 1000.0
    async with reader:
        await until(lambda: len(reader.records) == 100, "all records")
        await until(lambda: all(message.acked for message in reader.app.consumer._undone[TP(topic, 0)]), "the batch is done")
        assert committed(address, group, topic, 1) == [-1001]
    assert committed(address, group, topic, 1) == [100]
