"""Ids as numbers, the same on every machine: CRC-32 and the row of a hashed table that it belongs to, or a key that no two ids share."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
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


def _key(value: str) -> int:
    """63 bits of BLAKE2: among ten million ids two have the same with a probability of 5e-6. 0 is PADDING, 1 is nobody's."""
    return max(2, int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little") >> 1)


class _IdHashes(dict[str, int]):
    """A number by id, MISSING for no id: the ids of a stream come again and again. Forgets everything when full (some 15 MB)."""

    ENTRIES = 1 << 17
    LONGEST = 64
    """Characters of an id that is worth remembering."""

    def __init__(self, number_of: Callable[[str], int]) -> None:
        super().__init__()
        self._number_of = number_of

    def __missing__(self, value: str) -> int:
        if not isinstance(value, str):
            raise TypeError(value)
        number = self._number_of(value) if value else MISSING
        if len(self) >= self.ENTRIES:
            self.clear()
        if len(value) <= self.LONGEST:
            self[value] = number
        return number


_crc_of = _IdHashes(lambda value: crc32(value.encode())).__getitem__
_key_of = _IdHashes(_key).__getitem__


def crcs(ids: Iterable[Any], count: int) -> Ints:
    """The numbers of `count` ids. Raises TypeError where one is no string."""
    return np.fromiter(map(_crc_of, ids), np.int64, count)


def keys(ids: Iterable[Any], count: int) -> Ints:
    """The keys of `count` ids, of a table that shares no rows. Raises TypeError where one is no string."""
    return np.fromiter(map(_key_of, ids), np.int64, count)


def keys_of_column(ids: pa.StringArray) -> Ints:
    """The keys of a column. A null is no id."""
    encoded = ids.dictionary_encode()
    of_distinct = keys([*encoded.dictionary.to_pylist(), ""], len(encoded.dictionary) + 1)
    places: Ints = encoded.indices.fill_null(len(of_distinct) - 1).to_numpy()
    return of_distinct[places]


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
    """The rows of tables with so many `buckets`, or the numbers as they are with 0 of them; PADDING for no id."""
    if isinstance(buckets, int) and not buckets:
        return np.where(numbers == MISSING, PADDING, numbers)
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
