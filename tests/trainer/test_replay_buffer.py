import numpy as np
import pytest
from transition_log import FEATURES

from schemas.state_columns import StateColumns
from trainer.replay import ReplayBuffer, SeenIds, Transitions, hash64


def transitions(first: int, count: int) -> Transitions:
    """Rows whose reward, feature x and id are their own number."""
    numbers = np.arange(first, first + count)

    def state(shift: float) -> StateColumns:
        dense = np.stack([numbers + shift, numbers], axis=1).astype(np.float32)
        recent = np.repeat(numbers[:, None] % 32, 5, axis=1)
        return StateColumns(dense, (numbers % 16)[:, None], {"recent": recent}, np.zeros((count, 0), np.float32))

    return Transitions(
        id_hash=numbers.astype(np.uint64),
        state=state(0.0),
        action=np.zeros((count, 2), np.float32),
        reward=numbers.astype(np.float32),
        next_state=state(0.5),
        done=numbers % 2 == 0,
        discount=np.full(count, 0.9, np.float32),
        touched=numbers % 3 == 0,
        feedback_count=numbers.astype(np.int32),
        arrival_ms=numbers * 1000,
        version=numbers.astype(np.int32),
    )


@pytest.mark.parametrize(
    ("added", "kept", "fresh"),
    [
        ([3], [0, 1, 2], 3),
        ([5], [0, 1, 2, 3, 4], 5),
        ([3, 4], [2, 3, 4, 5, 6], 5),
        ([12], [7, 8, 9, 10, 11], 5),
        ([1] * 13, [8, 9, 10, 11, 12], 5),
        ([4, 0, 4, 4], [7, 8, 9, 10, 11], 5),
    ],
)
def test_the_newest_rows_are_kept_in_order(added: list[int], kept: list[int], fresh: int) -> None:
    replay = ReplayBuffer(FEATURES, 2, 5)
    first = 0
    for count in added:
        replay.add(transitions(first, count))
        first += count
    rows = replay.rows(np.arange(replay.size))
    assert rows.reward.tolist() == kept
    assert rows.next_state.dense[:, 0].tolist() == [number + 0.5 for number in kept]
    assert rows.state.sequences["recent"][:, 4].tolist() == [number % 32 for number in kept]
    assert replay.fresh == fresh


def test_every_new_row_is_in_a_batch_before_it_counts_as_learned() -> None:
    replay = ReplayBuffer(FEATURES, 2, 100)
    rng = np.random.default_rng(0)
    replay.add(transitions(0, 10))
    learned: list[float] = []
    for _ in range(3):
        batch, fresh = replay.sample(8, rng)
        assert len(batch) == 8
        learned += batch.reward[:fresh].tolist()
        replay.mark_learned(fresh)
    assert learned == list(range(10))
    assert replay.fresh == 0


def test_sampling_does_not_depend_on_how_the_ring_lies_in_memory() -> None:
    wrapped = ReplayBuffer(FEATURES, 2, 7)
    for first in range(0, 18, 3):
        wrapped.add(transitions(first, 3))
    straight = ReplayBuffer(FEATURES, 2, 7)
    straight.load_state_dict(wrapped.state_dict())
    for replay in (wrapped, straight):
        replay.add(transitions(18, 2))
    first_batch = wrapped.sample(6, np.random.default_rng(3))
    second_batch = straight.sample(6, np.random.default_rng(3))
    assert first_batch[0].reward.tolist() == second_batch[0].reward.tolist()
    assert first_batch[1] == second_batch[1] == 3


def test_a_smaller_ring_takes_the_newest_rows_of_a_larger_one() -> None:
    large, small = ReplayBuffer(FEATURES, 2, 10), ReplayBuffer(FEATURES, 2, 3)
    large.add(transitions(0, 8))
    small.load_state_dict(large.state_dict())
    assert small.rows(np.arange(3)).reward.tolist() == [5.0, 6.0, 7.0]


def test_an_id_is_recognised_within_the_horizon_and_not_beyond_it() -> None:
    seen = SeenIds(3)
    cases = [
        ("a", True),
        ("b", True),
        ("a", False),
        ("c", True),
        ("a", False),
        ("d", True),
        ("b", False),
        ("a", True),
        ("b", True),
        ("d", False),
    ]
    for name, is_first in cases:
        assert seen.first_seen(hash64([name])).tolist() == [is_first], name


def test_an_id_twice_in_one_batch_is_first_once() -> None:
    assert SeenIds(10).first_seen(hash64(["a", "b", "a"])).tolist() == [True, True, False]


def test_seen_ids_go_on_from_their_state() -> None:
    first, second = SeenIds(4), SeenIds(4)
    first.first_seen(hash64(list("abcdef")))
    second.load_state_dict(first.state_dict())
    for seen in (first, second):
        assert seen.first_seen(hash64(list("cgd"))).tolist() == [False, True, False]
    assert first.state_dict().tolist() == second.state_dict().tolist()


def test_hash64_is_the_same_on_every_machine() -> None:
    assert hash64(["r-7", ""]).tolist() == [6851264521418653847, 13020603013274838756]
