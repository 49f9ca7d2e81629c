"""One partition of the user state: feedback in, users' histories as rows. Pure; `headrace/stage.py` stores rows and offsets together.

    b"u" + user_id              the user's history (MessagePack)
    b"h" + hour + user_id       by the hour of the user's newest event, empty: finds the users of whom nothing was heard for the horizon
    b"o"                        by hour of event time the first offset of the topic with an event of it

Without the disk the state is rebuilt from the offset of the oldest event within the horizon: nothing older has an effect on a feature.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

import msgspec

from headrace.step import Count, Outcome, Record, StoredRows
from schemas.codec import UNREADABLE, decode_feedback
from schemas.event_format import EventFormat
from schemas.feedback import Feedback
from serving.user_state.history import Events, History, decode_history, encode_history, newest_ms
from serving.user_state.settings import UserStateSettings

STAGE = "user-state"
LAYOUT = 1
USER, HOUR, OFFSETS = b"u", b"h", b"o"
ROW_KINDS = {USER: "users", HOUR: "newest_hours", OFFSETS: "offsets"}
HOUR_MS = 3_600_000
FORGOTTEN_A_TICK = 10_000
"""Users: their rows go within some tens of milliseconds, so that no tick holds a batch up for long."""

_decode_offsets = msgspec.msgpack.Decoder(dict[int, int]).decode
_encode_offsets = msgspec.msgpack.Encoder().encode


def redis_name(group_prefix: str) -> str:
    """What the state is called in a server that others use, too."""
    return f"{group_prefix}-{STAGE}"


def user_row(user_id: str) -> bytes:
    """The key of a user's history."""
    return USER + user_id.encode()


def _hour_row(hour: int, user_id: str) -> bytes:
    return HOUR + hour.to_bytes(4, "big") + user_id.encode()


class PartitionUserState:
    """What is remembered of the users of one partition. In memory are only the offsets by hour."""

    def __init__(self, settings: UserStateSettings, stored: StoredRows, feedback_format: EventFormat | None = None) -> None:
        stored.require_layout(LAYOUT)
        self._settings = settings
        self._stored = stored
        self._kinds = frozenset(settings.kinds)
        self._to_json = feedback_format.to_json if feedback_format else bytes
        (offsets,) = stored.find([OFFSETS])
        self._first_offset: dict[int, int] = _decode_offsets(offsets) if offsets else {}
        """By hour of event time, within the horizon."""

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        """Put each event into its user's history."""
        outcome = Outcome()
        outcome.counts[Count("in", topic)] = len(records)
        by_user: dict[str, list[Feedback]] = {}
        known_offsets = self._first_offset.copy()
        for record in records:
            feedback = self._read(record, now_ms)
            if isinstance(feedback, str):
                outcome.counts[Count("ignored", feedback)] += 1
            else:
                by_user.setdefault(feedback.user_id, []).append(feedback)
        self._remember(by_user, outcome)
        self._first_offset = {hour: offset for hour, offset in self._first_offset.items() if hour >= self._oldest_hour()}
        if self._first_offset != known_offsets:
            outcome.changes.append((OFFSETS, _encode_offsets(self._first_offset)))
        outcome.needed_from[topic] = min(self._first_offset.values(), default=records[-1].offset + 1)
        return outcome

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        """Forget users of whom nothing was heard for the horizon, in event time: the wall clock has no effect."""
        outcome = Outcome()
        oldest = _hour_row(max(0, self._oldest_hour()), "")
        for key, _ in islice(self._stored.rows(HOUR), FORGOTTEN_A_TICK):
            if key >= oldest:
                break
            outcome.changes += [(key, None), (USER + key[len(HOUR) + 4 :], None)]
        outcome.counts[Count("ignored", "user_forgotten")] += len(outcome.changes) // 2
        outcome.counts = +outcome.counts
        return outcome

    def gauges(self) -> Mapping[str, float]:
        """The newest hour that is known of, as a time."""
        return {"newest_hour_ms": HOUR_MS * max(self._first_offset, default=0)}

    def _oldest_hour(self) -> int:
        """Of events that still count, with room for clocks that are apart."""
        newest = max(self._first_offset, default=0) * HOUR_MS
        return (newest - self._settings.horizon_ms - self._settings.max_future_ms) // HOUR_MS - 1

    def _read(self, record: Record, now_ms: int) -> Feedback | str:
        """The event, or why it does not count. What is malformed or ahead of time has a dead letter of the joiner's already."""
        try:
            feedback = decode_feedback(self._to_json(record.value))
        except UNREADABLE:
            return "malformed"
        if feedback.ts_ms > now_ms + self._settings.max_future_ms:
            return "future"
        hour = feedback.ts_ms // HOUR_MS
        if hour < self._oldest_hour():
            return "expired"
        # any event moves time on, so that what must be read again does not depend on the kinds that are kept
        self._first_offset[hour] = min(record.offset, self._first_offset.get(hour, record.offset))
        return feedback if feedback.kind in self._kinds else "unknown_kind"

    def _remember(self, by_user: dict[str, list[Feedback]], outcome: Outcome) -> None:
        users = list(by_user)
        for user_id, row in zip(users, self._stored.find([user_row(user_id) for user_id in users]), strict=True):
            history: History = decode_history(row) if row else {}
            was_newest = newest_ms(history) // HOUR_MS if history else None
            is_new = [self._add(history, feedback) for feedback in by_user[user_id]]
            outcome.counts[Count("ignored", "duplicate")] += is_new.count(False)
            if not any(is_new):
                continue
            outcome.changes.append((user_row(user_id), encode_history(history)))
            newest = newest_ms(history) // HOUR_MS
            if newest != was_newest:
                if was_newest is not None:
                    outcome.changes.append((_hour_row(was_newest, user_id), None))
                outcome.changes.append((_hour_row(newest, user_id), b""))
        outcome.counts = +outcome.counts

    def _add(self, history: History, feedback: Feedback) -> bool:
        events = history.setdefault(feedback.kind, Events())
        return events.add(feedback.ts_ms, feedback.event_id, feedback.item_id, feedback.category, self._settings.max_events)
