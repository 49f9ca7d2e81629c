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
    of_distinct = np.append(_crcs_of_distinct(encoded.dictionary), MISSING)
    places: Ints = encoded.indices.fill_null(len(of_distinct) - 1).to_numpy()
    return of_distinct[places]


def _crcs_of_distinct(ids: pa.StringArray) -> Ints:
    """CRC-32 of many strings at once, two bytes of all of them at a time; of those that are long, one by one."""
    _, offsets, content = ids.buffers()
    starts = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    lengths = np.diff(starts)
    read = np.frombuffer(content or b"", np.uint8)
    numbers = np.full(len(ids), MISSING, np.int64)
    for place in np.flatnonzero(lengths > _IdHashes.LONGEST).tolist():
        numbers[place] = crc32(read[starts[place] : starts[place + 1]].tobytes())
    is_short = (lengths > 0) & (lengths <= _IdHashes.LONGEST)
    order = np.flatnonzero(is_short)
    order = order[np.argsort(lengths[order].astype(np.uint8), kind="stable")[::-1]]  # the longest first: those that go on lie together
    numbers[order] = _crcs_of_short(read, starts[order], lengths[order])
    return numbers


def _crcs_of_short(read: npt.NDArray[np.uint8], starts: Ints, lengths: Ints) -> npt.NDArray[np.uint32]:
    pairs = read[:-1] | read[1:].astype(np.uint16) << 8
    crcs = np.full(len(starts), 0xFFFFFFFF, np.uint32)
    longer_than = np.searchsorted(-lengths, -np.arange(lengths[0] + 2 if len(lengths) else 1), side="left").tolist()
    for at in range(0, len(longer_than) - 2, 2):
        of_two, of_any = longer_than[at + 1], longer_than[at]
        last = crcs[of_two:of_any]
        crcs[of_two:of_any] = _OF_BYTE[(last ^ read[starts[of_two:of_any] + at]) & 0xFF] ^ (last >> 8)
        crc = crcs[:of_two]
        crcs[:of_two] = _OF_PAIR[(crc & 0xFFFF) ^ pairs[starts[:of_two] + at]] ^ (crc >> 16)
    return ~crcs


def _table() -> npt.NDArray[np.uint32]:
    """What each byte does to a CRC-32 (reversed polynomial 0xEDB88320, as in zlib)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0xEDB88320), table >> 1)
    return table


_OF_BYTE = _table()
_OF_PAIR = _OF_BYTE[np.arange(1 << 16) >> 8 ^ (_OF_BYTE[np.arange(1 << 16) & 0xFF] & 0xFF)] ^ (_OF_BYTE[np.arange(1 << 16) & 0xFF] >> 8)


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
