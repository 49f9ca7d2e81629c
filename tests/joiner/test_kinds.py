"""Windows, grace and combination by kind of feedback."""

import pytest
from join_events import NOW_MS, SETTINGS, WINDOW_MS, exposure, feedback, join, records, rows
from test_join import refusals, run

from headrace.settings import ConfigError, load
from joiner.settings import JoinerSettings, KindRule, KindSettings
from schemas.topics import EXPOSURES, FEEDBACK

LONG = SETTINGS.model_copy(update={"kinds": {"dwell": KindSettings(window_ms=400), "leave": KindSettings(window_ms=50)}})
PATIENT = SETTINGS.model_copy(update={"kinds": {"dwell": KindSettings(grace_ms=300)}})


def test_a_kind_without_settings_of_its_own_has_those_of_the_joiner() -> None:
    settings = JoinerSettings(join_window_ms=100, grace_ms=7, feedback_kinds=("click", "pay"), kinds={"pay": KindSettings(window_ms=900)})
    assert settings.rules() == {
        "click": KindRule(100, 7, "sum"),
        "pay": KindRule(900, 7, "sum"),
        "leave": KindRule(100, 7, "sum"),
    }


@pytest.mark.parametrize(
    ("kind", "delay_ms", "reason"),
    [
        ("click", WINDOW_MS, None),
        ("click", WINDOW_MS + 1, "late"),
        ("dwell", 400, None),
        ("dwell", 401, "late"),
        ("leave", 50, None),
        ("leave", 51, "late"),
    ],
)
def test_feedback_counts_within_the_window_of_its_kind(kind: str, delay_ms: int, reason: str | None) -> None:
    reaction = feedback("r1", 1000 + delay_ms, "" if kind == "leave" else "i1", kind=kind)
    outcomes = run(join(LONG), [exposure("r1", 1000)], [reaction])
    assert [letter[0] for letter in refusals(outcomes)] == ([reason] if reason else [])
    [row] = rows(outcomes)
    assert (row["label_click"] + row["label_dwell"] > 0 or row["left"]) is (reason is None)


@pytest.mark.parametrize(("watermark_ms", "is_open"), [(1400, True), (1401, False)])
def test_a_page_stays_open_until_the_longest_window_and_grace_have_passed(watermark_ms: int, is_open: bool) -> None:
    for settings in (LONG, PATIENT):
        step = join(settings)
        step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 9000)), NOW_MS)
        outcome = step.apply(FEEDBACK, records(feedback("x", watermark_ms)), NOW_MS)
        assert (rows([outcome]) == []) is is_open


@pytest.mark.parametrize(
    ("kind", "watermark_ms", "label"),
    [
        ("click", 1000 + WINDOW_MS, 1.0),
        ("click", 1001 + WINDOW_MS, 0.0),
        ("dwell", 1300 + WINDOW_MS, 1.0),
        ("dwell", 1301 + WINDOW_MS, 0.0),
    ],
)
def test_feedback_out_of_order_counts_until_its_own_pages_window_and_grace_have_passed_whatever_else_is_in_the_block(
    kind: str, watermark_ms: int, label: float
) -> None:
    step = join(PATIENT)
    step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("younger, same block", 1012), exposure("r2", 9000)), NOW_MS)
    step.apply(FEEDBACK, records(feedback("x", watermark_ms)), NOW_MS)
    behind = step.apply(FEEDBACK, records(feedback("r1", 1010, kind=kind), first_offset=1), NOW_MS)
    assert [letter.reason for letter in behind.dead_letters] == ([] if label else ["late"])
    [row, _] = rows([step.apply(FEEDBACK, records(feedback("x", 8000), first_offset=2), NOW_MS)])
    assert row[f"label_{kind}"] == label


@pytest.mark.parametrize(
    ("combine", "values", "label"),
    [
        ("sum", [(10, 2.0), (20, 3.0)], 5.0),
        ("first", [(10, 2.0), (20, 3.0)], 2.0),
        ("first", [(20, 3.0), (10, 2.0)], 2.0),
        ("first", [(10, 2.0), (10, 3.0)], 2.0),
        ("last", [(10, 2.0), (20, 3.0)], 3.0),
        ("last", [(20, 3.0), (10, 2.0)], 3.0),
        ("last", [(10, 2.0), (10, 3.0)], 3.0),
        ("last", [(10, 2.0), (20, 0.0)], 0.0),
        ("max", [(10, 2.0), (20, 3.0), (30, 1.0)], 3.0),
        ("max", [(10, -2.0), (20, -3.0)], -2.0),
        ("max", [], 0.0),
        ("first", [], 0.0),
    ],
)
def test_repeated_feedback_of_a_kind_is_combined_as_configured(combine: str, values: list[tuple[int, float]], label: float) -> None:
    settings = SETTINGS.model_copy(update={"kinds": {"dwell": KindSettings(combine=combine)}})  # type: ignore[arg-type]
    reactions = [
        feedback("r1", 1000 + delay_ms, "b", kind="dwell", value=value, event_id=f"e{number}")
        for number, (delay_ms, value) in enumerate(values)
    ]
    found = rows(run(join(settings), [exposure("r1", 1000, ["a", "b"])], [feedback("r1", 1015, "a"), *reactions]))
    assert [row["label_dwell"] for row in found] == [0.0, label]
    assert [row["label_click"] for row in found] == [1.0, 0.0]


def test_the_label_delay_is_that_of_the_first_feedback_in_event_time_of_any_kind() -> None:
    reactions = [feedback("r1", 1050), feedback("r1", 1020, kind="dwell", value=5.0), feedback("r1", 1030)]
    [row] = rows(run(join(), [exposure("r1", 1000)], reactions))
    assert row["label_delay_ms"] == 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": {"share": {"window_ms": 5}}}, "kinds names 'share', which is not in feedback_kinds: click, pay"),
        ({"kinds": {"pay": {"window": 5}}}, "joiner.kinds.pay.window"),
        ({"kinds": {"pay": {"combine": "mean"}}}, "joiner.kinds.pay.combine = 'mean'"),
        ({"kinds": {"pay": {"grace_ms": -1}}}, "joiner.kinds.pay.grace_ms = -1"),
        ({"target_kind": "share"}, "target_kind = 'share' is not in feedback_kinds: click, pay"),
        ({"emission_mode": "fast", "fast_wait_ms": 1_800_000}, "fast_wait_ms = 1800000 must be below the target's window of 1800000 ms"),
        ({"negative_keep_rate": 0.0}, "joiner.negative_keep_rate = 0.0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(JoinerSettings, feedback_kinds=("click", "pay"), **wrong)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
