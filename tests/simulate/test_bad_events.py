from collections import Counter
from functools import partial
from typing import get_args

import numpy as np
import pytest

from headrace.bad_events import REASONS, BadKind, bad_event, draw_kind
from headrace.memory_rows import InMemory
from headrace.step import Record
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings

NOW_MS = 1_700_000_000_000
SETTINGS = JoinerSettings(feedback_kinds=("click",), join_window_ms=1000, idle_s=1.0)


def test_every_kind_has_a_reason() -> None:
    assert set(REASONS) == set(get_args(BadKind))


@pytest.mark.parametrize("kind", REASONS)
def test_the_joiner_refuses_each_kind_for_its_reason(kind: BadKind) -> None:
    step = InMemory(partial(PartitionJoin, SETTINGS, 0))
    topic, value = bad_event(kind, "u-1", "7", NOW_MS, SETTINGS.max_event_bytes)
    outcomes = [step.apply(topic, [Record(0, NOW_MS, value)], NOW_MS)]
    # feedback on an unknown page is refused only when its page can no longer come: both inputs idle, event time goes on by itself
    outcomes += [step.tick(NOW_MS + ms) for ms in (2000, 4000, 6000)]
    assert [letter.reason for outcome in outcomes for letter in outcome.dead_letters] == [REASONS[kind]]


def test_all_kinds_are_drawn_and_the_same_generator_draws_the_same() -> None:
    first = [draw_kind(np.random.default_rng(3)) for _ in range(5)]
    assert len(set(first)) == 1
    random = np.random.default_rng(3)
    counts = Counter(draw_kind(random) for _ in range(700))
    assert set(counts) == set(REASONS)
    assert min(counts.values()) > 60
