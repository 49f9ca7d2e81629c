"""A partition's state in a server of the Redis protocol: the same as on a disk, all or nothing, and of one owner."""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from redis_server import RedisServer

from headrace import redis_store
from headrace.redis_store import RedisStore
from headrace.settings import ConfigError
from headrace.step import Count
from headrace.store import PartitionStore

IN = Count("in", "feedback")
Open = Callable[[Path], RedisStore]


@pytest.fixture
def opened(redis_server: RedisServer) -> Open:
    return partial(RedisStore, redis_server.address, "headrace-user-state")


def test_rows_offsets_and_counts_come_back_after_opening_it_again(opened: Open) -> None:
    store = opened(Path("0"))
    store.write([(b"b2", b"two"), (b"b1", b"one")], {"feedback": 5}, Counter({IN: 5}))
    store.topic_ids["feedback"] = "first"
    store.write([(b"b2", None), (b"c", b"\x00\xff")], {"exposures": 2}, Counter({IN: 1}))
    store.close()

    again = opened(Path("0"))
    assert list(again) == [(b"b1", b"one"), (b"c", b"\x00\xff")]
    assert (again.offsets, again.counts) == ({"feedback": 5, "exposures": 2}, Counter({IN: 6}))
    assert again.topic_ids == {"feedback": "first"}
    other = opened(Path("1"))
    assert (list(other), other.offsets) == ([], {})


def test_any_writes_leave_the_rows_that_they_leave_on_a_disk(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "ROWS_AT_ONCE", 7)
    rng = random.Random(1)
    stores = opened(Path("0")), PartitionStore(tmp_path / "0")
    for number in range(60):
        keys = [rng.choice([b"u", b"h", b"\xff"]) + rng.randbytes(1) for _ in range(8)]
        changes = [(key, None if rng.random() < 0.3 else rng.randbytes(rng.randrange(4))) for key in keys]
        for store in stores:
            store.write(changes, {"feedback": number}, Counter({IN: 1}))
        ours, theirs = stores
        assert list(ours.rows()) == list(theirs.rows())
        assert list(ours.rows(b"h")) == list(theirs.rows(b"h"))
        assert ours.find([*keys, b"absent"]) == theirs.find([*keys, b"absent"])
    assert len(list(stores[0].rows())) > 50
    with pytest.raises(KeyError):
        stores[0].get([b"absent"])


def test_a_worker_that_lost_the_partition_changes_nothing_any_more(opened: Open) -> None:
    lost = opened(Path("0"))
    lost.write([(b"a", b"1")], {"feedback": 1}, Counter())
    owner = opened(Path("0"))
    for change in (lambda: lost.write([(b"a", b"2")], {"feedback": 2}, Counter()), lost.wipe):
        with pytest.raises(ConfigError, match=r"state in redis:/.*/headrace-user-state/0 was opened by another worker"):
            change()
    assert (list(owner), opened(Path("0")).offsets) == ([(b"a", b"1")], {"feedback": 1})


def test_a_worker_that_loses_the_partition_in_the_middle_of_a_write_changes_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = opened(Path("0"))
    require_owner = lost._require_owner

    def required_a_moment_before(both: object) -> None:
        require_owner(both)
        opened(Path("0"))

    monkeypatch.setattr(lost, "_require_owner", required_a_moment_before)
    with pytest.raises(ConfigError, match="was opened by another worker"):
        lost.write([(b"a", b"2")], {"feedback": 2}, Counter())
    again = opened(Path("0"))
    assert (list(again), again.offsets) == ([], {})


def test_rows_of_another_layout_are_forgotten_with_their_offsets(opened: Open) -> None:
    store = opened(Path("0"))
    store.require_layout(1)
    store.write([(b"a", b"1")], {"feedback": 1}, Counter({IN: 1}))
    store = opened(Path("0"))
    store.require_layout(1)
    assert list(store) == [(b"a", b"1")]
    store.require_layout(2)
    assert (list(store), store.offsets, store.counts) == ([], {}, Counter())
    store.write([(b"b", b"2")], {"feedback": 1}, Counter())
    store = opened(Path("0"))
    store.require_layout(2)
    assert list(store) == [(b"b", b"2")]


def test_a_server_that_is_killed_has_the_whole_write_or_nothing_of_it_and_one_that_is_away_is_one_line(
    opened: Open, redis_server: RedisServer
) -> None:
    store = opened(Path("0"))
    for number in range(20):
        store.write([(b"u%d" % user, b"%d" % number) for user in range(100)], {"feedback": number}, Counter())
    redis_server.kill()
    with pytest.raises(ConfigError, match=r"cannot use state in redis:/.*: .*; start the server there, or set another user_state\.redis"):
        store.write([(b"u1", b"x")], {"feedback": 99}, Counter())
    with pytest.raises(ConfigError, match="cannot use state in"):
        opened(Path("0"))
    redis_server.start()
    again = opened(Path("0"))
    assert again.offsets == {"feedback": 19}
    assert {value for _, value in again} == {b"19"}
