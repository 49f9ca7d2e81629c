"""Feedback waits in the store, and is found there by its request and by its time."""

import random

import pytest
from join_events import feedback

from headrace.memory_rows import MemoryRows
from headrace.step import Outcome, Record
from joiner.request_index import hashes_of
from joiner.waiting import Waiting, WaitingFeedback
from schemas.codec import decode_feedback


def reaction(offset: int, request_id: str, ts_ms: int) -> Waiting:
    value = feedback(request_id, ts_ms, event_id=f"e{offset}")
    return Record(offset, -offset, value), decode_feedback(value)


def offsets_of(waiting: list[Waiting]) -> list[int]:
    return [record.offset for record, _ in waiting]


def test_what_waits_is_taken_by_its_request_or_expires_by_its_time_in_an_earlier_life_or_now() -> None:
    rng, stored = random.Random(6), MemoryRows()
    waiting, expected = WaitingFeedback(stored), dict[int, Waiting]()
    for step in range(400):
        waiting.begin_call()
        outcome = Outcome()
        new = [reaction(10 * step + place, f"r{rng.randrange(30)}", 10 * step + rng.randrange(200)) for place in range(rng.randrange(4))]
        waiting.add(new, outcome)
        expected |= {entry[0].offset: entry for entry in new}
        if rng.random() < 0.3:
            requests = [f"r{rng.randrange(30)}", "never shown"]
            taken = waiting.take(requests, hashes_of(requests), outcome)
            assert taken == [entry for _, entry in sorted(expected.items()) if entry[1].request_id in requests]
            expected = {offset: entry for offset, entry in expected.items() if entry not in taken}
        if rng.random() < 0.3:
            before_ms = 10 * step - rng.randrange(100)
            expired = waiting.expire(before_ms, outcome)
            old = [entry for entry in expected.values() if entry[1].ts_ms < before_ms]
            assert expired == sorted(old, key=lambda entry: (entry[1].ts_ms, entry[0].offset))
            expected = {offset: entry for offset, entry in expected.items() if entry not in expired}
        stored.change(outcome.changes)
        if step % 50 == 49:
            waiting = WaitingFeedback(stored)
            waiting.recover()
        assert (len(waiting), waiting.offsets) == (len(expected), expected.keys())
        assert len(list(stored.rows())) == len(expected)


def test_a_request_with_the_hash_of_another_takes_nothing_of_it() -> None:
    waiting, outcome = WaitingFeedback(MemoryRows()), Outcome()
    waiting.add([reaction(1, "r1", 5), reaction(2, "r1", 6)], outcome)
    assert waiting.take(["r2"], hashes_of(["r1"]), outcome) == []
    assert offsets_of(waiting.take(["r2", "r1"], hashes_of(["r1", "r1"]), outcome)) == [1, 2]


@pytest.mark.parametrize("count", [1, 40])
def test_feedback_may_expire_in_the_call_in_which_it_came(count: int) -> None:
    waiting, outcome = WaitingFeedback(MemoryRows()), Outcome()
    waiting.add([reaction(offset, "r1", offset) for offset in range(count)], outcome)
    assert offsets_of(waiting.expire(count, outcome)) == list(range(count))
    assert len(waiting) == 0
    assert [key for key, value in outcome.changes[count:] if value is None] == [key for key, _ in outcome.changes[:count]]
