"""What the monitor keeps of the `policies` topic: which versions were announced, what they learned from, what is served now."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from monitor.pages import Version, version_key
from monitor.seen import Changes
from monitor.settings import MonitorSettings
from schemas.policy import PolicyVersion

PREFIX = b"v"
_ANNOUNCED = b"va"
_SERVED = b"vs"


class Announced(msgspec.Struct):
    """A version as it was first announced; `arrivals_ms` counts the feedback that it learned from first, by bin of its arrival."""

    promoted_ms: int
    transitions_learned: int
    learned_from: dict[str, int]
    arrivals_ms: dict[str, int]


class Served(msgspec.Struct):
    """What a policy serves by its newest announcement, and how many announcements it had, by reason."""

    model_version: str
    announced_ms: int
    announcements: dict[str, int]


class VersionTally:
    """One partition's announcements. Stored: one row a version, written once, and one a policy."""

    def __init__(self, settings: MonitorSettings, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.announced: dict[Version, Announced] = {}
        self.served: dict[str, Served] = {}
        self._settings = settings
        for key, row in stored:
            if key.startswith(_ANNOUNCED):
                self.announced[msgspec.msgpack.decode(key[2:], type=Version)] = msgspec.msgpack.decode(row, type=Announced)
            else:
                self.served[key[2:].decode()] = msgspec.msgpack.decode(row, type=Served)

    def count(self, announcement: PolicyVersion, changes: Changes) -> bool:
        """Note an announcement; False where it was known. The controller's clock (`announced_ms`) orders those of a policy."""
        served = self.served.get(announcement.policy)
        if served is not None and announcement.announced_ms <= served.announced_ms:
            return False
        announcements = dict(served.announcements) if served else {}
        announcements[announcement.reason] = announcements.get(announcement.reason, 0) + 1
        self.served[announcement.policy] = Served(announcement.model_version, announcement.announced_ms, announcements)
        changes.append((_SERVED + announcement.policy.encode(), msgspec.msgpack.encode(self.served[announcement.policy])))
        version = (announcement.policy, announcement.model_version)
        if announcement.model_version and version not in self.announced:
            lineage = announcement.lineage
            # A version that is pinned or rolled back to before this monitor knew it learned long ago: that says nothing of freshness.
            arrivals_ms = announcement.arrivals_ms if announcement.reason == "promoted" else {}
            self.announced[version] = Announced(announcement.announced_ms, lineage.transitions_learned, lineage.learned_from, arrivals_ms)
            changes.append((version_key(_ANNOUNCED, version), msgspec.msgpack.encode(self.announced[version])))
            self._keep_newest(changes)
        return True

    def _keep_newest(self, changes: Changes) -> None:
        while len(self.announced) > self._settings.versions_max:
            oldest = min(self.announced, key=lambda version: (self.announced[version].promoted_ms, version))
            del self.announced[oldest]
            changes.append((version_key(_ANNOUNCED, oldest), None))


@dataclass(frozen=True)
class Generation:
    """One version in lineage order: the feedback it learned from first, and when its first response was, if it had one."""

    arrivals_ms: dict[int, int]
    first_response_ms: int | None


def freshness_ms(lineage: Sequence[Generation]) -> list[tuple[int, int]]:
    """(milliseconds, feedback count): from each feedback's arrival to the first response that had learned from it.

    A version holds what the versions before it learned. Feedback of one that was never served counts for the first later version
    that was; feedback that no served version holds yet is not in the result. An arrival is that of its page's newest feedback, taken
    at the start of its bin: too early by up to one bin (schemas.policy.ARRIVAL_BIN_MS), too late by the time between a page's
    feedback events.
    """
    ages: list[tuple[int, int]] = []
    soonest: int | None = None
    for generation in reversed(lineage):
        if generation.first_response_ms is not None:
            soonest = generation.first_response_ms if soonest is None else min(soonest, generation.first_response_ms)
        if soonest is not None:
            ages.extend((soonest - arrival_ms, count) for arrival_ms, count in generation.arrivals_ms.items())
    return ages


def weighted_quantile(weighted: Sequence[tuple[int, int]], quantile: float) -> int | None:
    """The smallest value that at least `quantile` of the weight does not exceed (inverse of the empirical distribution); None if empty.

    >>> weighted_quantile([(10, 1), (20, 1), (30, 2)], 0.5)
    20
    """
    total = sum(weight for _, weight in weighted)
    passed = 0
    for value, weight in sorted(weighted):
        passed += weight
        if passed >= quantile * total and passed > 0:
            return value
    return None
