"""What the simulated users count: for /metrics while they are at work, and as JSON when they have left."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.exposure import BASELINE

Z95 = 1.959964
"""97.5 % point of the standard normal distribution: half the width of a 95 % interval, in standard errors."""


@dataclass
class Reward:
    """Clicks a page of one arm. Sessions are what is independent, so the interval is taken over their means."""

    pages: int = 0
    clicks: int = 0
    sessions: int = 0
    squares: float = 0.0
    cross: float = 0.0
    page_squares: int = 0

    def add(self, pages: int, clicks: int) -> None:
        """One session of this arm."""
        self.sessions += 1
        self.pages += pages
        self.clicks += clicks
        self.squares += clicks * clicks
        self.cross += clicks * pages
        self.page_squares += pages * pages

    @property
    def mean(self) -> float:
        """Clicks a page."""
        return self.clicks / self.pages if self.pages else 0.0

    def interval95(self) -> tuple[float, float] | None:
        """95 % interval of the ratio of sums over sessions (linearised variance); None below two sessions."""
        if self.sessions < 2:
            return None
        mean = self.mean
        residual_squares = max(0.0, self.squares - 2 * mean * self.cross + mean * mean * self.page_squares)
        error = math.sqrt(residual_squares * self.sessions / (self.sessions - 1)) / self.pages
        return mean - Z95 * error, mean + Z95 * error


def arm(policy: str, model_version: str) -> str:
    """What served a page: the baseline, exploration around it (no version yet), or a version of the policy."""
    return BASELINE if policy == BASELINE else "policy" if model_version else "exploration"


@dataclass(eq=False)
class UserCounts(Collector):
    """Everything that the users did. Feedback is counted by the way it took, errors by kind."""

    pages: Counter[str] = field(default_factory=Counter)
    clicks: Counter[str] = field(default_factory=Counter)
    feedback: Counter[str] = field(default_factory=Counter)
    exposures: Counter[str] = field(default_factory=Counter)
    bad_events: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    rewards: dict[str, Reward] = field(default_factory=dict)
    sessions: int = 0
    duplicates: int = 0
    at_work: int = 0

    def add_session(self, arm_name: str, pages: int, clicks: int) -> None:
        """A session's pages that one arm served; a user who was there when the first version came has pages of two."""
        self.rewards.setdefault(arm_name, Reward()).add(pages, clicks)

    def collect(self) -> Iterator[Metric]:
        """The Prometheus metrics."""
        for name, label, text, counter in (
            ("pages", "arm", "Pages served to simulated users, by what served them", self.pages),
            ("clicks", "arm", "Clicks on those pages", self.clicks),
            ("feedback", "way", "Feedback sent, through the API or straight to the topic", self.feedback),
            ("exposures", "way", "Exposures that users sent themselves", self.exposures),
            ("bad_events", "kind", "Bad events sent on purpose", self.bad_events),
            ("errors", "kind", "Requests and events that failed", self.errors),
        ):
            family = CounterMetricFamily(f"headrace_users_{name}_total", text, labels=[label])
            for value, count in sorted(counter.items()):
                family.add_metric([value], count)
            yield family
        yield CounterMetricFamily("headrace_users_sessions_total", "Sessions that ended", value=self.sessions)
        yield GaugeMetricFamily("headrace_users_at_work", "Users in a session now", value=self.at_work)

    def summary(self, seconds: float, cpu_s: float) -> dict[str, Any]:
        """The counts as JSON. `cpu_s` is the process's processor time."""
        pages = self.pages.total()
        return {
            "pages": pages,
            "sessions": self.sessions,
            "clicks": self.clicks.total(),
            "feedback": dict(self.feedback),
            "exposures": dict(self.exposures),
            "bad_events": dict(sorted(self.bad_events.items())),
            "duplicates": self.duplicates,
            "errors": dict(sorted(self.errors.items())),
            "clicks_a_page": {name: _arm(reward) for name, reward in sorted(self.rewards.items())},
            "versions": dict(sorted(self.versions.items())),
            "seconds": round(seconds, 1),
            "pages_per_s": round(pages / seconds, 1) if seconds else 0.0,
            "cpu_s": round(cpu_s, 1),
        }


def _arm(reward: Reward) -> dict[str, Any]:
    interval = reward.interval95()
    bounds = None if interval is None else [round(bound, 4) for bound in interval]
    return {"pages": reward.pages, "sessions": reward.sessions, "mean": round(reward.mean, 4), "ci95": bounds}
