import pytest
from monitor_records import SETTINGS, T0, announcement, letter, record, samples, transitions
from prometheus_client import CollectorRegistry, generate_latest

from headrace.metrics import Page, parse
from monitor.metrics import MonitorMetrics
from monitor.rules import RejectedShare
from monitor.tally import PartitionTally
from monitor.webhook import Webhook
from monitor.window import merged
from schemas.topics import DEAD_LETTERS, POLICIES, SAMPLES, TRANSITIONS


def page(tallies: list[PartitionTally], rule: RejectedShare | None = None) -> Page:
    registry = CollectorRegistry()
    registry.register(MonitorMetrics(SETTINGS, lambda: tallies, rule or RejectedShare(SETTINGS), Webhook(SETTINGS)))
    return parse(generate_latest(registry).decode())


@pytest.fixture
def tallies() -> list[PartitionTally]:
    one, two = PartitionTally(SETTINGS, 0), PartitionTally(SETTINGS, 1)
    one.apply(SAMPLES, [record(0, samples([("a1", "v1", 4_000, 80), ("a2", "v1", 4_000, None)], 0))], T0)
    two.apply(SAMPLES, [record(0, samples([("b1", "v1", 5_000, 700)], 0))], T0)
    rows = [
        ("b1", "s1", "fusion", "v1", 2.0, 0, True),
        ("b2", "s2", "fusion", "v1", 4.0, 0, True),
        ("c1", "c", "baseline", "", 1.0, 0, True),
    ]
    one.apply(TRANSITIONS, [record(0, transitions(rows, 0))], T0)
    two.apply(POLICIES, [record(0, announcement("fusion-000012", 900, arrivals_ms={500: 1}))], T0)
    two.apply(POLICIES, [record(1, announcement("v1", 1_000, 200, arrivals_ms={1_000: 1}))], T0)
    two.apply(POLICIES, [record(2, announcement("fusion-000012", 1_100, reason="rolled_back"))], T0)
    one.apply(DEAD_LETTERS, [record(0, letter(1)), record(1, letter(2))], T0)
    two.apply(DEAD_LETTERS, [record(0, letter(3))], T0)
    return [one, two]


def test_rewards_versions_and_freshness_are_on_the_page(tallies: list[PartitionTally]) -> None:
    shown = page(tallies)
    assert shown.values("headrace_reward_mean", arm="policy") == [3.0]
    assert shown.values("headrace_reward_pages_total", arm="policy") == [2.0]
    assert shown.values("headrace_reward_sum", arm="policy") == [6.0]
    assert shown.values("headrace_reward_pages_total", arm="exploration") == [0.0]
    assert shown.values("headrace_reward_mean", arm="exploration") == []
    [low], [high] = (shown.values("headrace_reward_ci95", arm="policy", bound=bound) for bound in ("low", "high"))
    assert low < 3.0 < high
    assert shown.values("headrace_freshness_seconds", quantile="0.5") == [3.0]
    assert shown.values("headrace_freshness_seconds", quantile="0.95") == [3.5]
    assert shown.values("headrace_policy_version", policy="fusion") == [12.0]
    assert shown.values("headrace_policy_announced_timestamp_seconds") == [(T0 + 1_100) / 1000]
    assert shown.values("headrace_policy_announcements_total", reason="rolled_back") == [1.0]
    assert shown.values("headrace_dead_letters_total", stage="joiner", reason="late") == [3.0]


def test_label_delays_are_a_cumulative_histogram_in_seconds(tallies: list[PartitionTally]) -> None:
    shown = page(tallies)
    name = "headrace_label_delay_seconds"
    assert [shown.total(f"{name}_bucket", le=bound) for bound in ("0.1", "0.5", "1.0", "+Inf")] == [1.0, 1.0, 2.0, 2.0]
    assert (shown.total(f"{name}_sum"), shown.total(f"{name}_count")) == (0.78, 2.0)
    assert (shown.total("headrace_pages_total"), shown.total("headrace_pages_joined_total")) == (3.0, 2.0)


def test_a_firing_rule_shows_as_one(tallies: list[PartitionTally]) -> None:
    rule = RejectedShare(SETTINGS)
    assert page(tallies, rule).values("headrace_alerts_firing", rule="rejected_share") == [0.0]
    more = [record(10 + n, letter(10 + n)) for n in range(200)]
    tallies[0].apply(DEAD_LETTERS, more, T0)
    rule.observe(merged(tally.window.buckets for tally in tallies), T0 + 62_000)
    shown = page(tallies, rule)
    assert shown.values("headrace_alerts_firing", rule="rejected_share") == [1.0]
    assert shown.values("headrace_rule_measured", rule="rejected_share") == [pytest.approx(203 / 212)]
    assert shown.values("headrace_rule_threshold", rule="rejected_share") == [0.05]


def test_a_policy_that_is_back_at_the_baseline_shows_minus_one(tallies: list[PartitionTally]) -> None:
    tallies[1].apply(POLICIES, [record(3, announcement("", 1_200, reason="rolled_back"))], T0)
    assert page(tallies).values("headrace_policy_version", policy="fusion") == [-1.0]


def test_an_empty_monitor_has_a_page() -> None:
    shown = page([])
    assert shown.total("headrace_pages_total") == 0
    assert shown.total("headrace_webhook_failed_total") == 0
