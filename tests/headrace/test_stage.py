"""The order in which a stage applies, sends, stores and commits, and what a crash in between leaves."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from headrace.settings import ConfigError
from headrace.stage import Stage
from headrace.step import Count, Outcome, Output, Record
from schemas.dead_letter import DeadLetter
from schemas.topics import DEAD_LETTERS

TOPIC = "exposures"
TP0 = TP(TOPIC, 0)


class Crash(BaseException):
    """kill -9, as far as one process can play it: no handler catches it."""


class Doubler:
    """Sends every value twice as large, remembers all of them, still needs the newest two, refuses `bad`."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        self.values = [value for _, value in stored]
        self.unread: list[str] = []

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        outcome = Outcome(needed_from={topic: max(0, records[-1].offset - 1)})
        for record in records:
            if record.value == b"bad":
                outcome.dead_letters.append(
                    DeadLetter(
                        stage="test", reason="malformed", detail="bad", source_topic=topic, source_partition=0,
                        source_offset=record.offset, size_bytes=3, ts_ms=now_ms,
                    )
                )  # fmt: skip
                continue
            self.values.append(record.value)
            outcome.outputs.append(Output("out", record.value * 2))
            outcome.changes.append((b"r%04d" % record.offset, record.value))
        outcome.counts[Count("in", topic)] = len(records)
        return outcome

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        self.unread = list(unread)
        return Outcome(outputs=[Output("out", b"tick %d" % now_ms)]) if now_ms == 7_000 else Outcome()

    def gauges(self) -> Mapping[str, float]:
        return {"values": float(len(self.values))}


class Sated(Doubler):
    """Takes nothing of a topic that it says is too much."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__(stored)
        self.too_much: tuple[str, ...] = ()

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        if records[-1].value == b"full":
            self.too_much = (TOPIC,)
        return super().apply(topic, records, now_ms)

    def paused(self) -> Collection[str]:
        return self.too_much


class World:
    """The broker's side: what was sent, committed, sought, held; and where to crash."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.committed: dict[TP, int] = {}
        self.sought: list[tuple[TP, int]] = []
        self.crash_at = ""
        self.topic_ids: dict[str, str] = {}
        self.caught_up_s: float | None = None
        self.assigned = {TP0}
        self.held: set[TP] = set()
        self.generation = 1
        self.member = True
        self.heard = 0
        self.acknowledge: asyncio.Event | None = None

    def is_member(self) -> bool:
        return self.member

    def heard_s(self) -> float:
        self.heard += self.member
        return self.heard

    def hold(self, tp: TP) -> None:
        self.held.add(tp)

    def release(self, tp: TP) -> None:
        self.held.remove(tp)

    def caught_up_at_s(self, tp: TP) -> float | None:
        return self.caught_up_s

    def assignment(self) -> set[TP]:
        return self.assigned

    async def send(self, partition: int, messages: Sequence[tuple[str, bytes | None, bytes]]) -> None:
        if self.crash_at == "send":
            raise Crash
        self.sent += [(topic, value) for topic, _, value in messages]
        if self.acknowledge is not None:
            await self.acknowledge.wait()
        if self.crash_at == "store":
            raise Crash

    def commit_at(self, tp: TP, offset: int) -> None:
        if self.crash_at == "commit":
            raise Crash
        self.committed[tp] = offset

    async def seek(self, tp: TP, offset: int) -> None:
        self.sought.append((tp, offset))

    def highwater(self, tp: TP) -> int:
        return 10


def start(world: World, folder: Path, now_s: float = 5.0, make_step: type[Doubler] = Doubler) -> Stage:
    return Stage(
        "test", folder, lambda partition, stored: make_step(stored), world, lambda: world, lambda _: world.topic_ids, lambda: now_s
    )  # type: ignore[arg-type]


async def deliver(stage: Stage, event: Any) -> None:
    """A batch, until its outcome is stored."""
    await stage.on_batch(event)
    await settle(stage)


async def tick(stage: Stage) -> None:
    await stage.on_tick()
    await settle(stage)


async def settle(stage: Stage) -> None:
    for partition in list(stage.partitions.values()):
        await partition.settled()


def batch(*values: bytes, first: int = 0, generation: int = 1, tp: TP = TP0) -> Any:
    records = [Record(first + place, 4_000, value) for place, value in enumerate(values)]
    return SimpleNamespace(message=SimpleNamespace(tp=tp, generation_id=generation), value=records)


async def test_a_batch_is_sent_stored_and_committed_up_to_what_is_still_needed(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)

    assert await stage.on_assigned({TP0: None}) == {}
    await deliver(stage, batch(b"a", b"b", b"c"))

    assert world.sent == [("out", b"aa"), ("out", b"bb"), ("out", b"cc")]
    assert world.committed == {TP0: 1}
    counts, gauges = stage.looks()[0]
    assert counts[Count("in", TOPIC)] == 3
    assert gauges == {"values": 3.0, "lag_seconds": 1.0, "lag_records": 7}
    stage.close()


@pytest.mark.parametrize("crash_at", ["send", "store", "commit"])
async def test_a_crash_at_any_step_ends_in_the_state_of_a_run_without_one(tmp_path: Path, crash_at: str) -> None:
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a"))
    world.crash_at = crash_at
    with pytest.raises(Crash):
        await deliver(stage, batch(b"b", b"c", first=1))
    stage.close()  # the operating system takes a dead process's locks
    world.crash_at = ""

    stage = start(world, tmp_path)
    position = (await stage.on_assigned({TP0: world.committed.get(TP0)})).get(TP0, 0)
    log = [b"a", b"b", b"c"]
    await deliver(stage, batch(*log[min(position, 2) :], first=min(position, 2)))

    step = stage.partitions[0].step
    assert isinstance(step, Doubler)
    assert step.values == log
    assert stage.partitions[0].store.counts[Count("in", TOPIC)] == 3
    assert set(world.sent) == {("out", b"aa"), ("out", b"bb"), ("out", b"cc")}
    stage.close()


async def test_records_that_the_state_covers_are_not_applied_again(tmp_path: Path) -> None:
    stage = start(World(), tmp_path)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a", b"b"))

    await deliver(stage, batch(b"a", b"b", b"c"))

    assert stage.looks()[0][1]["values"] == 3.0
    stage.close()


async def test_without_its_disk_a_worker_begins_at_the_committed_offset(tmp_path: Path) -> None:
    stage = start(World(), tmp_path)

    assert await stage.on_assigned({TP0: 40}) == {}
    stage.close()


async def test_state_that_another_worker_has_overtaken_is_rebuilt(tmp_path: Path) -> None:
    stage = start(World(), tmp_path)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a", b"b"))
    stage.close()

    stage = start(World(), tmp_path)

    assert await stage.on_assigned({TP0: 40}) == {}
    assert stage.looks()[0][1]["values"] == 0.0
    stage.close()


async def test_a_partition_that_comes_back_keeps_its_open_state_and_one_that_does_not_is_closed(tmp_path: Path) -> None:
    stage = start(World(), tmp_path)
    other = TP(TOPIC, 1)
    await stage.on_assigned({TP0: None, other: None})
    await deliver(stage, batch(b"a"))
    step = stage.partitions[0].step

    assert await stage.on_assigned({TP0: 0}) == {TP0: 1}

    assert stage.partitions[0].step is step
    assert 1 not in stage.partitions
    stage.close()


async def test_a_hole_in_front_of_a_batch_is_read_again_once(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a"))

    await deliver(stage, batch(b"d", first=3))
    await deliver(stage, batch(b"e", first=4))
    assert world.sought == [(TP0, 1), (TP0, 1)]
    assert stage.looks()[0][1]["values"] == 1.0

    await deliver(stage, batch(b"d", b"e", first=3))
    assert stage.looks()[0][1]["values"] == 3.0
    assert len(world.sought) == 2
    stage.close()


async def test_a_hole_that_grows_while_it_is_read_again_is_passed_over_in_the_end(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a"))

    await deliver(stage, batch(b"d", b"e", first=3))
    await deliver(stage, batch(b"e", first=4))  # retention took one more
    await deliver(stage, batch(b"e", b"f", first=4))

    assert stage.looks()[0][1]["values"] == 3.0
    assert stage.partitions[0].store.offsets == {TOPIC: 6}
    stage.close()


async def test_state_of_a_topic_that_was_created_anew_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.topic_ids = {TOPIC: "first"}
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a"))
    assert await stage.on_assigned({TP0: None}) == {TP0: 1}
    stage.close()

    monkeypatch.setattr("headrace.stage.stop_at_once", raise_it)
    world.topic_ids = {TOPIC: "second"}
    stage = start(world, tmp_path)
    with pytest.raises(ConfigError, match=r"test/0 belongs to an earlier topic exposures .*: remove .*/test to begin"):
        await stage.on_assigned({TP0: None})
    stage.close()


def raise_it(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(("caught_up_at_s", "unread"), [(None, [TOPIC]), (2.0, [TOPIC]), (5.5, []), (7.0, [])])
async def test_a_topic_is_silent_only_where_the_broker_said_lately_that_it_is_read_to_its_end(
    tmp_path: Path, caught_up_at_s: float | None, unread: list[str]
) -> None:
    world = World()
    stage = start(world, tmp_path, now_s=7.0)
    await stage.on_assigned({TP0: None})
    world.caught_up_s = caught_up_at_s

    await tick(stage)

    step = stage.partitions[0].step
    assert isinstance(step, Doubler)
    assert step.unread == unread
    stage.close()


async def test_a_partition_without_life_ends_the_process_and_one_with_some_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.stage.stop_at_once", raise_it)
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    for second in range(6):  # nothing comes, and the broker says so
        world.caught_up_s = float(second)
        await stage.on_watch()
    for place in range(6):  # records wait, and some are applied
        world.caught_up_s = None
        await deliver(stage, batch(b"a", first=place))
        await stage.on_watch()

    for _ in range(3):
        await stage.on_watch()
    with pytest.raises(ConfigError, match="test exposures 0: the consumer stalled, or no broker answers it"):
        await stage.on_watch()

    world.assigned = set()  # another worker has it: nothing to expect
    for _ in range(6):
        await stage.on_watch()
    stage.close()


async def test_refused_records_are_dead_letters_and_the_stream_goes_on(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})

    await deliver(stage, batch(b"a", b"bad", b"c"))

    assert [topic for topic, _ in world.sent] == ["out", "out", DEAD_LETTERS]
    assert b'"source_offset":1' in world.sent[-1][1]
    stage.close()


async def test_time_passes_on_every_partition(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path, now_s=7.0)
    await stage.on_assigned({TP0: None})

    await tick(stage)

    assert world.sent == [("out", b"tick 7000")]
    stage.close()


async def test_a_topic_that_a_step_does_not_want_is_held_and_what_is_on_its_way_waits(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path, make_step=Sated)
    await stage.on_assigned({TP0: None})
    step = stage.partitions[0].step
    assert isinstance(step, Sated)

    await deliver(stage, batch(b"a", b"full"))
    await deliver(stage, batch(b"b", first=2))
    await deliver(stage, batch(b"c", b"full", first=3))
    await deliver(stage, batch(b"d", first=5))
    await tick(stage)
    assert world.held == {TP0}
    assert step.values == [b"a", b"full"]
    assert step.unread == [TOPIC]
    assert stage.partitions[0].store.offsets == {TOPIC: 2}

    step.too_much = ()
    await tick(stage)  # it wants two of the three, then is full again
    assert world.held == {TP0}
    assert step.values == [b"a", b"full", b"b", b"c", b"full"]

    step.too_much = ()
    await tick(stage)
    assert world.held == set()
    await deliver(stage, batch(b"e", first=6))
    assert step.values == [b"a", b"full", b"b", b"c", b"full", b"d", b"e"]
    assert world.sought == []
    stage.close()


async def test_what_waits_of_a_paused_topic_is_read_again_after_a_new_assignment(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path, make_step=Sated)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"full"))
    await deliver(stage, batch(b"b", first=1))

    world.held.clear()  # as an assignment does
    assert await stage.on_assigned({TP0: None}) == {TP0: 1}

    step = stage.partitions[0].step
    assert isinstance(step, Sated)
    assert world.held == {TP0}
    step.too_much = ()
    await tick(stage)
    assert step.values == [b"full"]
    await deliver(stage, batch(b"b", first=1))
    assert step.values == [b"full", b"b"]
    stage.close()


async def test_a_paused_partition_is_not_taken_for_a_stalled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.stage.stop_at_once", raise_it)
    world = World()
    stage = start(world, tmp_path, make_step=Sated)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"full"))
    for _ in range(6):
        await stage.on_watch()

    step = stage.partitions[0].step
    assert isinstance(step, Sated)
    step.too_much = ()
    await tick(stage)
    with pytest.raises(ConfigError, match="stalled"):
        for _ in range(6):
            await stage.on_watch()
    stage.close()


async def test_a_worker_that_the_group_has_not_heard_applies_and_sends_nothing_until_it_has(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path, now_s=7.0)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a"))

    world.member = False  # frozen, or cut off: another worker may have the partition
    await deliver(stage, batch(b"b", first=1))
    await deliver(stage, batch(b"c", first=2))
    await tick(stage)
    assert world.sent == [("out", b"aa")]
    assert world.held == {TP0}
    assert stage.partitions[0].store.offsets == {TOPIC: 1}

    world.member = True
    await tick(stage)
    assert world.sent == [("out", b"aa"), ("out", b"bb"), ("out", b"cc"), ("out", b"tick 7000")]
    assert world.held == set()
    stage.close()


async def test_a_worker_that_is_cut_off_for_long_is_stalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.stage.stop_at_once", raise_it)
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    world.member = False
    await tick(stage)
    with pytest.raises(ConfigError, match="stalled"):
        for _ in range(6):
            await stage.on_watch()
    stage.close()


async def test_a_worker_without_partitions_that_the_group_has_lost_is_stalled_and_one_that_waits_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.stage.stop_at_once", raise_it)
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({})
    for _ in range(6):
        await stage.on_watch()

    world.member = False
    with pytest.raises(ConfigError, match="test group: the consumer stalled, or no broker answers it"):
        for _ in range(6):
            await stage.on_watch()
    stage.close()


async def test_nothing_is_applied_while_the_group_rebalances(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path, now_s=7.0)
    await stage.on_assigned({TP0: None})
    await deliver(stage, batch(b"a"))

    await stage.on_revoked()
    await deliver(stage, batch(b"b", first=1))
    await tick(stage)
    assert world.sent == [("out", b"aa")]

    world.generation = 2
    assert await stage.on_assigned({TP0: None}) == {TP0: 1}
    await deliver(stage, batch(b"b", first=1))  # of the generation before: it waited for its turn
    assert world.sent == [("out", b"aa")]
    await deliver(stage, batch(b"b", first=1, generation=2))
    assert world.sent == [("out", b"aa"), ("out", b"bb")]
    stage.close()


async def test_a_revoke_waits_for_the_batch_in_hand(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    world.acknowledge = asyncio.Event()
    in_hand = asyncio.create_task(deliver(stage, batch(b"a")))
    await asyncio.sleep(0)
    revoked = asyncio.create_task(stage.on_revoked())
    queued = asyncio.create_task(deliver(stage, batch(b"b", first=1)))
    await asyncio.sleep(0)
    assert not revoked.done()

    world.acknowledge.set()
    await asyncio.gather(in_hand, revoked, queued)

    assert world.sent == [("out", b"aa")]
    assert stage.partitions[0].store.offsets == {TOPIC: 1}
    assert world.committed == {TP0: 0}
    stage.close()


async def test_an_assignment_that_is_revoked_before_it_is_open_owns_nothing(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    assigned = asyncio.create_task(stage.on_assigned({TP0: None}))
    await asyncio.sleep(0)
    await stage.on_revoked()
    await assigned

    await deliver(stage, batch(b"a"))
    assert world.sent == []
    stage.close()


async def test_a_record_lost_before_the_first_batch_of_a_committed_offset_is_read_again(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: 2})

    await deliver(stage, batch(b"e", first=4))
    assert (world.sought, world.sent) == ([(TP0, 2)], [])
    stage.close()


async def test_the_last_partition_that_goes_is_closed(tmp_path: Path) -> None:
    stage = start(World(), tmp_path)
    await stage.on_assigned({TP0: None})
    await stage.on_revoked()
    assert await stage.on_assigned({}) == {}

    assert stage.partitions == {}
    other = start(World(), tmp_path)
    await other.on_assigned({TP0: None})  # the folder is free for another worker
    other.close()


async def test_while_a_batch_is_acknowledged_other_partitions_go_on_and_its_own_waits(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    other = TP(TOPIC, 1)
    await stage.on_assigned({TP0: None, other: None})
    world.acknowledge = asyncio.Event()

    await stage.on_batch(batch(b"a"))
    await stage.on_batch(batch(b"b", tp=other))
    waits = asyncio.create_task(stage.on_batch(batch(b"c", first=1)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.sent == [("out", b"aa"), ("out", b"bb")]
    assert stage.partitions[0].store.offsets == {}
    assert not waits.done()

    world.acknowledge.set()
    await waits
    await settle(stage)
    assert world.sent[2:] == [("out", b"cc")]
    assert stage.partitions[0].store.offsets == {TOPIC: 2}
    assert stage.partitions[1].store.offsets == {TOPIC: 1}
    stage.close()


async def test_a_stop_waits_for_what_is_in_hand(tmp_path: Path) -> None:
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    world.acknowledge = asyncio.Event()
    await stage.on_batch(batch(b"a"))
    stopped = asyncio.create_task(stage.stop())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stopped.done()

    world.acknowledge.set()
    await stopped
    again = start(World(), tmp_path)
    assert await again.on_assigned({TP0: None}) == {TP0: 1}
    again.close()


async def test_an_outcome_that_cannot_be_sent_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[BaseException] = []
    monkeypatch.setattr("headrace.stage.stop_at_once", errors.append)
    world = World()
    stage = start(world, tmp_path)
    await stage.on_assigned({TP0: None})
    world.acknowledge = asyncio.Event()
    monkeypatch.setattr(world, "acknowledge", SimpleNamespace(wait=refuse))

    await deliver(stage, batch(b"a"))

    assert [str(error) for error in errors] == ["no broker"]
    assert stage.partitions[0].store.offsets == {}
    stage.close()


async def refuse() -> None:
    raise OSError("no broker")
