"""What is remembered of users: the features at a moment, whatever the order and the cuts, and after crashes with and without the disk."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_events import DAY_MS, HOUR_MS, NOW_MS, SETTINGS, click, log_of, records

from headrace.memory_rows import InMemory, MemoryRows
from headrace.step import Count, Outcome, Record
from schemas.features import BinarySequenceFeature, DenseFeature, FeatureSpec, IdFeature, SequenceFeature
from schemas.feedback import Feedback
from schemas.topics import FEEDBACK
from serving.user_state.features import StoredFeatures
from serving.user_state.history import Events, decode_history
from serving.user_state.settings import UserStateSettings
from serving.user_state.step import HOUR, OFFSETS, USER, PartitionUserState, user_row

SPEC = FeatureSpec(
    dense=tuple(DenseFeature(name=name) for name in ("click_1h", "click_1w", "pay_1d", "click_gap_s", "pay_gap_s", "hour")),
    ids=(IdFeature(name="city"),),
    sequences=(SequenceFeature(name="recent_click"), SequenceFeature(name="recent_click_categories")),
    binary_sequences=(
        BinarySequenceFeature(name="click_code"),
        BinarySequenceFeature(name="click_often", source="click_category_code", windows=("1h", "1w"), digits=4),
        BinarySequenceFeature(name="click_rhythm", source="click_gap_code", windows=("1m", "1h", "1d", "1w"), digits=5),
    ),
)
FEATURES = StoredFeatures(SPEC, SETTINGS.kinds, SETTINGS.recent_items, SETTINGS.horizon_ms)


def history_of(events: list[Feedback], max_events: int = 6) -> dict[str, Events]:
    history: dict[str, Events] = {}
    for event in events:
        history.setdefault(event.kind, Events()).add(event.ts_ms, event.event_id, event.item_id, event.category, max_events)
    return history


def test_the_features_are_those_of_the_specification_and_of_the_kinds_that_are_kept() -> None:
    assert FEATURES.keys == {
        "click_1h", "click_1w", "pay_1d", "click_gap_s", "pay_gap_s",
        "recent_click", "recent_click_categories", "click_code", "click_category_code", "click_gap_code",
    }  # fmt: skip
    assert StoredFeatures(SPEC, ("like",), 3, SETTINGS.horizon_ms).keys == frozenset()
    of_nobody = FeatureSpec(binary_sequences=(BinarySequenceFeature(name="_code"),))
    assert StoredFeatures(of_nobody, ("click",), 3, SETTINGS.horizon_ms).keys == frozenset()


def test_the_features_of_a_history_are_those_counted_by_hand() -> None:
    events = [
        click(1, 8 * DAY_MS, category="a"),
        click(2, 2 * DAY_MS, category="a"),
        click(3, 2 * HOUR_MS, category="b"),
        click(4, HOUR_MS, category=""),  # on the edge of the window of an hour: outside
        click(5, HOUR_MS - 1, category="b"),
        click(6, 500, category="a"),
        click(7, -1_000, category="c"),  # after the request
    ]
    assert FEATURES.of(history_of(events, max_events=10), NOW_MS) == {
        "click_1h": 2.0,
        "click_1w": 5.0,
        "pay_1d": 0.0,
        "click_gap_s": 0.5,
        "recent_click": ["i-4", "i-5", "i-6"],
        "recent_click_categories": ["", "b", "a"],
        "click_code": "11111",
        "click_category_code": "12",
        "click_gap_code": "1334",  # 46 h, 1 h, 1 ms, 1 h less half a second
    }
    assert FEATURES.of(history_of(events[:1]), NOW_MS)["click_code"] == "00000"
    assert FEATURES.of(history_of(events[:2]), NOW_MS)["click_code"] == "00011"
    assert FEATURES.of(history_of(events[:2]), NOW_MS)["click_gap_code"] == "0000"  # the one before is beyond the horizon
    assert "click_gap_s" not in FEATURES.of(history_of(events[:1]), NOW_MS)


def test_a_window_longer_than_events_are_kept_is_refused() -> None:
    of_numbers = FeatureSpec(dense=(DenseFeature(name="click_2w"),))
    of_codes = FeatureSpec(binary_sequences=(BinarySequenceFeature(name="click_code"),))
    for spec in (of_numbers, of_codes):
        with pytest.raises(ValueError, match=r"its window is \d+ ms, events are kept for 86400000 ms"):
            StoredFeatures(spec, ("click",), 3, DAY_MS)


def apply(step: InMemory | PartitionUserState, batch: list[Record]) -> Outcome:
    return step.apply(FEEDBACK, batch, NOW_MS)


def fresh(rows: MemoryRows | None = None, settings: UserStateSettings = SETTINGS) -> InMemory:
    return InMemory(lambda stored: PartitionUserState(settings, stored), rows or ())


def features(step: InMemory) -> dict[str, dict[str, object]]:
    """Every user's features now; a user of whom nothing is to be seen may be forgotten or not."""
    made = {key.decode(): FEATURES.of(decode_history(row), NOW_MS) for key, row in step._rows.rows(USER)}
    return {user: of for user, of in made.items() if of["click_1w"] or of["pay_1d"] or of["recent_click"] or "pay_gap_s" in of}


@given(st.integers(0, 1000), st.integers(1, 40))
def test_order_cuts_and_deliveries_have_no_effect(seed: int, batch_size: int) -> None:
    rng = random.Random(seed)
    events = log_of(60, seed, days=6.0)
    whole = fresh()
    apply(whole, records(events))
    shuffled = events + rng.sample(events, 10)
    rng.shuffle(shuffled)
    cut = fresh()
    for start in range(0, len(shuffled), batch_size):
        apply(cut, records(shuffled[start : start + batch_size], start))
    assert dict(cut._rows.rows(USER)) == dict(whole._rows.rows(USER))
    assert dict(cut._rows.rows(HOUR)) == dict(whole._rows.rows(HOUR))
    assert features(cut) == features(whole) != {}


def test_the_newest_events_are_kept_and_each_once() -> None:
    events = [click(number, 10_000 * number) for number in range(20)]
    step = fresh()
    outcome = apply(step, records([*events, *events]))
    (row,) = step._rows.get([user_row("u-1")])
    assert decode_history(row)["click"].items == [f"i-{number}" for number in range(5, -1, -1)]
    # of the second delivery the six that are kept are known; the others come in and give way again
    assert outcome.counts[Count("ignored", "duplicate")] == 6


def killed_and_restarted(events: list[Feedback], seed: int, keep_disk: bool) -> InMemory:
    """The step over a log, cut at random and begun again there: from its rows, or without them from what it said that it needs."""
    rng = random.Random(seed)
    batch = records(events)
    step, at = fresh(), 0
    committed = 0
    while at < len(batch):
        outcome = apply(step, batch[at : at + rng.randrange(1, 9)])
        at += outcome.counts[Count("in", FEEDBACK)]
        assert committed <= outcome.needed_from[FEEDBACK] <= at
        committed = outcome.needed_from[FEEDBACK]
        step.tick(NOW_MS)
        if rng.random() < 0.1:
            step = fresh(step._rows) if keep_disk else fresh()  # type: ignore[arg-type]
            at = at if keep_disk else committed
    return step


@pytest.mark.parametrize("keep_disk", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_restart_with_and_without_the_disk_gives_the_features_of_an_undisturbed_run(seed: int, keep_disk: bool) -> None:
    events = log_of(400, seed)
    undisturbed = fresh()
    apply(undisturbed, records(events))
    restarted = killed_and_restarted(events, seed, keep_disk)
    assert features(restarted) == features(undisturbed)
    assert len(features(restarted)) == 5


def test_without_the_disk_no_more_than_the_horizon_is_read_again() -> None:
    events = log_of(400, 1)
    needed = apply(fresh(), records(events)).needed_from[FEEDBACK]
    oldest = NOW_MS - SETTINGS.horizon_ms
    first_inside = next(place for place, event in enumerate(events) if event.ts_ms >= oldest)
    assert 0 < needed <= first_inside
    assert events[needed].ts_ms > oldest - 3 * HOUR_MS


IGNORED = [
    (b"{", "malformed"),
    (b'{"event_id": "e"}', "malformed"),
    (click(1, -301_000), "future"),
    (click(1, 8 * DAY_MS), "expired"),
    (click(1, 0, kind="dwell"), "unknown_kind"),
    (click(0, 0), "duplicate"),
]


@pytest.mark.parametrize(("event", "reason"), IGNORED, ids=[reason for _, reason in IGNORED])
def test_what_does_not_count_is_counted(event: Feedback | bytes, reason: str) -> None:
    step = fresh()
    apply(step, records([click(0, 0)]))
    before = dict(step._rows.rows(USER))
    batch = [Record(1, NOW_MS, event)] if isinstance(event, bytes) else records([event], 1)
    outcome = apply(step, batch)
    assert outcome.counts == {Count("in", FEEDBACK): 1, Count("ignored", reason): 1}
    assert dict(step._rows.rows(USER)) == before
    assert (outcome.outputs, outcome.dead_letters) == ([], [])


def test_users_of_whom_nothing_was_heard_for_the_horizon_are_forgotten() -> None:
    step = fresh()
    apply(step, records([click(1, 180 * HOUR_MS, "gone"), click(2, 180 * HOUR_MS, "back"), click(3, 6 * DAY_MS, "kept")]))
    apply(step, records([click(4, DAY_MS, "back")], 3))
    assert step.tick(NOW_MS).counts == {}
    apply(step, records([click(5, 0, "new")], 4))
    assert step.tick(NOW_MS).counts == {Count("ignored", "user_forgotten"): 1}
    assert [key for key, _ in step._rows.rows(USER)] == [user_row(user) for user in ("back", "kept", "new")]
    assert [key[5:] for key, _ in step._rows.rows(HOUR)] == [b"kept", b"back", b"new"]
    assert step.tick(NOW_MS).changes == []


def test_the_state_is_bounded_by_its_users_and_hours() -> None:
    step = fresh()
    for start in range(0, 2000, 500):
        apply(step, records(log_of(2000, 3, days=60.0)[start : start + 500], start))
        step.tick(NOW_MS)
    assert len(list(step._rows.rows(USER))) == len(list(step._rows.rows(HOUR))) == 5
    assert len(step._step._first_offset) <= 7 * 24 + 4  # type: ignore[attr-defined]
    (offsets,) = step._rows.get([OFFSETS])
    assert len(offsets) < 2000
