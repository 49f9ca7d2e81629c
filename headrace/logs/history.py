"""What is known of a user at a moment of a recorded log: only what comes before it in event time, as a live system would log it."""

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field

from schemas.exposure import FeatureValue
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature

RECENT_ITEMS = 20
"""Length of the sequences of item ids."""
SESSION_GAP_MS = 30 * 60 * 1000
"""A pause that ends a session, for the feature `log_session_pages` only: the usual half an hour of web analytics."""
_HOUR_MS = 3_600_000
_RECENCY: tuple[tuple[str, int], ...] = (
    ("1h", _HOUR_MS),
    ("6h", 6 * _HOUR_MS),
    ("1d", 24 * _HOUR_MS),
    ("3d", 72 * _HOUR_MS),
    ("1w", 168 * _HOUR_MS),
)
"""The windows of Meituan's binary sequences; nested ones hold no more than the smallest that the newest event lies in."""


@dataclass
class UserPast:
    """One user's past, moved on event by event."""

    pages: int = 0
    session_pages: int = 0
    newest_page_ms: int | None = None
    counts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    newest_ms: dict[str, int] = field(default_factory=dict)
    """Time of the newest feedback, by kind."""
    recent: defaultdict[str, deque[str]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT_ITEMS)))
    """Newest ids, by feature name, newest last."""

    def on_page(self, ts_ms: int, ids: dict[str, str]) -> None:
        """A page was shown: `ids` are remembered in the sequences named by their keys."""
        fresh = self.newest_page_ms is None or ts_ms - self.newest_page_ms > SESSION_GAP_MS
        self.session_pages = 1 if fresh else self.session_pages + 1
        self.pages += 1
        self.newest_page_ms = ts_ms
        for name, value in ids.items():
            self.recent[name].append(value)

    def on_feedback(self, kind: str, ts_ms: int, item_id: str) -> None:
        """The user reacted to an item."""
        self.counts[kind] += 1
        self.newest_ms[kind] = ts_ms
        self.recent[f"recent_{kind}"].append(item_id)

    def state(self, ts_ms: int, kinds: tuple[str, ...], sequences: tuple[str, ...], utc_offset_h: int) -> dict[str, FeatureValue]:
        """The served state at `ts_ms`, with counts and recency of `kinds` and the recent ids of `sequences`."""
        local_h = ts_ms // _HOUR_MS + utc_offset_h
        gap_ms = 0 if self.newest_page_ms is None else ts_ms - self.newest_page_ms
        state: dict[str, FeatureValue] = {
            "hour": str(local_h % 24),
            "weekday": str((local_h // 24 + 3) % 7),  # 1970-01-01 was a Thursday; Monday is 0
            "log_pages": math.log1p(self.pages),
            "log_session_pages": math.log1p(self.session_pages if gap_ms <= SESSION_GAP_MS else 0),
            "log_gap_s": math.log1p(gap_ms / 1000),
        }
        for kind in kinds:
            state[f"log_{kind}"] = math.log1p(self.counts[kind])
            state[f"since_{kind}"] = _recency(ts_ms, self.newest_ms.get(kind))
        for name in sequences:
            state[name] = list(self.recent[name])
        return state


def history_spec(kinds: tuple[str, ...], sequences: tuple[str, ...], ids: tuple[str, ...] = ()) -> FeatureSpec:
    """The features that `UserPast.state` gives, and `ids` that the log itself has."""
    return FeatureSpec(
        dense=tuple(
            DenseFeature(name=name) for name in ("log_pages", "log_session_pages", "log_gap_s", *(f"log_{kind}" for kind in kinds))
        ),
        ids=tuple(IdFeature(name=name, buckets=1024, dim=4) for name in ("hour", "weekday", *ids, *(f"since_{kind}" for kind in kinds))),
        sequences=tuple(SequenceFeature(name=name, length=RECENT_ITEMS, buckets=8192, dim=16) for name in sequences),
    )


def _recency(ts_ms: int, newest_ms: int | None) -> str:
    """The smallest window that holds the newest event; empty where none does."""
    if newest_ms is None:
        return ""
    return next((name for name, window_ms in _RECENCY if ts_ms - newest_ms <= window_ms), "")
