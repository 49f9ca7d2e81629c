"""The alert rule `rejected_share`: too many of the lately arrived events were refused."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from monitor.settings import MonitorSettings
from monitor.window import Bucket
from schemas.alert import Alert

REJECTED_SHARE = "rejected_share"


@dataclass(frozen=True)
class Judged:
    """What the rule made of the window that ends with one bucket. `share` is None where there were too few events to judge."""

    end_ms: int
    share: float | None
    firing: bool


class RejectedShare:
    """Fires when more than `rejected_share_max` of a window's events were refused; ends when it is down to `rejected_share_resolved`.

    Events are refusals (dead letters), joined pages and the feedback on them, by the time of their arrival here. A window with
    fewer than `min_events` leaves things as they are, except that an empty one ends the alert.

    It has no state to lose: the whole history of buckets (they are durable, in the tallies) is judged anew each time, and what is
    firing follows. So a restarted monitor knows what it had said. It says the last change once more, with the same `ts_ms`, for it
    cannot know whether that reached anybody: receivers tell alerts apart by (rule, state, ts_ms). An alert older than the history
    (`window_s` * `history_windows`) of a share between the two thresholds is forgotten.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self._settings = settings
        self._said: Alert | None = None
        self.latest: Judged | None = None

    @property
    def firing(self) -> bool:
        """Whether the alert is on."""
        return self.latest is not None and self.latest.firing

    def observe(self, buckets: Mapping[int, Bucket], now_ms: int) -> list[Alert]:
        """The alerts to send now: none or one. `buckets` are those of all partitions (monitor.window.merged)."""
        was_firing = self._said is not None and self._said.state == "firing"
        firing, change = was_firing, None
        for judged in self.judge(buckets, now_ms, was_firing):
            if judged.firing != firing:
                firing, change = judged.firing, judged
            self.latest = judged
        if change is None or (self._said is not None and firing == was_firing):
            return []
        self._said = self._alert(change)
        return [self._said]

    def judge(self, buckets: Mapping[int, Bucket], now_ms: int, firing: bool = False) -> Iterator[Judged]:
        """Every complete window of the history, oldest first. `firing` is taken to hold before it.

        A page is accepted when it leaves the joiner, a join window after the refusals of its time. So the first window judged is the
        first in which pages could come all along; where there are none at all, one that a whole history has waited for.
        """
        if not buckets:
            return
        bucket_ms = self._settings.bucket_s * 1000
        per_window = self._settings.window_s // self._settings.bucket_s
        kept = self._settings.history_s // self._settings.bucket_s
        first = min((number for number, bucket in buckets.items() if bucket.accepted), default=min(buckets) + kept - per_window)
        last = (now_ms - self._settings.settle_s * 1000) // bucket_ms - 1
        for end in range(max(first, last - kept) + per_window - 1, last + 1):
            window = [buckets[number] for number in range(end - per_window + 1, end + 1) if number in buckets]
            refused = sum(bucket.refused for bucket in window)
            events = refused + sum(bucket.accepted for bucket in window)
            share = refused / events if events >= self._settings.min_events else None
            if share is not None:
                firing = share > (self._settings.rejected_share_resolved if firing else self._settings.rejected_share_max)
            elif not events:
                firing = False
            yield Judged((end + 1) * bucket_ms, share, firing)

    def _alert(self, judged: Judged) -> Alert:
        share = judged.share or 0.0
        threshold = self._settings.rejected_share_max if judged.firing else self._settings.rejected_share_resolved
        return Alert(
            rule=REJECTED_SHARE,
            state="firing" if judged.firing else "resolved",
            summary=(
                f"{share:.1%} of the events of the last {self._settings.window_s} s were refused "
                f"({'allowed' if judged.firing else 'resolved at'}: {threshold:.1%})"
            ),
            measured=share,
            threshold=threshold,
            ts_ms=judged.end_ms,
        )
