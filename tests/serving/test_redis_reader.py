"""What serving reads of the user state from a server of the Redis protocol, and what it does while that is away."""

import time
from collections import Counter
from pathlib import Path

import pytest
from redis_server import RedisServer
from test_user_state import FEATURES
from user_events import NOW_MS, SETTINGS, click, records

from headrace.redis_store import RedisStore
from schemas.topics import FEEDBACK
from serving.user_state import redis_reader
from serving.user_state.reader import partition_of
from serving.user_state.redis_reader import RedisUserStateReader
from serving.user_state.step import PartitionUserState, redis_name, user_row

PARTITIONS = 3
NAME = redis_name("headrace")
USER = "u-1"
PARTITION = Path(str(partition_of(USER, PARTITIONS)))


@pytest.fixture
def reads() -> Counter[str]:
    return Counter()


@pytest.fixture
def reader(redis_server: RedisServer, reads: Counter[str], monkeypatch: pytest.MonkeyPatch) -> RedisUserStateReader:
    monkeypatch.setattr(redis_reader, "PAUSE_S", 0.0)
    made = RedisUserStateReader(redis_server.address, NAME, PARTITIONS, FEATURES, 2_000, lambda outcome: reads.update([outcome]))
    made.start()
    return made


def test_a_user_has_the_features_that_the_worker_stored(
    redis_server: RedisServer, reader: RedisUserStateReader, reads: Counter[str]
) -> None:
    assert reader.of(USER, NOW_MS) == {}
    store = RedisStore(redis_server.address, NAME, PARTITION)
    step = PartitionUserState(SETTINGS, store)
    outcome = step.apply(FEEDBACK, records([click(1, 3_000, USER), click(2, 1_000, USER)]), NOW_MS)
    store.write(outcome.changes, {FEEDBACK: 2}, outcome.counts)
    features = reader.of(USER, NOW_MS)
    assert (features["recent_click"], features["click_1h"], features["click_gap_s"]) == (["i-1", "i-2"], 2.0, 1.0)
    assert (reads, reader.trouble()) == ({"miss": 1, "hit": 1}, "")


def test_rows_that_cannot_be_read_cost_no_request(redis_server: RedisServer, reader: RedisUserStateReader, reads: Counter[str]) -> None:
    store = RedisStore(redis_server.address, NAME, PARTITION)
    store.write([(user_row(USER), b"of another layout")], {}, Counter())
    assert reader.of(USER, NOW_MS) == {}
    assert reads == {"unavailable": 1}


def test_while_the_server_is_away_users_are_served_without_and_afterwards_with_it(
    redis_server: RedisServer, reader: RedisUserStateReader, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.kill()
    started_s = time.monotonic()
    assert reader.of(USER, NOW_MS) == {}
    assert time.monotonic() - started_s < 1.0, "a request does not wait for a server that is away"
    assert reader.trouble().startswith(f"the user state in redis://{redis_server.address} cannot be read: ")
    monkeypatch.setattr(redis_reader, "PAUSE_S", 3600.0)
    reader.of(USER, NOW_MS)  # the last one that asks for an hour
    redis_server.start()
    assert reader.of(USER, NOW_MS) == {}
    assert (reads, reader.trouble() != "") == ({"unavailable": 3}, True)
    reader._asks_from_s = 0.0
    assert reader.trouble() == ""
    reader.of(USER, NOW_MS)
    assert reads["miss"] == 1
    reader.stop()


def test_a_request_waits_no_longer_than_it_may_for_a_server_that_does_not_answer(redis_server: RedisServer, reads: Counter[str]) -> None:
    reader = RedisUserStateReader(redis_server.address, NAME, PARTITIONS, FEATURES, 50, lambda outcome: reads.update([outcome]))
    reader.start()
    redis_server.stop_answering()
    started_s = time.monotonic()
    for _ in range(100):
        assert reader.of(USER, NOW_MS) == {}
    assert 0.05 <= time.monotonic() - started_s < 0.5, "one of them waits, and none after it"
    assert "Timeout" in reader.trouble()
    assert reads == {"unavailable": 100}
