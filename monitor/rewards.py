"""What the monitor keeps of transitions: reward by arm, in sums clustered by session, and by model version."""

import heapq
import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headrace.step import Count
from monitor.pages import Version, version_key, version_of
from monitor.ratio import Moments
from monitor.seen import Changes, Seen
from monitor.settings import MonitorSettings
from schemas.exposure import BASELINE

PREFIX = b"r"
_MOMENTS = b"rm"
_OPEN = b"ro"
_SEEN = b"rs"
_TOTALS = b"rt"
_VERSION = b"rv"

Arm = Literal["baseline", "policy", "exploration"]
ARMS: tuple[Arm, ...] = get_args(Arm)
"""Traffic that no policy touched; traffic that a learned version of a policy served; a policy's traffic before it had a version."""

_EXPIRIES_PER_IDLE_TIME = 8
_EVICTED_SHARE = 10


def arm_of(policy: str, model_version: str) -> Arm:
    """The arm that a page belongs to."""
    if policy == BASELINE:
        return "baseline"
    return "policy" if model_version else "exploration"


class RewardTotals(msgspec.Struct, array_like=True):
    """Sums over the transitions counted."""

    pages: int = 0
    feedback_count: int = 0
    watermark_ms: int = 0
    instance: str = ""
    """Of the first row ever counted: where several leave for each page, the others come besides it."""


class VersionReward(msgspec.Struct, array_like=True):
    """Pages of one model version, their reward, and the exposure time of the newest."""

    pages: int = 0
    reward: float = 0.0
    newest_ms: int = 0


class OpenSession(msgspec.Struct, array_like=True):
    """A session's pages so far in one arm."""

    pages: int = 0
    reward: float = 0.0
    newest_ms: int = 0


SessionKey = tuple[str, Arm]


class RewardTally:
    """One partition's transitions.

    A page counts once, by its first row: neither its other instances nor an amendment change what was counted. A session whose
    end was seen (`ends_session`), that has been silent for `session_idle_s` of event time, or that is the stalest of too
    many is finished: its pages and reward go into the arm's moments and it is forgotten. Stored: a row an arm (about 60 B), one a
    version and one an open session that the record touched, one a record with its ids.
    """

    def __init__(self, settings: MonitorSettings, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.totals = RewardTotals()
        self.finished: dict[Arm, Moments] = {arm: Moments() for arm in ARMS}
        self.open: dict[SessionKey, OpenSession] = {}
        self.versions: dict[Version, VersionReward] = {}
        self._settings = settings
        ids = []
        for key, row in stored:
            match key[:2]:
                case b"rm":
                    self.finished = msgspec.msgpack.decode(row, type=dict[Arm, Moments])
                case b"ro":
                    self.open[msgspec.msgpack.decode(key[2:], type=SessionKey)] = msgspec.msgpack.decode(row, type=OpenSession)
                case b"rt":
                    self.totals = msgspec.msgpack.decode(row, type=RewardTotals)
                case b"rv":
                    self.versions[version_of(key, _VERSION)] = msgspec.msgpack.decode(row, type=VersionReward)
                case _:
                    ids.append((key, row))
        self.seen = Seen(_SEEN, settings.horizon_s * 1000, settings.remembered_ids_max, ids)

    def moments(self, arm: Arm) -> Moments:
        """All sessions of an arm; those still open count with what they have so far, so that long sessions are not left out."""
        done = self.finished[arm]
        still = [session for (_, session_arm), session in self.open.items() if session_arm == arm]
        # fsum is exact: the order of the sessions, which a restart changes, does not show in the last digit.
        return Moments(
            clusters=done.clusters + len(still),
            n=done.n + sum(session.pages for session in still),
            reward=math.fsum((done.reward, *(session.reward for session in still))),
            n_squared=done.n_squared + sum(session.pages**2 for session in still),
            reward_squared=math.fsum((done.reward_squared, *(session.reward**2 for session in still))),
            n_reward=math.fsum((done.n_reward, *(session.pages * session.reward for session in still))),
        )

    def count(self, offset: int, batch: pa.RecordBatch, watermark_ms: int, changes: Changes, counts: Counter[Count]) -> tuple[int, int]:
        """Count the transitions of one record that were not counted before; returns how many, and the feedback on their pages."""
        fresh = self._fresh(offset, batch, changes, counts)
        feedback_count = 0
        if len(fresh):
            self._add(fresh, changes)
            feedback_count = int(fresh["feedback_count"].to_numpy().sum())
            self.totals.pages += len(fresh)
            self.totals.feedback_count += feedback_count
        self._advance(watermark_ms, changes)
        changes.append((_TOTALS, msgspec.msgpack.encode(self.totals)))
        return len(fresh), feedback_count

    def _fresh(self, offset: int, batch: pa.RecordBatch, changes: Changes, counts: Counter[Count]) -> pa.RecordBatch:
        newest_ms = int(batch["ts_ms"].to_numpy().max(initial=0))
        fresh = self.seen.fresh(offset, batch["request_id"].to_pylist(), newest_ms, changes)
        is_fresh = pa.array(fresh, pa.bool_())
        if len(batch) and not self.totals.instance:
            self.totals.instance = batch["instance"][0].as_py()
        self._count_known(batch.filter(pc.invert(is_fresh)), counts)
        return batch.filter(is_fresh)

    def _count_known(self, rows: pa.RecordBatch, counts: Counter[Count]) -> None:
        """Why rows of pages that were counted already change nothing."""
        for instance, revision in zip(rows["instance"].to_pylist(), rows["revision"].to_pylist(), strict=True):
            if revision:
                reason = "amendment"
            else:
                reason = "duplicate" if instance == self.totals.instance else "other_instance"
            counts[Count("ignored", reason)] += 1

    def _add(self, rows: pa.RecordBatch, changes: Changes) -> None:
        """Row by row and in order, so that the sums are the same however the rows were cut into records."""
        columns = ("session_id", "policy", "model_version", "reward", "ts_ms", "ends_session")
        touched: set[SessionKey] = set()
        versions: set[Version] = set()
        for session_id, policy, model_version, reward, ts_ms, is_last in zip(*(rows[name].to_pylist() for name in columns), strict=True):
            version = (policy, model_version)
            versions.add(version)
            _add_page(self.versions.setdefault(version, VersionReward()), reward, ts_ms)
            session_key = (session_id, arm_of(policy, model_version))
            touched.add(session_key)
            _add_page(self.open.setdefault(session_key, OpenSession()), reward, ts_ms)
            if is_last:
                self._finish([key for arm in ARMS if (key := (session_id, arm)) in self.open], changes)
        for key in touched & self.open.keys():
            changes.append((_OPEN + msgspec.msgpack.encode(key), msgspec.msgpack.encode(self.open[key])))
        for version in versions:
            changes.append((version_key(_VERSION, version), msgspec.msgpack.encode(self.versions[version])))
        self._keep_newest_versions(changes)

    def _finish(self, keys: Iterable[SessionKey], changes: Changes) -> None:
        """Turn sessions into moments. Their row goes even where it was never stored: that is harmless."""
        for key in keys:
            session = self.open.pop(key)
            self.finished[key[1]].add(session.pages, session.reward)
            changes.append((_OPEN + msgspec.msgpack.encode(key), None))
        changes.append((_MOMENTS, msgspec.msgpack.encode(self.finished)))

    def _advance(self, watermark_ms: int, changes: Changes) -> None:
        """Move event time on; look for silent sessions eight times per idle time, and for too many at once."""
        before_ms, now_ms = self.totals.watermark_ms, max(self.totals.watermark_ms, watermark_ms)
        self.totals.watermark_ms = now_ms
        self.seen.forget(now_ms, changes)
        idle_ms = self._settings.session_idle_s * 1000
        if before_ms * _EXPIRIES_PER_IDLE_TIME // idle_ms != now_ms * _EXPIRIES_PER_IDLE_TIME // idle_ms:
            silent = sorted(key for key, session in self.open.items() if session.newest_ms < now_ms - idle_ms)
            if silent:
                self._finish(silent, changes)
        if len(self.open) > self._settings.open_sessions_max:
            surplus = len(self.open) - self._settings.open_sessions_max + self._settings.open_sessions_max // _EVICTED_SHARE
            self._finish(heapq.nsmallest(surplus, self.open, key=lambda key: (self.open[key].newest_ms, key)), changes)

    def _keep_newest_versions(self, changes: Changes) -> None:
        while len(self.versions) > self._settings.versions_max:
            oldest = min(self.versions, key=lambda version: (self.versions[version].newest_ms, version))
            del self.versions[oldest]
            changes.append((version_key(_VERSION, oldest), None))


def _add_page(sums: VersionReward | OpenSession, reward: float, ts_ms: int) -> None:
    sums.pages += 1
    sums.reward += reward
    sums.newest_ms = max(sums.newest_ms, ts_ms)
