import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from headrace.metrics import parse
from headrace.user_counts import Z95, Reward, UserCounts, arm


@pytest.mark.parametrize(
    ("policy", "model_version", "expected"),
    [("baseline", "", "baseline"), ("fusion", "", "exploration"), ("fusion", "fusion-000003", "policy")],
)
def test_an_arm_is_the_baseline_exploration_or_a_version_of_the_policy(policy: str, model_version: str, expected: str) -> None:
    assert arm(policy, model_version) == expected


def test_the_interval_of_equal_sessions_is_that_of_their_means() -> None:
    reward = Reward()
    for clicks in (4, 8, 6):  # of ten pages each: means 0.4, 0.8, 0.6; their standard deviation 0.2
        reward.add(10, clicks)
    half = Z95 * 0.2 / math.sqrt(3)
    assert reward.mean == pytest.approx(0.6)
    assert reward.interval95() == pytest.approx((0.6 - half, 0.6 + half))


def test_the_interval_of_sessions_of_different_lengths_is_that_of_a_ratio() -> None:
    reward = Reward()
    sessions = [(10, 4), (20, 16), (5, 2)]
    for pages, clicks in sessions:
        reward.add(pages, clicks)
    mean = 22 / 35
    variance = sum((clicks - mean * pages) ** 2 for pages, clicks in sessions) * 3 / 2 / 35**2
    assert reward.interval95() == pytest.approx((mean - Z95 * math.sqrt(variance), mean + Z95 * math.sqrt(variance)))


def test_one_session_has_no_interval() -> None:
    counts = UserCounts()
    counts.add_session("policy", 10, 4)
    assert counts.summary(10.0, 1.0)["clicks_a_page"] == {"policy": {"pages": 10, "sessions": 1, "mean": 0.4, "ci95": None}}


def test_the_page_of_metrics_names_arms_ways_and_kinds() -> None:
    counts = UserCounts()
    counts.pages["policy"] += 3
    counts.feedback["topic"] += 2
    counts.errors["unavailable"] += 1
    counts.at_work = 5
    registry = CollectorRegistry()
    registry.register(counts)
    page = parse(generate_latest(registry).decode())
    assert page.values("headrace_users_pages_total", arm="policy") == [3.0]
    assert page.values("headrace_users_feedback_total", way="topic") == [2.0]
    assert page.values("headrace_users_errors_total", kind="unavailable") == [1.0]
    assert page.values("headrace_users_at_work") == [5.0]


def test_the_summary_counts_pages_over_all_arms_and_their_rate() -> None:
    counts = UserCounts()
    counts.pages.update({"policy": 30, "baseline": 10})
    counts.versions.update({"baseline": 10, "fusion-000001": 30})
    summary = counts.summary(8.0, 0.5)
    assert (summary["pages"], summary["pages_per_s"], summary["cpu_s"]) == (40, 5.0, 0.5)
    assert summary["versions"] == {"baseline": 10, "fusion-000001": 30}
