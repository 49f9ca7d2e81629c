"""When a row leaves for the point-wise stream, and what it says of itself."""

from collections import Counter
from math import log
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from join_events import NOW_MS, SETTINGS, Row, counts, exposure, feedback, join, records, rows, rows_of, store
from test_join import run
from test_join_order import EXAMPLES, events, log_of, reads

from headrace.memory_rows import InMemory
from headrace.step import Outcome
from joiner.delay import weights
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch
from schemas.pointwise_sample import CLOSED_BY, pointwise_schema
from schemas.topics import EXPOSURES, FEEDBACK, POINTWISE_SAMPLES, SAMPLES


def mode(name: str, **more: Any) -> JoinerSettings:
    return SETTINGS.model_copy(update={"emission_mode": name, **more})


def pointwise(outcomes: list[Outcome]) -> list[Row]:
    return [row for row in rows_of(outcomes, POINTWISE_SAMPLES) if row["request_id"] != "end"]


def short(found: list[Row]) -> list[tuple[str, str, str, float]]:
    return [(row["request_id"], row["item_id"], row["closed_by"], row["label_click"]) for row in found]


SHOWN = [exposure("r1", 1000, ["a", "b"]), exposure("r2", 1010, ["a"])]
CLICKS = [feedback("r1", 1050, "b"), feedback("r1", 1060, "b", kind="dwell", value=9.0), feedback("r1", 1070, "b")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (mode("none"), []),
        (mode("window"), [("r1", "a", "window", 0.0), ("r1", "b", "window", 2.0), ("r2", "a", "window", 0.0)]),
        (mode("eager"), [("r1", "b", "positive", 2.0), ("r1", "a", "window", 0.0), ("r2", "a", "window", 0.0)]),
        (
            mode("fast"),
            [("r1", "a", "early", 0.0), ("r1", "b", "early", 0.0), ("r2", "a", "early", 0.0), ("r1", "b", "correction", 2.0)],
        ),
    ],
)
def test_rows_leave_when_their_mode_says_so(settings: JoinerSettings, expected: list[tuple[str, str, str, float]]) -> None:
    outcomes = run(join(settings), SHOWN, CLICKS)
    assert short(pointwise(outcomes)) == expected
    assert [row["label_click"] for row in rows(outcomes)] == [0.0, 2.0, 0.0], "samples are the same in every mode"


def test_a_row_that_waits_leaves_with_the_label_that_it_has_by_then() -> None:
    step = join(mode("fast", fast_wait_ms=40))
    first = step.apply(EXPOSURES, records(*SHOWN, exposure("r3", 9000)), NOW_MS)
    second = step.apply(FEEDBACK, records(feedback("r1", 1020, "a"), feedback("x", 1051)), NOW_MS)
    third = step.apply(FEEDBACK, records(feedback("r1", 1060, "b"), first_offset=2), NOW_MS)
    assert pointwise([first]) == []
    assert short(pointwise([second])) == [("r1", "a", "early", 1.0), ("r1", "b", "early", 0.0), ("r2", "a", "early", 0.0)]
    assert [row["elapsed_ms"] for row in pointwise([second])] == [51, 51, 41]
    assert short(pointwise([third])) == [("r1", "b", "correction", 1.0)]
    assert [row["elapsed_ms"] for row in pointwise([third])] == [51], "a correction tells the age of the row that it corrects"


def test_a_second_feedback_of_the_target_sends_nothing() -> None:
    for settings in (mode("eager"), mode("fast")):
        step = join(settings)
        step.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)
        first = step.apply(FEEDBACK, records(feedback("r1", 1010)), NOW_MS)
        second = step.apply(FEEDBACK, records(feedback("r1", 1020), first_offset=1), NOW_MS)
        assert (len(pointwise([first])), len(pointwise([second]))) == (1, 0)


def test_another_kind_can_be_the_target() -> None:
    reactions = [feedback("r1", 1050, "a"), feedback("r2", 1060, "a", kind="dwell")]
    outcomes = run(join(mode("eager", target_kind="dwell")), SHOWN, reactions)
    assert [(row["request_id"], row["closed_by"]) for row in pointwise(outcomes)] == [
        ("r2", "positive"),
        ("r1", "window"),
        ("r1", "window"),
    ]


def test_feedback_that_waited_for_its_page_makes_a_row_positive_when_the_page_comes() -> None:
    for settings, expected in ((mode("eager"), [("r1", "i1", "positive", 1.0)]), (mode("fast"), [("r1", "i1", "early", 1.0)])):
        step = join(settings)
        step.apply(FEEDBACK, records(feedback("r1", 1010)), NOW_MS)
        assert short(pointwise([step.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)])) == expected


def test_a_row_has_the_published_columns_the_message_of_its_page_and_no_other() -> None:
    outcomes = run(join(mode("eager")), SHOWN, CLICKS)
    [first, *_] = [output for outcome in outcomes for output in outcome.outputs if output.topic == POINTWISE_SAMPLES]
    batch, watermark_ms = decode_batch(first.value, POINTWISE_SAMPLES)
    batch.validate(full=True)
    assert batch.schema.equals(pointwise_schema(SETTINGS.feedback_kinds))
    assert batch["exposure"].dictionary.to_pylist() == [SHOWN[0]]
    assert watermark_ms <= 1000
    assert counts(outcomes, "out") == {POINTWISE_SAMPLES: 4, SAMPLES: 3}, "the page that ends the log has its click, too"
    assert {row["closed_by"] for row in pointwise(outcomes)} <= set(CLOSED_BY)


def closed_by_idleness() -> list[Outcome]:
    step = join(mode("window", idle_s=2.0))
    outcomes = [step.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)]
    outcomes.append(step.apply(EXPOSURES, records(exposure("r2", 9000), first_offset=1), NOW_MS + 1999))
    return [*outcomes, step.tick(NOW_MS + 2000)]


def test_a_page_that_only_silence_closes_says_so() -> None:
    outcomes = closed_by_idleness()
    assert [(row["request_id"], row["closed_by"]) for row in rows(outcomes)] == [("r1", "idle")]
    assert [(row["request_id"], row["closed_by"]) for row in pointwise(outcomes)] == [("r1", "idle")]


def warmed(settings: JoinerSettings) -> InMemory:
    """A join that has closed ten pages of one item: two with a click after 10 ms, two after 60 ms."""
    step = join(settings)
    shown = [exposure(f"w{page}", 1000) for page in range(10)]
    clicks = [feedback(f"w{page}", 1000 + delay_ms) for page, delay_ms in ((0, 10), (1, 10), (2, 60), (3, 60))]
    step.apply(EXPOSURES, records(*shown, exposure("w", 3000)), NOW_MS)
    step.apply(FEEDBACK, records(*clicks, feedback("x", 3000)), NOW_MS)
    return step


def test_early_rows_carry_the_weights_of_the_delays_seen_so_far() -> None:
    step = warmed(mode("fast", fast_wait_ms=30))
    shown = step.apply(EXPOSURES, records(exposure("r1", 4000), exposure("r2", 4000), exposure("r", 4200), first_offset=20), NOW_MS)
    early = step.apply(FEEDBACK, records(feedback("r1", 4005), feedback("x", 4031), first_offset=20), NOW_MS)
    late = step.apply(FEEDBACK, records(feedback("r2", 4080), first_offset=30), NOW_MS)
    assert pointwise([shown]) == []
    [positive, negative] = [row for row in pointwise([early]) if row["ts_ms"] == 4000]
    [correction] = pointwise([late])
    p, come_by = positive["positive_rate"], positive["positives_come_by"]
    assert (p, come_by) == (pytest.approx(0.4), pytest.approx(0.5, abs=0.2))
    to_come = p * (1 - come_by)
    assert positive["weight_fake_negative"] == pytest.approx(1 + to_come)
    assert negative["weight_fake_negative"] == pytest.approx((1 - p) * (1 + to_come) / (1 - p + to_come))
    assert positive["weight_fsiw"] == pytest.approx(1 / come_by)
    assert negative["weight_fsiw"] == pytest.approx(1 - to_come / (1 - p * come_by))
    still_to_come = correction["positive_rate"] * (1 - correction["positives_come_by"])
    assert (correction["weight_fake_negative"], correction["weight_fsiw"]) == (pytest.approx(1 + still_to_come), 0.0)


def test_before_a_positive_is_known_of_every_row_weighs_one() -> None:
    step = join(mode("fast", fast_wait_ms=30))
    step.apply(EXPOSURES, records(exposure("r1", 4000), exposure("r2", 4000), exposure("r", 4200)), NOW_MS)
    early = step.apply(FEEDBACK, records(feedback("r1", 4005), feedback("x", 4031)), NOW_MS)
    late = step.apply(FEEDBACK, records(feedback("r2", 4050), first_offset=2), NOW_MS)
    found = pointwise([early, late])
    assert [row["closed_by"] for row in found] == ["early", "early", "correction"]
    assert [row["weight_fake_negative"] for row in found] == [1.0, 1.0, 1.0]
    assert [row["weight_fsiw"] for row in found] == [1.0, 1.0, 1.0]
    assert [row["positives_come_by"] for row in found] == [1.0, 1.0, 1.0], "rows that waited are learned as they are"
    at_once = pointwise([join(mode("fast")).apply(EXPOSURES, records(exposure("r1", 4000)), NOW_MS)])
    assert [(row["positives_come_by"], row["weight_fake_negative"]) for row in at_once] == [(0.0, 1.0)]


def test_where_feedback_is_read_ahead_of_exposures_labels_are_as_old_as_the_feedback() -> None:
    step = join(mode("fast"))
    step.apply(FEEDBACK, records(feedback("r1", 1080), feedback("x", 1090)), NOW_MS)
    [row] = pointwise([step.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)])
    assert (row["is_positive"], row["elapsed_ms"]) == (True, 90), "the watermark is 1000, but a click after 80 ms has been seen"
    [other] = pointwise([step.apply(EXPOSURES, records(exposure("r2", 1005), first_offset=1), NOW_MS)])
    assert (other["is_positive"], other["elapsed_ms"]) == (False, 85)
    [correction] = pointwise([step.apply(FEEDBACK, records(feedback("r2", 1100), first_offset=2), NOW_MS)])
    assert (correction["is_positive"], correction["elapsed_ms"]) == (True, 85)


def test_feedback_without_value_makes_a_row_positive_and_the_row_says_so() -> None:
    outcomes = run(join(mode("eager")), SHOWN, [feedback("r1", 1050, "b", value=0.0)])
    assert [(row["item_id"], row["closed_by"], row["is_positive"], row["label_click"]) for row in pointwise(outcomes)] == [
        ("b", "positive", True, 0.0),
        ("a", "window", False, 0.0),
        ("a", "window", False, 0.0),
    ]


@pytest.mark.parametrize("p", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("come_by", [0.0, 0.3, 1.0])
def test_weights_make_the_stream_s_labels_the_true_ones(p: float, come_by: float) -> None:
    early, late = np.array([True, False]), np.array([False, False])
    of = weights(early, late, p, np.full(2, come_by))
    mass = 1 + p * (1 - come_by)  # rows of the stream per exposure
    assert of.fake_negative[0] * p / mass == pytest.approx(p)
    assert of.fake_negative[1] * (1 - p * come_by) / mass == pytest.approx(1 - p)
    if come_by:
        assert of.fsiw[0] * p * come_by == pytest.approx(p)
    assert of.fsiw[1] * (1 - p * come_by) == pytest.approx(1 - p)


def test_rows_with_their_final_label_weigh_one() -> None:
    for settings in (mode("window"), mode("eager")):
        step = warmed(settings)
        step.apply(EXPOSURES, records(exposure("r1", 4000), exposure("r2", 4000), exposure("r", 9000), first_offset=20), NOW_MS)
        found = pointwise([step.apply(FEEDBACK, records(feedback("r1", 4005), feedback("x", 9000), first_offset=20), NOW_MS)])
        assert {(row["weight_fake_negative"], row["weight_fsiw"], row["positives_come_by"]) for row in found} == {(1.0, 1.0, 1.0)}


def test_negatives_are_sampled_and_the_log_odds_correction_makes_up_for_it() -> None:
    shown = [exposure(f"r{page}", 1000, ["a", "b", "c"]) for page in range(400)]
    clicks = [feedback(f"r{page}", 1010, "b") for page in range(0, 400, 4)]
    settings = mode("window", negative_keep_rate=0.25)
    found, all_rows = pointwise(run(join(settings), shown, clicks)), rows(run(join(settings), shown, clicks))
    positives, negatives = (sum((row["label_click"] > 0) == is_positive for row in found) for is_positive in (True, False))
    assert len(all_rows) == 1200
    assert positives == 100
    assert negatives == pytest.approx(275, abs=45)
    assert {row["log_odds_correction"] for row in found} == {np.float32(log(0.25))}
    corrected = np.log(positives / negatives) + found[0]["log_odds_correction"]
    assert corrected == pytest.approx(np.log(100 / 1100), abs=0.2)
    by_position = Counter(row["position"] for row in found if not row["label_click"])
    assert min(by_position.values()) > 40, "every place of a page is sampled"


def once(outcomes: list[Outcome]) -> dict[tuple[int, str, str], Row]:
    """Point-wise rows by their id; delivered twice, a row is the same row."""
    found: dict[tuple[int, str, str], Row] = {}
    for row in pointwise(outcomes):
        key = row["source_offset"], row["item_id"], row["closed_by"]
        assert found.setdefault(key, row) == row
    return found


@EXAMPLES
@given(st.data())
def test_in_any_order_and_through_crashes_every_row_leaves_as_often_as_its_mode_says(data: st.DataObject) -> None:
    exposures, reactions = data.draw(events())
    log_ = log_of(exposures, reactions)
    name = data.draw(st.sampled_from(["window", "eager", "fast"]))
    settings = mode(name, fast_wait_ms=data.draw(st.sampled_from([0, 30])), negative_keep_rate=data.draw(st.sampled_from([1.0, 0.5])))
    fates = st.sampled_from(["lives", "lives", "restart", "lost"])
    stored: dict[bytes, bytes] = {}
    step, sent = join(settings), list[Outcome]()
    undisturbed, plain = join(settings), list[Outcome]()
    for topic, batch in data.draw(reads(log_)):
        fate = data.draw(fates)
        plain.append(undisturbed.apply(topic, batch, NOW_MS))
        sent.append(outcome := step.apply(topic, batch, NOW_MS))
        if fate == "lost":
            step = join(settings, sorted(stored.items()))
            sent.append(outcome := step.apply(topic, batch, NOW_MS))
        store(stored, outcome)
        if fate == "restart":
            step = join(settings, sorted(stored.items()))
    assert once(sent) == once(plain)
    clicked = {(row["source_offset"], row["item_id"]): _has_click(row) for row in rows(plain)}
    found = once(plain)
    left = Counter((offset, item_id) for offset, item_id, _ in found)
    for place, is_positive in clicked.items():
        closed_by = {closed for offset, item_id, closed in found if (offset, item_id) == place}
        if is_positive is None:
            continue  # feedback of value 0: it is there, and no label shows it
        if settings.negative_keep_rate == 1.0:
            assert left[place] == 1 + (closed_by == {"early", "correction"}), place
        if is_positive:
            assert closed_by in ({"window"}, {"positive"}, {"early"}, {"correction"}, {"early", "correction"}), place
            assert left[place] >= 1, place
            assert any(found[*place, closed]["label_click"] for closed in closed_by), place
        elif name != "fast":
            assert closed_by <= {"window"}, place


def _has_click(row: Row) -> bool | None:
    return bool(row["label_click"]) if row["label_delay_ms"] is None or row["label_click"] or row["label_dwell"] else None


def test_window_mode_has_exactly_the_samples() -> None:
    outcomes = run(join(mode("window")), SHOWN, CLICKS)
    names = pointwise_schema(SETTINGS.feedback_kinds).names[: len(rows(outcomes)[0])]
    assert [{name: row[name] for name in names} for row in pointwise(outcomes)] == rows(outcomes)


def test_the_state_of_a_block_is_gone_with_it_in_every_mode() -> None:
    for settings in (mode("window"), mode("eager"), mode("fast"), mode("fast", fast_wait_ms=20)):
        step, stored = join(settings), dict[bytes, bytes]()
        for outcome in run(step, SHOWN, CLICKS):
            store(stored, outcome)
        store(stored, step.apply(EXPOSURES, records(exposure("later", 900_400), first_offset=1001), NOW_MS))
        store(stored, step.apply(FEEDBACK, records(feedback("later", 900_400), first_offset=1001), NOW_MS))
        open_blocks = {int.from_bytes(key[1:], "big") for key in stored if key[:1] in (b"b", b"p", b"e", b"f")}
        assert open_blocks == {1001}, settings.emission_mode
        assert b"d" in stored


def test_delays_survive_a_restart() -> None:
    settings = mode("fast", fast_wait_ms=30)
    stored: dict[bytes, bytes] = {}
    for outcome in run(join(settings), [exposure(f"r{page}", 1000) for page in range(4)], [feedback("r0", 1010), feedback("r1", 1060)]):
        store(stored, outcome)
    step = join(settings, stored.items())
    step.apply(EXPOSURES, records(exposure("s", 950_000), exposure("t", 960_000), first_offset=2000), NOW_MS)
    [row] = pointwise([step.apply(FEEDBACK, records(feedback("x", 950_040), first_offset=2000), NOW_MS)])
    assert row["positive_rate"] == 0.5
