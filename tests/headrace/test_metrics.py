from collections import Counter

import pytest

from headrace.metrics import StageMetrics, parse
from headrace.step import Count

LOOKS = {
    0: (
        Counter({Count("in", "exposures"): 7, Count("in", "feedback"): 5, Count("rejected", "late"): 2}),
        {"watermark_ms": 170.0, "lag_seconds": 0.5},
    ),
    3: (Counter({Count("in", "exposures"): 3, Count("out", "samples"): 4, Count("ignored", "duplicate"): 1}), {"watermark_ms": 190.0}),
}


def test_counts_of_all_partitions_add_up_and_gauges_stay_apart() -> None:
    page = parse(StageMetrics("joiner", lambda: LOOKS).render().decode())
    assert page.values("headrace_rows_in_total", stage="joiner", topic="exposures") == [10.0]
    assert page.values("headrace_rows_out_total", stage="joiner", topic="samples") == [4.0]
    assert page.values("headrace_rejected_total", stage="joiner", reason="late") == [2.0]
    assert page.values("headrace_ignored_total", stage="joiner", reason="duplicate") == [1.0]
    assert page.values("headrace_watermark_ms", partition="0") == [170.0]
    assert page.values("headrace_watermark_ms", partition="3") == [190.0]
    assert page.highest("headrace_lag_seconds", stage="joiner") == 0.5


def test_the_reader_gives_back_the_counts_of_a_stage() -> None:
    page = parse(StageMetrics("joiner", lambda: LOOKS).render().decode())
    assert page.counts("joiner") == LOOKS[0][0] + LOOKS[3][0]
    assert page.counts("experience") == Counter()


def test_a_page_shows_what_is_now_and_not_what_was() -> None:
    counts: Counter[Count] = Counter()
    metrics = StageMetrics("joiner", lambda: {0: (counts, {})})
    assert parse(metrics.render().decode()).total("headrace_rows_in_total") == 0
    counts[Count("in", "exposures")] += 2
    assert parse(metrics.render().decode()).total("headrace_rows_in_total") == 2


def test_batch_times_are_a_histogram_by_topic() -> None:
    metrics = StageMetrics("joiner", dict)
    for seconds in (0.002, 0.02, 20.0):
        metrics.observe_batch("feedback", seconds)
    page = parse(metrics.render().decode())
    assert page.values("headrace_batch_seconds_count", stage="joiner", topic="feedback") == [3.0]
    assert page.values("headrace_batch_seconds_bucket", le="0.0025") == [1.0]
    assert page.values("headrace_batch_seconds_bucket", le="10.0") == [2.0]


def test_labels_with_quotes_newlines_and_backslashes_survive_the_page() -> None:
    counts = Counter({Count("rejected", 'a "b"\n\\c'): 1})
    assert parse(StageMetrics("s", lambda: {0: (counts, {})}).render().decode()).counts("s") == counts


@pytest.mark.parametrize("name", ["", "Lag", "lag seconds", "1st", "läg"])
def test_a_gauge_needs_a_metric_name(name: str) -> None:
    with pytest.raises(ValueError, match="gauge"):
        StageMetrics("s", lambda: {0: (Counter(), {name: 1.0})}).render()


@pytest.mark.parametrize("text", ["headrace_x{ 1", "<html>", "headrace_x one"])
def test_what_is_no_page_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_an_empty_page_has_no_samples() -> None:
    page = parse("")
    assert (page.samples, page.total("x"), page.highest("x")) == ((), 0, None)
