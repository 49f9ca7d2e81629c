"""Feedback that came ahead of its exposure: the two topics are read independently of each other."""

from heapq import heappop, heappush

from headrace.step import Record
from schemas.feedback import Feedback

Waiting = tuple[Record, Feedback]


class WaitingFeedback:
    """Feedback by the request that it waits for, in offset order. Duplicates wait too: whether the first one counts is not known yet."""

    def __init__(self) -> None:
        self._by_request: dict[str, dict[int, Waiting]] = {}
        self._oldest: list[tuple[int, int, str]] = []  # heap of (ts_ms, offset, request_id), some of them no longer waiting
        self.offsets: set[int] = set()

    def __len__(self) -> int:
        return len(self.offsets)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_request

    def add(self, record: Record, feedback: Feedback) -> None:
        """From now on it waits."""
        self._by_request.setdefault(feedback.request_id, {})[record.offset] = record, feedback
        self.offsets.add(record.offset)
        heappush(self._oldest, (feedback.ts_ms, record.offset, feedback.request_id))

    def take(self, request_id: str) -> list[Waiting]:
        """Everything that waited for this request."""
        taken = self._by_request.pop(request_id)
        self.offsets.difference_update(taken)
        return list(taken.values())

    def expire(self, before_ms: int) -> list[Waiting]:
        """Give up on feedback older than `before_ms`, oldest first."""
        expired = []
        while self._oldest and self._oldest[0][0] < before_ms:
            _, offset, request_id = heappop(self._oldest)
            if offset in self.offsets:  # else it was taken meanwhile
                self.offsets.remove(offset)
                by_offset = self._by_request[request_id]
                expired.append(by_offset.pop(offset))
                if not by_offset:
                    del self._by_request[request_id]
        return expired
