"""The watermark: a table of what was heard when."""

import pytest

from joiner.watermark import Watermark
from schemas.topics import EXPOSURES, FEEDBACK

START_MS = 50_000


@pytest.mark.parametrize(
    ("heard", "now_ms", "watermark_ms"),
    [
        ([], START_MS + 99_000, 0),
        ([(EXPOSURES, 700, START_MS)], START_MS, 0),
        ([(EXPOSURES, 700, START_MS), (FEEDBACK, 500, START_MS)], START_MS, 500),
        ([(EXPOSURES, 700, START_MS), (FEEDBACK, 500, START_MS), (FEEDBACK, 900, START_MS)], START_MS, 700),
        ([(EXPOSURES, 700, START_MS), (EXPOSURES, 300, START_MS), (FEEDBACK, 900, START_MS)], START_MS, 700),
        ([(EXPOSURES, 700, START_MS), (EXPOSURES, 800, START_MS + 999)], START_MS + 999, 0),
        ([(EXPOSURES, 700, START_MS), (EXPOSURES, 800, START_MS + 1000)], START_MS + 1000, 800),
        ([(EXPOSURES, 700, START_MS), (FEEDBACK, 500, START_MS + 400)], START_MS + 1000, 500),
        ([(EXPOSURES, 700, START_MS), (FEEDBACK, 500, START_MS + 400)], START_MS + 1400, 1700),
        ([(EXPOSURES, 700, START_MS), (FEEDBACK, 500, START_MS + 400)], START_MS + 5400, 5700),
        ([(FEEDBACK, 500, START_MS)], START_MS + 1000, 1500),
        ([(EXPOSURES, 0, START_MS), (FEEDBACK, 500, START_MS)], START_MS, 0),
    ],
)
def test_the_watermark_is_the_smaller_newest_time_of_the_topics_that_are_not_idle(
    heard: list[tuple[str, int, int]], now_ms: int, watermark_ms: int
) -> None:
    watermark = Watermark(idle_ms=1000)
    watermark.tick(START_MS)
    for topic, newest_ms, heard_ms in heard:
        watermark.observe(topic, newest_ms, heard_ms)
    watermark.tick(now_ms)
    assert watermark.advance(now_ms) == watermark_ms


def ticked(watermark: Watermark, now_ms: int, *unread: str) -> int:
    watermark.tick(now_ms, unread)
    return watermark.advance(now_ms)


def test_the_watermark_never_goes_back_not_even_when_the_clock_does() -> None:
    watermark = Watermark(idle_ms=1000)
    watermark.observe(EXPOSURES, 700, START_MS)
    assert watermark.advance(START_MS) == 0
    assert ticked(watermark, START_MS + 4000) == 4700
    watermark.observe(FEEDBACK, 900, START_MS + 4000)
    assert watermark.advance(START_MS + 4000) == 4700
    assert ticked(watermark, START_MS) == 4700


def test_a_restart_waits_for_what_piled_up_meanwhile() -> None:
    watermark = Watermark(1000, watermark_ms=500, exposures_ms=700, feedback_ms=500)
    assert ticked(watermark, START_MS) == 500
    assert ticked(watermark, START_MS + 999) == 500
    assert ticked(watermark, START_MS + 1000) == 1700


def test_a_topic_with_unread_records_is_not_idle_however_long_they_take() -> None:
    watermark = Watermark(1000, watermark_ms=500, exposures_ms=700, feedback_ms=500)
    assert ticked(watermark, START_MS, EXPOSURES, FEEDBACK) == 500
    watermark.observe(EXPOSURES, 9_000, START_MS + 5000)
    assert watermark.advance(START_MS + 5000) == 500
    assert ticked(watermark, START_MS + 5500, FEEDBACK) == 500
    watermark.observe(FEEDBACK, 800, START_MS + 6000)
    assert ticked(watermark, START_MS + 6000) == 800
    assert ticked(watermark, START_MS + 6999) == 800
    assert ticked(watermark, START_MS + 7000) == 10_000


def test_an_idle_topic_that_has_unread_records_again_holds_the_watermark_back() -> None:
    watermark = Watermark(idle_ms=1000)
    watermark.observe(FEEDBACK, 500, START_MS)
    watermark.observe(EXPOSURES, 700, START_MS + 1500)
    assert ticked(watermark, START_MS + 1500) == 700
    watermark.observe(EXPOSURES, 1_700, START_MS + 1900)
    assert ticked(watermark, START_MS + 2000, FEEDBACK) == 700


def test_events_ahead_of_the_clock_move_the_watermark_no_further_than_to_now():
    watermark = Watermark(idle_ms=2_000)

    for topic in (EXPOSURES, FEEDBACK):
        watermark.observe(topic, newest_ms=309_000, now_ms=10_000)

    assert watermark.advance(10_000) == 10_000
