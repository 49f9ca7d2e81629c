"""The sink dies, or freezes and comes back, at every single step on its target: each row counts once, then and afterwards."""

from collections import Counter as Multiset
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sink_samples import (
    HOUR_MS,
    NOW_MS,
    START_MS,
    Crash,
    Page,
    Row,
    WatchedTarget,
    crash_at,
    local,
    message,
    read,
    read_plainly,
    run,
    settings,
    tidy,
    writer,
)

from headrace.settings import ConfigError
from headrace.step import Record
from joiner.sink.dataset import open_samples
from joiner.sink.journal import FROZEN_MS
from joiner.sink.ownership import TakenOver
from joiner.sink.writer import Chunk

LATER_MS = START_MS + HOUR_MS
PAGES = [Page(0), Page(1), Page(2), Page(3, LATER_MS), Page(4, LATER_MS, ("a",)), Page(5, LATER_MS), Page(6), Page(7)]
MESSAGES = [
    message(10, PAGES[0], PAGES[1]),
    message(11, PAGES[2], PAGES[3]),
    message(12, PAGES[1], PAGES[2]),  # sent again after a crash of the joiner, cut in another way
    message(13, PAGES[3], PAGES[4], PAGES[5]),
    message(14, PAGES[6]),
    message(15, PAGES[7], PAGES[0]),
]
ROWS = Multiset(row for page in PAGES for row in page.rows)
"""Each row once."""
ROWS_UP_TO: list[Multiset[Row]] = [Multiset(row for page in PAGES[:count] for row in page.rows) for count in (0, 4, 6, 8)]
"""What is there after each flush of two messages."""


def read_or_nothing(folder: Path) -> Multiset[Row]:
    try:
        return read(folder)
    except ConfigError as error:
        assert "holds no samples" in str(error)
        return Multiset()


def steps_of_a_run(folder: Path) -> int:
    target = local(folder)
    run(target, MESSAGES, settings())
    return target.steps


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    return steps_of_a_run(tmp_path_factory.mktemp("whole"))


def test_a_run_without_a_crash_writes_each_row_once_and_merges_the_files_of_an_hour(tmp_path: Path, steps: int) -> None:
    sink = run(local(tmp_path), MESSAGES, settings())

    assert read(tmp_path) == read_plainly(tmp_path) == ROWS
    assert len(list(tmp_path.glob("date=*/hour=*/*.parquet"))) == 2
    assert not sink.journal.absent and not sink.journal.hours
    assert steps > 80


def test_a_reader_at_any_step_finds_the_rows_of_the_flushes_so_far(tmp_path: Path, steps: int) -> None:
    found: list[Multiset[Row]] = []
    target = local(tmp_path)
    target.before = target.after = lambda _: found.append(read_or_nothing(tmp_path))

    run(target, MESSAGES, settings())

    assert len(found) == 2 * steps
    assert all(rows in ROWS_UP_TO for rows in found)
    assert [rows for place, rows in enumerate(found) if rows != found[place - 1]] == ROWS_UP_TO  # they only come


@contextmanager
def dying(target: WatchedTarget, when: str, step: int) -> Iterator[None]:
    match when:
        case "before":
            target.before = crash_at(step)
        case "after":
            target.after = crash_at(step)
        case "in the middle of":
            target.torn = step
    with pytest.raises(Crash):
        yield


@pytest.mark.parametrize("when", ["before", "after", "in the middle of"])
@pytest.mark.slow
def test_a_crash_at_any_step_leaves_each_row_once_and_so_does_the_next_life(tmp_path: Path, steps: int, when: str) -> None:
    died = 0
    for step in range(steps):
        folder, target = tmp_path / str(step), local(tmp_path / str(step))
        try:
            with dying(target, when, step):
                run(target, MESSAGES, settings())
        except pytest.fail.Exception:
            assert when == "in the middle of"  # this step does not write
            continue
        died += 1
        assert read_or_nothing(folder) in ROWS_UP_TO, step

        run(local(folder), MESSAGES, settings())
        assert read(folder) == ROWS, step
        assert not list(folder.rglob("*.tmp")), step

        run(local(folder), MESSAGES, settings(), now_ms=NOW_MS + FROZEN_MS)
        assert read_plainly(folder) == ROWS, step
    assert died == steps or (when == "in the middle of" and died > 20)


def test_crashes_one_after_the_other_leave_each_row_once(tmp_path: Path) -> None:
    lives = 0
    for lives in range(1_000):
        target = local(tmp_path)
        target.after = crash_at(14 + lives % 23)
        try:
            run(target, MESSAGES, settings())
        except Crash:
            assert read_or_nothing(tmp_path) in ROWS_UP_TO
            continue
        break

    assert lives > 5
    assert read(tmp_path) == ROWS


@pytest.mark.slow
def test_a_worker_that_freezes_at_any_step_and_wakes_up_under_another_owner_changes_nothing(tmp_path: Path, steps: int) -> None:
    outcomes: Multiset[str] = Multiset()
    for step in range(steps):
        folder, frozen = tmp_path / str(step), local(tmp_path / str(step))

        def take_over(number: int, at: int = step, where: Path = folder) -> None:
            if number == at:
                run(local(where), MESSAGES, settings(), a_chunk=1)
                assert read(where) == ROWS

        frozen.before = take_over
        try:
            run(frozen, MESSAGES, settings())
            outcomes["it had finished"] += 1
        except (TakenOver, FileNotFoundError) as error:
            outcomes[type(error).__name__] += 1
        assert read(folder) == ROWS, step

        run(local(folder), MESSAGES, settings(), now_ms=NOW_MS + FROZEN_MS)
        assert read_plainly(folder) == read(folder) == ROWS, step
    assert outcomes["TakenOver"] > steps // 2
    assert outcomes["it had finished"] < steps // 4


def test_files_that_were_merged_stay_for_readers_that_have_opened_them(tmp_path: Path) -> None:
    chosen = settings(keep_replaced_s=100.0, compact_after_s=10.0)
    sink = run(local(tmp_path), MESSAGES, chosen)
    opened = open_samples(str(tmp_path))
    assert len(opened.files) == 4

    tidy(sink, NOW_MS + 10_000)
    tidy(sink, NOW_MS + 109_999)
    assert len(open_samples(str(tmp_path)).files) == 2
    assert opened.count_rows() == ROWS.total() == read(tmp_path).total()

    tidy(sink, NOW_MS + 110_000)
    assert read(tmp_path) == read_plainly(tmp_path) == ROWS
    with pytest.raises(FileNotFoundError):
        opened.to_table()


def test_two_partitions_are_written_beside_each_other(tmp_path: Path) -> None:
    run(local(tmp_path), MESSAGES, settings())
    other = [Page(100), Page(101)]
    run(local(tmp_path), [message(0, *other, partition=1)], settings(), partition=1)

    assert read(tmp_path) == ROWS + Multiset(row for page in other for row in page.rows)


def one_chunk(*records: Record) -> Chunk:
    return Chunk(records[0].offset, records[0].offset)


def test_an_outage_of_the_target_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, failures = local(tmp_path), iter(range(4))
    sink = writer(target, settings())
    monkeypatch.setattr("joiner.sink.retry.waits_s", lambda: iter([0.0] * 10))
    sink.open("", NOW_MS)

    def away(_: int) -> None:
        if next(failures, None) is not None:
            raise OSError("connection reset by peer")

    target.before = away
    chunk = one_chunk(*MESSAGES)
    sink.take(chunk, MESSAGES, NOW_MS)
    sink.flush(chunk, NOW_MS)

    assert read(tmp_path) == ROWS
    assert sink._metrics.retries._value.get() == 4


def test_a_partition_that_was_given_away_during_an_outage_is_left(tmp_path: Path) -> None:
    from joiner.sink.retry import Abandoned

    target = local(tmp_path)
    sink = writer(target, settings())
    sink.open("", NOW_MS)

    def away(_: int) -> None:
        sink.abandoned.set()
        raise OSError("connection reset by peer")

    target.before = away
    chunk = one_chunk(*MESSAGES)
    sink.take(chunk, MESSAGES, NOW_MS)
    with pytest.raises(Abandoned):
        sink.flush(chunk, NOW_MS)
