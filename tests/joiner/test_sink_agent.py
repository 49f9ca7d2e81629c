"""How the sink's agent reads a topic: from the journal, without a hole, and what it commits."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from sink_samples import Page, local, message, read, run, settings

from headrace.step import Record
from joiner.sink.agent import Sink
from joiner.sink.settings import SinkSettings

TP0 = TP("samples", 0)


class World:
    """The broker's side."""

    def __init__(self) -> None:
        self.heard = 0
        self.sought: list[int] = []
        self.committed: dict[TP, int] = {}
        self.sent: list[Any] = []

    async def seek(self, tp: TP, offset: int) -> None:
        self.sought.append(offset)

    def commit_at(self, tp: TP, offset: int) -> None:
        self.committed[tp] = offset

    def highwater(self, tp: TP) -> int:
        return 10

    def assignment(self) -> set[TP]:
        return {TP0}

    def heard_s(self) -> float:
        self.heard += 1
        return self.heard

    def caught_up_at_s(self, tp: TP) -> float | None:
        return None

    async def send(self, partition: int, messages: Sequence[Any]) -> None:
        self.sent += messages


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What would have ended the process."""
    errors: list[BaseException] = []
    monkeypatch.setattr("joiner.sink.agent.stop_at_once", errors.append)
    return errors


def sink_of(world: World, folder: Path, **changed: object) -> Sink:
    chosen: SinkSettings = settings(**changed)
    return Sink(chosen, local(folder), world, lambda: world, lambda topics: dict.fromkeys(topics, "id"))  # type: ignore[arg-type,return-value]


def batch(*records: Record) -> Any:
    values = [SimpleNamespace(offset=record.offset, timestamp=record.arrival_ms, value=record.value) for record in records]
    return SimpleNamespace(message=SimpleNamespace(tp=TP0), value=values)


MESSAGES = [message(number, Page(number)) for number in range(6)]


async def until_written(sink: Sink) -> None:
    while sink._tasks:
        await asyncio.gather(*sink._tasks)


async def test_a_full_chunk_is_written_and_then_committed(tmp_path: Path, died: list[BaseException]) -> None:
    world = World()
    sink = sink_of(world, tmp_path, flush_rows=4)

    assert await sink.on_assigned({TP0: None}) == {}
    await sink.on_batch(batch(MESSAGES[0]))
    assert world.committed == {}
    await sink.on_batch(batch(MESSAGES[1]))
    await until_written(sink)
    await sink.on_batch(batch(MESSAGES[2]))

    assert world.committed == {TP0: 2} and read(tmp_path).total() == 4
    assert await sink.on_assigned({TP0: 2}) == {TP0: 3}  # what waits is not read again
    counts, gauges = sink._looks()[0]
    assert counts["out", "parquet"] == 4 and gauges["lag_records"] == 8 and gauges["unwritten_rows"] == 2
    assert not died


async def test_reading_goes_on_where_the_journal_says_whatever_is_committed(tmp_path: Path, died: list[BaseException]) -> None:
    run(local(tmp_path), MESSAGES[:4], settings())
    world = World()
    sink = sink_of(world, tmp_path, flush_rows=2)
    await sink.on_assigned({TP0: 1})

    await sink.on_batch(batch(*MESSAGES[1:3]))
    await sink.on_batch(batch(*MESSAGES[3:5]))
    await until_written(sink)

    assert world.sought == [] and world.committed == {TP0: 5}
    assert read(tmp_path).total() == 10
    assert not died


async def test_messages_that_are_missing_are_read_again_and_a_hole_of_the_topic_is_passed(
    tmp_path: Path, died: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    sink = sink_of(world, tmp_path, flush_rows=1)
    await sink.on_assigned({TP0: 4})

    await sink.on_batch(batch(*MESSAGES[4:]))
    assert world.sought == [0] and not world.committed
    await sink.on_batch(batch(*MESSAGES[2:4]))
    assert world.sought == [0, 0]
    await sink.on_batch(batch(*MESSAGES[2:4]))
    await until_written(sink)

    assert "the topic no longer has offsets 0 to 1" in caplog.text
    assert world.committed == {TP0: 4} and read(tmp_path).total() == 4
    assert not died


async def test_rows_wait_no_longer_than_flush_s_and_hours_are_merged_by_the_tick(tmp_path: Path, died: list[BaseException]) -> None:
    world = World()
    sink = sink_of(world, tmp_path, flush_s=1e-9)
    await sink.on_assigned({TP0: None})

    for number in range(3):
        await sink.on_batch(batch(MESSAGES[number]))
        await sink.on_tick()
        await until_written(sink)
    assert read(tmp_path).total() == 6 and world.committed == {TP0: 3}
    for _ in range(4):
        await sink.on_tick()
        await until_written(sink)

    assert len(list(tmp_path.glob("date=*/hour=*/*.parquet"))) == 1
    assert read(tmp_path).total() == 6
    assert not died


async def test_a_partition_that_is_revoked_is_left_and_one_that_was_taken_over_ends_the_process(
    tmp_path: Path, died: list[BaseException]
) -> None:
    world = World()
    sink = sink_of(world, tmp_path, flush_rows=2)
    await sink.on_assigned({TP0: None})
    await sink.on_batch(batch(MESSAGES[0]))
    await until_written(sink)

    run(local(tmp_path), MESSAGES[1:3], settings())
    left = sink.partitions[0]
    await sink.on_assigned({})
    await sink.on_batch(batch(MESSAGES[1]))
    left.chunk.next_offset += 1
    await sink._flush(left)
    assert not died and world.committed == {TP0: 1}

    await sink.on_assigned({TP0: 1})
    await sink.on_batch(batch(*MESSAGES[1:4]))
    await until_written(sink)
    run(local(tmp_path), MESSAGES[:5], settings())
    await sink.on_batch(batch(MESSAGES[4]))
    await until_written(sink)
    assert len(died) == 1 and "another worker writes partition 0" in str(died[0])
    assert read(tmp_path).total() == 10


async def test_an_error_ends_the_process(tmp_path: Path, died: list[BaseException]) -> None:
    sink = sink_of(World(), tmp_path)
    (tmp_path / "_headrace").mkdir()
    (tmp_path / "_headrace" / "0").touch()
    await sink.on_assigned({TP0: None})

    await sink.on_batch(batch(MESSAGES[0]))

    assert len(died) == 1 and "is, or lies below, a file" in str(died[0])


async def test_a_consumer_that_stalls_ends_the_process_but_not_a_target_that_is_slow(tmp_path: Path, died: list[BaseException]) -> None:
    sink = sink_of(World(), tmp_path)
    await sink.on_assigned({TP0: None})
    await sink.on_batch(batch(MESSAGES[0]))

    async with sink.partitions[0].target_in_use:
        for _ in range(10):
            await sink.on_watch()
    assert not died
    for _ in range(5):
        await sink.on_watch()
    assert "the consumer stalled" in str(died[0])
