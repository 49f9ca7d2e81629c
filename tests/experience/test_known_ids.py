"""Ids are known until they are forgotten, however many blocks they came in."""

import random

from experience.known_ids import KnownIds


def test_ids_are_known_until_their_block_is_forgotten() -> None:
    rng, ids, newest_ms = random.Random(3), KnownIds(), dict[str, int]()
    for block in range(2000):
        ts_ms = 10 * block + rng.randrange(50)
        requests = [f"r{block}-{page}" for page in range(rng.choice((1, 1, 1, 7)))]
        ids.add(ts_ms, requests)
        newest_ms |= dict.fromkeys(requests, ts_ms)
        if block % 100 == 99:
            before_ms = 10 * block - 3000
            ids.expire(before_ms)
            asked = rng.sample(sorted(newest_ms), 150)
            assert ids.known([*asked, "never shown"]) == {request for request in asked if newest_ms[request] >= before_ms}
    ids.expire(1 << 60)
    assert ids.known(list(newest_ms)) == set()


def test_an_id_of_two_blocks_is_known_as_long_as_the_later_one() -> None:
    ids = KnownIds()
    ids.add(1000, ["r1", "r2"])
    ids.add(2000, ["r1", "r3"])
    ids.expire(1500)
    assert ids.known(["r1", "r2", "r3"]) == {"r1", "r3"}


def test_a_look_at_many_small_blocks_is_a_look_at_few_runs() -> None:
    ids = KnownIds()
    for block in range(5000):
        ids.add(block, [f"r{block}"])
    assert len(ids._runs) <= 14
