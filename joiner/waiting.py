"""Feedback that came ahead of its exposure: the two topics are read independently of each other."""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import numpy as np

from headrace.step import Outcome, Record, StoredRows
from joiner.labels import Ints
from joiner.request_index import RequestIndex, hashes_of
from joiner.rows import pack_record, row_key, unpack_record
from schemas.codec import decode_feedback
from schemas.feedback import Feedback

Waiting = tuple[Record, Feedback]


class WaitingFeedback:
    """What waits lies in the store, a row each; in memory are its request's hash, its time and its offset.

    Duplicates wait too: whether the first one counts is not known yet.
    """

    def __init__(self, stored: StoredRows) -> None:
        self._stored = stored
        self._index = RequestIndex()  # of the requests: the offsets of their feedback
        self._oldest: list[tuple[int, int]] = []  # heap of (ts_ms, offset), some of them no longer waiting
        self._unstored: dict[int, Waiting] = {}  # by offset
        self.offsets: set[int] = set()

    def __len__(self) -> int:
        return len(self.offsets)

    def begin_call(self) -> None:
        """What earlier calls added is in the store by now."""
        self._unstored.clear()

    def add(self, waiting: Sequence[Waiting], outcome: Outcome) -> None:
        """From now on they wait."""
        self._unstored.update((record.offset, (record, feedback)) for record, feedback in waiting)
        outcome.changes += [(row_key(b"w", record.offset), pack_record(record)) for record, _ in waiting]
        self._hold(waiting)

    def recover(self) -> None:
        """What waited in an earlier life."""
        self._hold(_opened(int.from_bytes(key[1:], "big"), row) for key, row in self._stored.rows(b"w"))

    def take(self, request_ids: Sequence[str], hashes: Ints, outcome: Outcome) -> list[Waiting]:
        """Everything that waited for these requests, whose hashes are given, by offset."""
        places, offsets = self._index.find(hashes)
        wanted = {request_ids[place] for place in places.tolist()}
        taken = [waiting for waiting in self._read(np.unique(offsets).tolist()) if waiting[1].request_id in wanted]
        self._drop(taken, outcome)
        return taken

    def expire(self, before_ms: int, outcome: Outcome) -> list[Waiting]:
        """Give up on feedback older than `before_ms`, oldest first."""
        offsets = []
        while self._oldest and self._oldest[0][0] < before_ms:
            offset = heappop(self._oldest)[1]
            if offset in self.offsets:  # else it was taken meanwhile
                offsets.append(offset)
        expired = self._read(offsets)
        self._drop(expired, outcome)
        return expired

    def _hold(self, waiting: Iterable[Waiting]) -> None:
        request_ids, offsets = [], []
        for record, feedback in waiting:
            heappush(self._oldest, (feedback.ts_ms, record.offset))
            request_ids.append(feedback.request_id)
            offsets.append(record.offset)
        self.offsets.update(offsets)
        self._index.add(hashes_of(request_ids), np.array(offsets, np.int64))

    def _read(self, offsets: Sequence[int]) -> list[Waiting]:
        fresh = [self._unstored.get(offset) for offset in offsets]
        stored = [offset for offset, waiting in zip(offsets, fresh, strict=True) if waiting is None]
        rows = iter(self._stored.get([row_key(b"w", offset) for offset in stored]) if stored else ())
        return [waiting or _opened(offset, next(rows)) for offset, waiting in zip(offsets, fresh, strict=True)]

    def _drop(self, waiting: Sequence[Waiting], outcome: Outcome) -> None:
        offsets = [record.offset for record, _ in waiting]
        self._index.remove(hashes_of([feedback.request_id for _, feedback in waiting]), np.array(offsets, np.int64))
        self.offsets.difference_update(offsets)
        outcome.changes += [(row_key(b"w", offset), None) for offset in offsets]


def _opened(offset: int, row: bytes) -> Waiting:
    record = unpack_record(offset, row)
    return record, decode_feedback(record.value)
