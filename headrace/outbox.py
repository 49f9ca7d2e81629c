"""Events that are not sent yet: each leaves when it is due, so late ones come out of order."""

from heapq import heappop, heappush
from typing import NamedTuple


class Event(NamedTuple):
    """One message for a topic."""

    topic: str
    key: str
    value: bytes


class Outbox:
    """Events by the time at which they are due; those of the same time in the order of their coming."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Event]] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: Event, due_ms: float) -> None:
        """Keep an event until `due_ms`."""
        heappush(self._waiting, (due_ms, self._added, event))
        self._added += 1

    def due(self, now_ms: float, at_most: int) -> list[Event]:
        """Take out what is due, earliest first."""
        events: list[Event] = []
        while self._waiting and self._waiting[0][0] <= now_ms and len(events) < at_most:
            events.append(heappop(self._waiting)[2])
        return events
