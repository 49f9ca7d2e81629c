"""What the monitor adds to its page: reward by arm, freshness, versions, join rate, label delay, alerts (docs/monitoring.md)."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from monitor.pages import DELAY_BOUNDS_MS
from monitor.report import Json, build_report
from monitor.rules import REJECTED_SHARE, RejectedShare
from monitor.settings import MonitorSettings
from monitor.tally import PartitionTally
from monitor.webhook import Webhook


class MonitorMetrics(Collector):
    """Register it beside the stage's own metrics: StageMetrics(...).registry.register(MonitorMetrics(...))."""

    def __init__(
        self, settings: MonitorSettings, tallies: Callable[[], Sequence[PartitionTally]], rule: RejectedShare, webhook: Webhook
    ) -> None:
        self._settings = settings
        self._tallies = tallies
        self._rule = rule
        self._webhook = webhook

    def collect(self) -> Iterator[Metric]:
        """Built anew at each scrape, from the tallies as they are."""
        tallies = self._tallies()
        report = build_report(tallies)
        yield from _rewards(report)
        yield from _freshness(report)
        yield from _versions(tallies)
        yield from _joins(tallies)
        yield _dead_letters(tallies)
        yield from self._alerts()

    def _alerts(self) -> Iterator[Metric]:
        firing = GaugeMetricFamily("headrace_alerts_firing", "1 while a rule's alert is on", labels=["rule"])
        firing.add_metric([REJECTED_SHARE], float(self._rule.firing))
        measured = GaugeMetricFamily(
            "headrace_rule_measured", "What a rule measured in its last window that could be judged", labels=["rule"]
        )
        if self._rule.latest is not None and self._rule.latest.share is not None:
            measured.add_metric([REJECTED_SHARE], self._rule.latest.share)
        threshold = GaugeMetricFamily("headrace_rule_threshold", "A rule fires above this", labels=["rule"])
        threshold.add_metric([REJECTED_SHARE], self._settings.rejected_share_max)
        yield from (firing, measured, threshold)
        yield CounterMetricFamily("headrace_webhook_sent_total", "Alerts that the webhook accepted", self._webhook.sent)
        yield CounterMetricFamily("headrace_webhook_failed_total", "Attempts to post an alert that failed", self._webhook.failed)
        yield CounterMetricFamily("headrace_webhook_dropped_total", "Alerts given up", self._webhook.dropped)
        yield GaugeMetricFamily("headrace_webhook_waiting", "Alerts that wait to be posted", self._webhook.waiting)


def _rewards(report: Json) -> Iterator[Metric]:
    pages = CounterMetricFamily("headrace_reward_pages_total", "Pages whose reward is known, by arm", labels=["arm"])
    total = GaugeMetricFamily("headrace_reward_sum", "Reward of these pages (a gauge, for rewards may be negative)", labels=["arm"])
    mean = GaugeMetricFamily("headrace_reward_mean", "Mean reward of a page, by arm", labels=["arm"])
    interval = GaugeMetricFamily("headrace_reward_ci95", "95 % confidence bounds of the mean, by session", labels=["arm", "bound"])
    for arm, reward in report["reward"].items():
        pages.add_metric([arm], reward["pages"])
        total.add_metric([arm], reward["sum"])
        if reward["mean"] is not None:
            mean.add_metric([arm], reward["mean"])
        for bound, value in zip(("low", "high"), reward["ci95"] or (), strict=False):
            interval.add_metric([arm, bound], value)
    yield from (pages, total, mean, interval)


def _freshness(report: Json) -> Iterator[Metric]:
    freshness = GaugeMetricFamily(
        "headrace_freshness_seconds", "Feedback arriving -> first response that learned from it", labels=["quantile"]
    )
    for quantile, key in (("0.5", "p50"), ("0.95", "p95")):
        if report["freshness_s"][key] is not None:
            freshness.add_metric([quantile], report["freshness_s"][key])
    yield freshness
    yield GaugeMetricFamily("headrace_freshness_feedback", "Feedback that the freshness is taken over", report["freshness_s"]["n"])


def _versions(tallies: Sequence[PartitionTally]) -> Iterator[Metric]:
    number = GaugeMetricFamily("headrace_policy_version", "Number of the version a policy serves; -1 is the baseline", labels=["policy"])
    announced = GaugeMetricFamily("headrace_policy_announced_timestamp_seconds", "When it was announced (Unix time)", labels=["policy"])
    announcements = CounterMetricFamily("headrace_policy_announcements_total", "Announcements, by reason", labels=["policy", "reason"])
    for tally in tallies:
        for policy, served in sorted(tally.versions.served.items()):
            digits = re.search(r"\d+$", served.model_version)
            number.add_metric([policy], float(digits.group()) if digits else -1.0)
            announced.add_metric([policy], served.announced_ms / 1000)
            for reason, count in sorted(served.announcements.items()):
                announcements.add_metric([policy, reason], count)
    yield from (number, announced, announcements)


def _joins(tallies: Sequence[PartitionTally]) -> Iterator[Metric]:
    totals = [tally.pages.totals for tally in tallies]
    yield CounterMetricFamily("headrace_pages_total", "Pages that left the joiner", sum(total.pages for total in totals))
    yield CounterMetricFamily("headrace_pages_joined_total", "Pages with any feedback", sum(total.pages_joined for total in totals))
    buckets = []
    passed = 0
    for place, bound in enumerate([*(str(bound_ms / 1000) for bound_ms in DELAY_BOUNDS_MS), "+Inf"]):
        passed += sum(total.delay_classes[place] for total in totals)
        buckets.append((bound, float(passed)))
    delay_s = sum(total.delay_ms_sum for total in totals) / 1000
    yield HistogramMetricFamily(
        "headrace_label_delay_seconds", "An item's exposure -> its first feedback", buckets=buckets, sum_value=delay_s
    )


def _dead_letters(tallies: Sequence[PartitionTally]) -> Metric:
    refused: Counter[tuple[str, str]] = Counter()
    for tally in tallies:
        refused.update(tally.letters.refused)
    letters = CounterMetricFamily("headrace_dead_letters_total", "Dead letters, each counted once", labels=["stage", "reason"])
    for (stage, reason), count in sorted(refused.items()):
        letters.add_metric([stage, reason], count)
    return letters
