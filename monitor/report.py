"""Merges the partitions' tallies into one report: what flowed, what it earned, how fresh the answers were. Plain JSON values."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.step import Count
from monitor.pages import Version
from monitor.ratio import Moments
from monitor.rewards import ARMS, Arm
from monitor.tally import PartitionTally
from monitor.versions import Announced, Generation, freshness_ms, weighted_quantile

STAGES = ("joiner", "experience", "trainer", "controller", "monitor")

Json = dict[str, Any]


def build_report(tallies: Sequence[PartitionTally], scraped: Mapping[str, Counter[Count]] | None = None) -> Json:
    """The report of everything that these tallies counted.

    `scraped` holds, by stage, the counts that the stage itself reports (headrace.metrics.Page.counts): they replace what the
    monitor saw of it on the topics. Without them `in` of the joiner is null, for its inputs do not pass here.
    """
    announced = _announced(tallies)
    learned_from = {name: version.learned_from for (_, name), version in announced}
    return {
        "stages": _stages(tallies, scraped or {}),
        "versions": _versions(tallies, announced),
        "reward": {arm: _reward(merged_moments(tallies, arm)) for arm in ARMS},
        "freshness_s": _freshness(tallies, announced),
        "learned_from": learned_from,
        "join": _join(tallies),
        "loop_closed": loop_closed(_versions(tallies, announced)),
    }


def merged_moments(tallies: Sequence[PartitionTally], arm: Arm) -> Moments:
    """An arm's session sums over all partitions; a session lies on one of them."""
    total = Moments()
    for tally in tallies:
        total += tally.rewards.moments(arm)
    return total


def loop_closed(versions: Sequence[Json]) -> bool:
    """Whether some version learned from feedback, was promoted, answered, and a later promoted version learned from its pages."""
    learned_again = {served for version in versions for served, transitions in version["learned_from"].items() if transitions}
    return any(
        version["promoted_ms"] is not None
        and version["first_response_ms"] is not None
        and sum(version["learned_from"].values()) > 0
        and version["model_version"] in learned_again
        for version in versions
    )


def _announced(tallies: Sequence[PartitionTally]) -> list[tuple[Version, Announced]]:
    """Every announced version, in lineage order: a version holds what those of its policy with fewer transitions learned."""
    found = [(version, announced) for tally in tallies for version, announced in tally.versions.announced.items()]
    return sorted(found, key=lambda item: (item[0][0], item[1].transitions_learned, item[0][1]))


def _first_responses(tallies: Sequence[PartitionTally]) -> dict[Version, int]:
    firsts: dict[Version, int] = {}
    for tally in tallies:
        for version, first_ms in tally.pages.first_response_ms.items():
            firsts[version] = min(first_ms, firsts.get(version, first_ms))
    return firsts


def _stages(tallies: Sequence[PartitionTally], scraped: Mapping[str, Counter[Count]]) -> Json:
    samples = sum(tally.pages.totals.rows for tally in tallies)
    transitions = sum(tally.rewards.totals.pages for tally in tallies)
    announcements = sum(sum(served.announcements.values()) for tally in tallies for served in tally.versions.served.values())
    refused: Counter[tuple[str, str]] = Counter()
    for tally in tallies:
        refused.update(tally.letters.refused)
    seen: dict[str, tuple[int | None, int | None]] = {
        "joiner": (None, samples),
        "experience": (samples, transitions),
        "trainer": (transitions, None),
        "controller": (None, announcements),
        "monitor": (samples + transitions + announcements + refused.total(), None),
    }
    stages: Json = {}
    for stage in [*STAGES, *sorted({stage for stage, _ in refused} | scraped.keys() - set(STAGES))]:
        if stage in stages:
            continue
        rows_in, rows_out = seen.get(stage, (None, None))
        rejected = {reason: n for (letter_stage, reason), n in sorted(refused.items()) if letter_stage == stage}
        if stage in scraped:
            counts = scraped[stage]
            rows_in, rows_out = (sum(n for count, n in counts.items() if count.name == name) for name in ("in", "out"))
            rejected = {count.label: n for count, n in sorted(counts.items()) if count.name == "rejected"}
        stages[stage] = {"in": rows_in, "out": rows_out, "rejected": rejected}
    return stages


def _versions(tallies: Sequence[PartitionTally], announced: Sequence[tuple[Version, Announced]]) -> list[Json]:
    """Announced versions in lineage order, then those that answered without an announcement known here (`promoted_ms` null)."""
    firsts = _first_responses(tallies)
    pages: Counter[Version] = Counter()
    rewards: defaultdict[Version, float] = defaultdict(float)
    for tally in tallies:
        for version, sums in tally.rewards.versions.items():
            pages[version] += sums.pages
            rewards[version] += sums.reward
    known = dict(announced)
    return [
        {
            "policy": version[0],
            "model_version": version[1],
            "promoted_ms": known[version].promoted_ms if version in known else None,
            "first_response_ms": firsts.get(version),
            "pages": pages[version],
            "reward_mean": rewards[version] / pages[version] if pages[version] else None,
            "learned_from": known[version].learned_from if version in known else {},
        }
        for version in [*known, *sorted(firsts.keys() - known.keys())]
    ]


def _reward(moments: Moments) -> Json:
    ci95 = moments.ci95
    return {
        "pages": moments.n,
        "sessions": moments.clusters,
        "sum": moments.reward,
        "mean": moments.mean,
        "ci95": list(ci95) if ci95 else None,
    }


def _freshness(tallies: Sequence[PartitionTally], announced: Sequence[tuple[Version, Announced]]) -> Json:
    firsts = _first_responses(tallies)
    ages: list[tuple[int, int]] = []
    for policy in sorted({policy for (policy, _), _ in announced}):
        lineage = [
            Generation({int(arrival): count for arrival, count in version.arrivals_ms.items()}, firsts.get(name))
            for name, version in announced
            if name[0] == policy
        ]
        ages.extend(freshness_ms(lineage))
    p50, p95 = (weighted_quantile(ages, quantile) for quantile in (0.5, 0.95))
    return {
        "p50": None if p50 is None else p50 / 1000,
        "p95": None if p95 is None else p95 / 1000,
        "n": sum(count for _, count in ages),
    }


def _join(tallies: Sequence[PartitionTally]) -> Json:
    totals = [tally.pages.totals for tally in tallies]
    pages = sum(total.pages for total in totals)
    delays = sum(sum(total.delay_classes) for total in totals)
    return {
        "pages": pages,
        "rate": sum(total.pages_joined for total in totals) / pages if pages else None,
        "label_delay_s_mean": sum(total.delay_ms_sum for total in totals) / delays / 1000 if delays else None,
    }
