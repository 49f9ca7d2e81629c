"""Ids as numbers: CRC-32, the same on every machine, and the row of a table that a number belongs to."""

from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]

PADDING = 0
"""Row 0 of every embedding table: no id."""
MISSING = -1
"""The number of no id."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2**64 / golden ratio, odd: Fibonacci hashing (Knuth, TAOCP 3, 6.4) spreads neighbouring numbers over all bits."""


class _IdHashes(dict[str, int]):
    """CRC-32 by id, MISSING for no id: the ids of a stream come again and again. Forgets everything when full (some 15 MB)."""

    ENTRIES = 1 << 17
    LONGEST = 64
    """Characters of an id that is worth remembering."""

    def __missing__(self, value: str) -> int:
        if not isinstance(value, str):
            raise TypeError(value)
        crc = crc32(value.encode()) if value else MISSING
        if len(self) >= self.ENTRIES:
            self.clear()
        if len(value) <= self.LONGEST:
            self[value] = crc
        return crc


_crc_of = _IdHashes().__getitem__


def crcs(ids: Iterable[Any], count: int) -> Ints:
    """The numbers of `count` ids. Raises TypeError where one is no string."""
    return np.fromiter(map(_crc_of, ids), np.int64, count)


def crcs_of_column(ids: pa.StringArray) -> Ints:
    """The numbers of a column: every distinct id is hashed once. A null is no id."""
    encoded = ids.dictionary_encode()
    of_distinct = crcs(encoded.dictionary.to_pylist(), len(encoded.dictionary))
    of_distinct = np.append(of_distinct, MISSING)
    places: Ints = encoded.indices.fill_null(len(of_distinct) - 1).to_numpy()
    return of_distinct[places]


def rows_of(numbers: Ints, buckets: int | Ints) -> Ints:
    """The rows of tables with so many `buckets`; PADDING for no id."""
    return np.where(numbers == MISSING, PADDING, 1 + numbers % (buckets - 1))


def crossed(parts: Sequence[Ints]) -> Ints:
    """One number for each combination of numbers, in their order; MISSING where one of them is."""
    mixed = np.zeros(parts[0].shape, np.uint64)
    is_missing = np.zeros(parts[0].shape, np.bool_)
    for part in parts:
        mixed = (mixed ^ part.astype(np.uint64)) * np.uint64(_GOLDEN)
        mixed ^= mixed >> np.uint64(32)
        is_missing |= part == MISSING
    return np.where(is_missing, MISSING, (mixed >> np.uint64(1)).astype(np.int64))
