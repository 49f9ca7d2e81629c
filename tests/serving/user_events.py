"""Feedback of a few users for the user state's tests."""

import random

from headrace.step import Record
from schemas.feedback import Feedback, encode_feedback
from serving.user_state.settings import UserStateSettings

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TICK_MS = 4 * HOUR_MS
NOW_MS = 1_700_000_000_000
SETTINGS = UserStateSettings(kinds=("click", "pay"), max_events=6, recent_items=3)


def click(event: int, ago_ms: int, user: str = "u-1", kind: str = "click", item: str = "", category: str = "") -> Feedback:
    return Feedback(
        event_id=f"e-{event}",
        request_id="r",
        user_id=user,
        item_id=item or f"i-{event}",
        ts_ms=NOW_MS - ago_ms,
        kind=kind,
        category=category,
    )


def records(events: list[Feedback], first_offset: int = 0) -> list[Record]:
    return [Record(offset, NOW_MS, encode_feedback(event)) for offset, event in enumerate(events, first_offset)]


def log_of(events: int, seed: int, days: float = 20.0, users: int = 5) -> list[Feedback]:
    """Events in the order in which they came: by time, give or take a minute; some at the same time, one in ten there twice."""
    rng = random.Random(seed)
    made = []
    for number in range(events):
        ago_ms = int(days * DAY_MS * (1 - number / events)) + rng.randrange(-60_000, 60_000)
        kind = rng.choice(["click", "click", "pay", "dwell"])
        ago_ms = max(0, ago_ms - ago_ms % TICK_MS)
        made.append(click(number, ago_ms, f"u-{rng.randrange(users)}", kind, category=rng.choice(["", "a", "b"])))
        if rng.random() < 0.1:
            made.append(made[-1 - rng.randrange(min(len(made), 5))])
    return made
