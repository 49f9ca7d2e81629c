"""What serving reads of the user state, from the store that a worker writes on this machine."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_user_state import FEATURES
from user_events import HOUR_MS, NOW_MS, SETTINGS, click, records

from headrace.settings import ConfigError
from headrace.store import PartitionStore, StoreFollower
from schemas.feedback import Feedback
from schemas.topics import FEEDBACK
from serving.user_state.reader import UserStateReader, partition_of
from serving.user_state.step import PartitionUserState, user_row

PARTITIONS = 2


class Worker:
    """Writes one partition as the stage does: state and offsets in one write."""

    def __init__(self, folder: Path) -> None:
        self.store = PartitionStore(folder, is_followed=True)
        self.step = PartitionUserState(SETTINGS, self.store)

    def write(self, events: list[Feedback]) -> None:
        start = self.store.offsets.get(FEEDBACK, 0)
        outcome = self.step.apply(FEEDBACK, records(events, start), NOW_MS)
        self.store.write(outcome.changes, {FEEDBACK: start + len(events)}, outcome.counts)


def user_of(partition: int) -> str:
    return next(user for user in (f"u-{number}" for number in range(100)) if partition_of(user, PARTITIONS) == partition)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[UserStateReader]:
    reads: Counter[str] = Counter()
    made = UserStateReader(tmp_path, PARTITIONS, FEATURES, 10, lambda outcome: reads.update([outcome]))
    made.reads = reads  # type: ignore[attr-defined]
    made.start()
    yield made
    made.stop()


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_it_reads_what_the_worker_wrote_a_moment_ago(tmp_path: Path, reader: UserStateReader) -> None:
    first, second = user_of(0), user_of(1)
    assert reader.of(first, NOW_MS) == {}
    assert reader.trouble() != ""
    assert reader.reads == {"unavailable": 1}  # type: ignore[attr-defined]
    until(lambda: "no state in" in reader.trouble())
    workers = [Worker(tmp_path / str(partition)) for partition in range(PARTITIONS)]
    until(lambda: not reader.trouble())
    workers[0].write([click(1, HOUR_MS // 2, first, category="a"), click(2, 1_000, first)])
    until(lambda: reader.of(first, NOW_MS) != {})
    assert reader.of(first, NOW_MS)["recent_click"] == ["i-1", "i-2"]
    assert reader.of(first, NOW_MS)["click_gap_s"] == 1.0
    assert reader.of(second, NOW_MS) == {}
    workers[1].write([click(3, 0, second)])
    workers[0].write([click(4, 0, first)])
    until(lambda: reader.of(first, NOW_MS)["click_1h"] == 3.0 and reader.of(second, NOW_MS) != {})
    assert reader.reads["miss"] > 0 < reader.reads["hit"]  # type: ignore[attr-defined]


def test_a_store_that_the_worker_made_anew_is_read_as_it_is_now(tmp_path: Path, reader: UserStateReader) -> None:
    user = user_of(0)
    worker, _ = Worker(tmp_path / "0"), Worker(tmp_path / "1")
    worker.write([click(1, 2_000, user)])
    until(lambda: reader.of(user, NOW_MS) != {})
    worker.store.wipe()
    until(lambda: reader.of(user, NOW_MS) == {})
    worker.step = PartitionUserState(SETTINGS, worker.store)
    worker.write([click(2, 1_000, user)])
    until(lambda: reader.of(user, NOW_MS) != {})
    assert reader.of(user, NOW_MS)["recent_click"] == ["i-2"]
    worker.store.close()
    (tmp_path / "0").rename(tmp_path / "aside")
    until(lambda: reader.trouble() != "")
    assert reader.of(user, NOW_MS) == {}
    Worker(tmp_path / "0").write([click(3, 500, user)])
    until(lambda: reader.of(user, NOW_MS).get("recent_click") == ["i-3"])


def test_rows_that_cannot_be_read_cost_no_request(tmp_path: Path, reader: UserStateReader) -> None:
    user = user_of(0)
    worker, _ = Worker(tmp_path / "0"), Worker(tmp_path / "1")
    worker.store.write([(user_row(user), b"of another layout")], {}, Counter())
    until(lambda: not reader.trouble())
    until(lambda: reader.of(user, NOW_MS) == {} and reader.reads["unavailable"] > 0)  # type: ignore[attr-defined]
    assert reader.reads["hit"] == 0  # type: ignore[attr-defined]


def test_many_batches_and_compactions_later_it_still_reads_the_newest(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", is_followed=True)
    follower, made = StoreFollower(tmp_path / "0", tmp_path / "own"), 1
    for number in range(40):
        store.write([(b"u%d" % user, b"%d" % number + bytes(20_000)) for user in range(50)], {}, Counter())
        if number % 10 == 9:
            store._db.flush()
            store._db.compact_range(None, None)
        if not follower.catch_up():
            follower, made = StoreFollower(tmp_path / "0", tmp_path / "own"), made + 1
        assert follower.find(b"u7")[: len(str(number))] == b"%d" % number  # type: ignore[index]
    assert made <= 12
    assert follower.find(b"absent") is None


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no state in .*absent: No such file"):
        StoreFollower(tmp_path / "absent", tmp_path / "own")
