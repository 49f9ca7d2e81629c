"""Requests whose pages are closed: feedback on them is late, not unknown."""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from joiner.labels import Ints


class ClosedPages:
    """The requests of closed blocks, 8 bytes each: their hashes. One in 10**12 unknown requests may be taken for a closed one."""

    def __init__(self) -> None:
        self._by_block: dict[int, Ints] = {}
        self._oldest: list[tuple[int, int]] = []  # heap of (newest ts_ms, first offset)

    def add(self, max_ts_ms: int, first_offset: int, request_ids: Sequence[str]) -> None:
        """The requests of one block; its newest exposure and its first offset."""
        self._by_block[first_offset] = np.sort(_hashes(request_ids))
        heappush(self._oldest, (max_ts_ms, first_offset))

    def expire(self, before_ms: int) -> list[int]:
        """Forget blocks older than `before_ms`; their first offsets."""
        forgotten = []
        while self._oldest and self._oldest[0][0] < before_ms:
            _, first_offset = heappop(self._oldest)
            del self._by_block[first_offset]
            forgotten.append(first_offset)
        return forgotten

    def known(self, request_ids: Sequence[str]) -> set[str]:
        """Those of some requests that belong to closed pages."""
        hashes = _hashes(request_ids)
        found = np.zeros(len(hashes), np.bool_)
        for block in self._by_block.values():
            found |= block[np.minimum(np.searchsorted(block, hashes), len(block) - 1)] == hashes
        return {request_ids[place] for place in np.flatnonzero(found).tolist()}


def _hashes(request_ids: Sequence[str]) -> Ints:
    return np.fromiter(map(hash, request_ids), np.int64, len(request_ids))
