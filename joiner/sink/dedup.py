"""Which samples are there already: their keys as 64-bit hashes, at least the newest ones. Pure."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.topics import SAMPLES

Hashes = npt.NDArray[np.uint64]

PAGE_KEY = ("request_id", "source_offset")
ROW_KEY = (*PAGE_KEY, "item_id", "closed_by")


def key_columns(topic: str) -> tuple[str, ...]:
    """What tells one sample from another.

    In `samples` all rows of a page leave together, in one batch: the page is the key. Of other topics a page's rows may leave one by
    one, and an item more than once. The offset says which exposure it was, the request id that it is not one of an earlier topic.
    """
    return PAGE_KEY if topic == SAMPLES else ROW_KEY


def key_hashes(columns: Sequence[pa.Array]) -> Hashes:
    """A hash a row. It holds within this process: Python salts the hashes of strings. Two keys of 1e6 collide with 3e-8."""
    hashes: Hashes = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        hashes = _mixed(hashes ^ _values(column))
    return hashes


def _values(column: pa.Array) -> Hashes:
    if pa.types.is_integer(column.type):
        integers: Hashes = column.to_numpy().astype(np.int64).view(np.uint64)
        return integers
    encoded = column.dictionary_encode()  # the rows of a page have the same id
    distinct = np.fromiter(map(hash, encoded.dictionary.to_pylist()), np.int64, len(encoded.dictionary))
    hashes: Hashes = distinct.view(np.uint64)[encoded.indices.to_numpy()]
    return hashes


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of splitmix64: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


class SeenKeys:
    """The newest `horizon` keys at least, and at most twice as many: when so many were added, those before them are forgotten."""

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self._older: list[Hashes] = []
        self._newer: list[Hashes] = []
        """Sorted, each less than half as long as the one before it: a key is looked for in a dozen arrays at most."""
        self._added = 0

    def are_known(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these were added before."""
        known = np.zeros(len(hashes), np.bool_)
        for sorted_hashes in (*self._older, *self._newer):
            places = np.searchsorted(sorted_hashes, hashes)
            known |= sorted_hashes[np.minimum(places, len(sorted_hashes) - 1)] == hashes
        return known

    def add(self, hashes: Hashes) -> None:
        """Remember them. One that is in `hashes` more than once counts once."""
        added = np.unique(hashes)
        if not self._horizon or not len(added):
            return
        if self._added >= self._horizon:
            self._older, self._newer, self._added = self._newer, [], 0
        self._added += len(added)
        while self._newer and len(self._newer[-1]) < 2 * len(added):
            added = np.sort(np.concatenate([self._newer.pop(), added]), kind="stable")
        self._newer.append(added)
