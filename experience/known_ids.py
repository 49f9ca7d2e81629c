"""Ids that were there before: of the pages that were delivered already."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Runs = list[tuple[Ints, Ints]]


class KnownIds:
    """Ids in blocks, 16 bytes each: a hash, and its block's newest ts_ms.

    One in 10**12 unknown ids may be taken for a known one. They lie in sorted runs, each more than twice as long as the next:
    live traffic brings blocks of one id by the ten thousand, and a look into each of them would take longer than all else.
    """

    def __init__(self) -> None:
        self._runs: Runs = []
        self._newest_ms = self._forgotten_ms = 0

    def add(self, max_ts_ms: int, ids: Sequence[str]) -> None:
        """The ids of one block, and its newest event time."""
        self._newest_ms = max(self._newest_ms, max_ts_ms)
        self._runs.append((np.sort(_hashes(ids)), np.full(len(ids), max_ts_ms)))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            self._merge_last_two()

    def expire(self, before_ms: int) -> None:
        """Forget blocks older than `before_ms`."""
        self._forgotten_ms = before_ms
        if self._newest_ms < before_ms:
            self._runs.clear()

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of some ids that are known."""
        if not ids or not self._runs:
            return set()
        hashes = _hashes(ids)
        found = np.zeros(len(hashes), np.bool_)
        for run, max_ts_ms in self._runs:
            # The last of equal hashes is the newest: an id may come, and be added, once more.
            places = np.maximum(np.searchsorted(run, hashes, side="right") - 1, 0)
            found |= (run[places] == hashes) & (max_ts_ms[places] >= self._forgotten_ms)
        return {ids[place] for place in np.flatnonzero(found).tolist()}

    def _merge_last_two(self) -> None:
        """Make one run of them, without what is forgotten."""
        hashes, max_ts_ms = map(np.concatenate, zip(self._runs.pop(-2), self._runs.pop(), strict=True))
        kept = max_ts_ms >= self._forgotten_ms
        hashes, max_ts_ms = hashes[kept], max_ts_ms[kept]
        order = np.lexsort((max_ts_ms, hashes))
        if len(order):
            self._runs.append((hashes[order], max_ts_ms[order]))


def _hashes(ids: Sequence[str]) -> Ints:
    return np.fromiter(map(hash, ids), np.int64, len(ids))
