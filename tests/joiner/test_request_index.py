"""The index says what a dict of lists says, however its hashes meet in buckets, and its size follows what is in it."""

from collections import defaultdict

import numpy as np
import pytest

from joiner.request_index import LEAST_BUCKETS, RequestIndex, hashes_of

# Of 64 bits of hash so many differ: all; a few in the upper half, which chooses the bucket; a few in the lower half, of one bucket.
SHIFTS = {"as they are": lambda bits: bits, "few buckets": lambda bits: bits >> 58 << 58, "one bucket": lambda bits: (bits & 63) + 1}


@pytest.mark.parametrize("hashes_are", SHIFTS)
def test_it_finds_what_was_added_and_not_removed(hashes_are: str) -> None:
    chance, index, expected = np.random.default_rng(4), RequestIndex(), defaultdict[int, set[int]](set)
    held: list[tuple[np.ndarray, np.ndarray]] = []
    next_number = 0
    for step in range(300):
        hashes = SHIFTS[hashes_are](chance.integers(-(2**63), 2**63 - 1, chance.integers(1, 200)))
        hashes[hashes == 0] = 1
        numbers = np.arange(next_number, next_number + len(hashes))
        next_number += len(hashes)
        index.add(hashes, numbers)
        held.append((hashes, numbers))
        for key, number in zip(hashes.tolist(), numbers.tolist(), strict=True):
            expected[key].add(number)
        while len(held) > (60 if step < 200 else 2):  # fills, stays, empties
            hashes, numbers = held.pop(int(chance.integers(len(held))))
            index.remove(hashes, numbers)
            for key, number in zip(hashes.tolist(), numbers.tolist(), strict=True):
                expected[key].remove(number)
        asked = np.array([*chance.choice(list(expected), 40), 77, -77], np.int64)
        found = defaultdict[int, set[int]](set)
        places, numbers = index.find(asked)
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
            assert number not in found[place]
            found[place].add(number)
        assert {place: found[place] for place in range(len(asked))} == {
            place: expected.get(key, set()) for place, key in enumerate(asked.tolist())
        }
        assert len(index) == sum(map(len, expected.values()))


def test_its_tables_grow_and_shrink_with_what_is_in_them() -> None:
    index, hashes, numbers = RequestIndex(), hashes_of([f"r{place}" for place in range(50_000)]), np.arange(50_000)
    for first in range(0, 50_000, 500):
        index.add(hashes[first : first + 500], numbers[first : first + 500])
    assert 50_000 / 10 < len(index._hashes) < 50_000 / 5
    for first in range(0, 50_000, 500):
        index.remove(hashes[first : first + 500], numbers[first : first + 500])
    assert (len(index), len(index._hashes)) == (0, LEAST_BUCKETS)


def test_no_hash_is_that_of_a_free_place() -> None:
    assert hashes_of(["", "r1"]).tolist() == [1, hash("r1")]
