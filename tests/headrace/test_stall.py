"""When a consumer has stalled."""

from headrace.stall import STALL_LOOKS, StallWatch

A, B = "t 0", "t 1"


def test_a_partition_stalls_when_its_sign_of_life_is_the_same_for_so_many_looks() -> None:
    watch = StallWatch()
    for look in range(STALL_LOOKS):
        assert watch.stalled({A: look, B: "the same"}) is None

    assert watch.stalled({A: STALL_LOOKS, B: "the same"}) == B


def test_a_partition_that_is_not_looked_at_for_a_while_begins_anew() -> None:
    watch = StallWatch()
    for _ in range(3):
        for _ in range(STALL_LOOKS):
            assert watch.stalled({A: "the same"}) is None
        assert watch.stalled({}) is None
