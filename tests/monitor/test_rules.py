import pytest
from pydantic import ValidationError

from headrace.settings import ConfigError, load
from monitor.rules import RejectedShare
from monitor.settings import MonitorSettings
from monitor.window import Bucket, merged
from schemas.alert import Alert

SETTINGS = MonitorSettings(window_s=20, bucket_s=5, settle_s=2, min_events=10, history_windows=5)
"""Four buckets a window, twenty of history."""


def buckets(*refused_of_100: int | None) -> dict[int, Bucket]:
    """From bucket 1000 on, one hundred events each, so many of them refused; None leaves a bucket out."""
    return {1000 + n: Bucket(refused, 100 - refused) for n, refused in enumerate(refused_of_100) if refused is not None}


def after(bucket: int) -> int:
    """When bucket 1000 + `bucket` has ended and settled."""
    return (1000 + bucket + 1) * 5000 + 2000


def states(alerts: list[Alert]) -> list[str]:
    return [alert.state for alert in alerts]


@pytest.mark.parametrize(
    ("refused", "firing"),
    [
        ((5, 5, 5, 5), False),  # exactly 5 % is allowed
        ((5, 5, 5, 6), True),
        ((90, 90, 90), False),  # no full window yet
        ((20, 0, 0, 0, 0), False),  # it was on, and three buckets later it is over
        ((0, 0, 0, 20, 0, 0, 0), False),  # 5.0 % at its height
        ((0, 0, 0, 21, 0, 0, 0), True),
        ((30, 0, 0, 0, 12, 0, 0, 0), True),  # on at 7.5 %, then 3.0 %: above the 2.5 % where it ends
        ((30, 0, 0, 0, 10, 0, 0, 0), False),  # then 2.5 %
    ],
)
def test_the_alert_is_on_above_one_threshold_until_down_to_the_other(refused: tuple[int, ...], firing: bool) -> None:
    rule = RejectedShare(SETTINGS)
    rule.observe(buckets(*refused), after(len(refused) - 1))
    assert rule.firing is firing


def test_an_alert_says_what_was_measured_and_when_and_only_once() -> None:
    rule = RejectedShare(SETTINGS)
    now = buckets(0, 0, 0, 40)
    assert rule.observe(now, after(2)) == []
    [alert] = rule.observe(now, after(3))
    assert alert == Alert(
        rule="rejected_share",
        state="firing",
        summary="10.0% of the events of the last 20 s were refused (allowed: 5.0%)",
        measured=0.1,
        threshold=0.05,
        ts_ms=1004 * 5000,
    )
    assert rule.observe(now, after(3)) == []
    assert rule.observe(now | buckets(*[None] * 4, 40), after(4)) == []


def test_an_alert_ends_with_a_resolved_one() -> None:
    rule = RejectedShare(SETTINGS)
    now = buckets(0, 0, 0, 40, 0, 0, 0, 0)
    assert states([alert for place in range(8) for alert in rule.observe(now, after(place))]) == ["firing", "resolved"]


def test_a_bucket_is_judged_only_after_it_has_settled() -> None:
    rule = RejectedShare(SETTINGS)
    assert rule.observe(buckets(0, 0, 0, 40), after(3) - 1) == []
    assert states(rule.observe(buckets(0, 0, 0, 40), after(3))) == ["firing"]


def test_few_events_are_not_judged_and_leave_a_firing_alert_on() -> None:
    rule = RejectedShare(SETTINGS)
    few = {1000 + n: Bucket(1, 1) for n in range(4)}
    assert rule.observe(few, after(3)) == []
    assert rule.latest is not None and rule.latest.share is None and not rule.firing

    rule.observe(buckets(40, 40, 40, 40) | {1000 + n: Bucket(0, 1) for n in range(4, 9)}, after(8))
    assert rule.firing


def test_silence_ends_an_alert_even_when_all_history_is_over() -> None:
    rule = RejectedShare(SETTINGS)
    rule.observe(buckets(40, 40, 40, 40), after(3))
    assert rule.observe(buckets(40, 40, 40, 40), after(6)) == []
    assert states(rule.observe(buckets(40, 40, 40, 40), after(7))) == ["resolved"]

    rule = RejectedShare(SETTINGS)
    rule.observe(buckets(40, 40, 40, 40), after(3))
    assert states(rule.observe(buckets(40, 40, 40, 40), after(90))) == ["resolved"]


def test_between_the_thresholds_a_long_alert_stays_on_when_its_start_has_left_the_history() -> None:
    rule = RejectedShare(SETTINGS)
    long = buckets(40, 40, 40, 40, *[4] * 60)
    assert states([alert for place in range(64) for alert in rule.observe(long, after(place))]) == ["firing"]
    assert rule.firing


@pytest.mark.parametrize("died_after", range(3, 12))
def test_a_restarted_monitor_goes_on_where_it_was_and_repeats_its_last_word(died_after: int) -> None:
    now = buckets(0, 0, 0, 40, 4, 4, 4, 4, 0, 0, 0, 0, 0)
    undisturbed = RejectedShare(SETTINGS)
    said = [alert for place in range(died_after + 1) for alert in undisturbed.observe(now, after(place))]
    restarted = RejectedShare(SETTINGS)
    assert restarted.observe(now, after(died_after)) == said[-1:]
    assert restarted.latest == undisturbed.latest
    for place in range(died_after + 1, 13):
        assert restarted.observe(now, after(place)) == undisturbed.observe(now, after(place))


def test_no_events_at_all_say_nothing() -> None:
    rule = RejectedShare(SETTINGS)
    assert rule.observe({}, after(3)) == []
    assert not rule.firing and rule.latest is None


def test_refusals_at_the_start_are_not_judged_before_pages_had_a_window_to_come_through() -> None:
    rule = RejectedShare(SETTINGS)
    starting = {1000 + n: Bucket(5, 0) for n in range(6)} | {1006 + n: Bucket(5, 395) for n in range(4)}
    assert [rule.observe(starting, after(place)) for place in range(10)] == [[]] * 10
    assert rule.latest is not None and rule.latest.share == 5 / 400


def test_nothing_but_refusals_is_an_alert_after_a_whole_history() -> None:
    rule = RejectedShare(SETTINGS)
    hopeless = {1000 + n: Bucket(5, 0) for n in range(20)}
    assert rule.observe(hopeless, after(18)) == []
    [alert] = rule.observe(hopeless, after(19))
    assert (alert.state, alert.measured) == ("firing", 1.0)


def test_partitions_are_judged_together() -> None:
    # 20 % of one partition, but 2 % of all
    one = {1000 + n: Bucket(2, 8) for n in range(4)}
    two = {1000 + n: Bucket(0, 90) for n in range(4)}
    rule = RejectedShare(SETTINGS)
    rule.observe(merged([two, one]), after(3))
    assert not rule.firing and rule.latest is not None and rule.latest.share == 0.02


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rejected_share_resolved": 0.2}, r"setting monitor.rejected_share_resolved = 0.2: must not be above rejected_share_max \(0.05\)"),
        ({"bucket_s": 7}, r"setting monitor.bucket_s = 7: window_s \(60\) must be a multiple of it"),
        ({"rejected_share_max": 1.5}, r"setting monitor.rejected_share_max = 1.5: .*less than 1"),
    ],
)
def test_thresholds_that_do_not_fit_are_named_in_one_line(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(MonitorSettings, **wrong)
    with pytest.raises(ValidationError):
        MonitorSettings(**wrong)  # type: ignore[arg-type]
