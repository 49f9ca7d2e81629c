"""Which ids were counted already: what makes a re-delivered row harmless."""

from collections import deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 8
"""Two of a million remembered ids share a digest with probability 3e-8 (birthday bound n^2 / 2^65)."""

Changes = list[tuple[bytes, bytes | None]]


def _digest(identity: str) -> bytes:
    return blake2b(identity.encode(), digest_size=DIGEST_BYTES).digest()


class Seen:
    """The ids of one topic's last records, one stored row a record: its newest time, then the digests that were new in it.

    An id is forgotten with its record, once the record's newest row lies `horizon_ms` behind the time given, or when more than
    `ids_max` ids are remembered (oldest records first, the newest one stays). Rows are `prefix` + offset (8 bytes, big-endian).
    """

    def __init__(self, prefix: bytes, horizon_ms: int, ids_max: int, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._prefix = prefix
        self._horizon_ms = horizon_ms
        self._ids_max = ids_max
        self._ids: set[bytes] = set()
        self._records: deque[tuple[bytes, int, list[bytes]]] = deque()
        for key, row in stored:
            digests = [row[start : start + DIGEST_BYTES] for start in range(8, len(row), DIGEST_BYTES)]
            self._records.append((key, int.from_bytes(row[:8], "big"), digests))
            self._ids.update(digests)

    def __len__(self) -> int:
        return len(self._ids)

    def fresh(self, offset: int, ids: Sequence[str], newest_ms: int, changes: Changes) -> list[bool]:
        """Which of a record's `ids` were not remembered; from now on they are. `newest_ms` is the time of its newest row."""
        mask = []
        new = []
        for identity in ids:
            digest = _digest(identity)
            mask.append(digest not in self._ids)
            if mask[-1]:
                self._ids.add(digest)
                new.append(digest)
        if new:
            key = self._prefix + offset.to_bytes(8, "big")
            self._records.append((key, newest_ms, new))
            changes.append((key, newest_ms.to_bytes(8, "big") + b"".join(new)))
        return mask

    def forget(self, now_ms: int, changes: Changes) -> None:
        """Drop the oldest records that are out of the horizon at `now_ms` (event time or arrival time: whichever `newest_ms` is)."""
        while self._records and (
            self._records[0][1] < now_ms - self._horizon_ms or (len(self._ids) > self._ids_max and len(self._records) > 1)
        ):
            key, _, digests = self._records.popleft()
            self._ids.difference_update(digests)
            changes.append((key, None))
