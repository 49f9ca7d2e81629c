"""The open pages on disk: a log of entries, one a call of the step, whose oldest entry goes when nothing in it is open any more.

| key | value |
|---|---|
| p + entry | the pages that came, as an Arrow record batch |
| q + entry | what became of pages of this entry and of earlier ones: those that left, and those whose place in a session changed |

Written in blocks, a page costs what its bytes cost. Pages that stay open while those around them leave are moved to the newest entry, so
that the log holds at most about twice what is open. Only the oldest entry ever goes: what an entry says is about itself and earlier
ones, so that no entry misses one that has gone.
"""

from collections import deque
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from experience.columns import NUMBERS, PARTS, TEXTS, Columns, concatenated, objects, shared_texts, take
from experience.open_pages import PROGRESS, OpenPages
from experience.reward import Ints
from headrace.step import StoredRows

PAGES, PROGRESSED = b"p", b"q"
LETTERS = (PAGES, PROGRESSED)
ENTRY_BITS = 24
"""A page's serial is its entry's number and its place there."""
SLACK_PAGES = 10_000
"""A log with so few dead pages is left as it is."""

Change = tuple[bytes, bytes | None]


class Progressed(msgspec.Struct, array_like=True):
    """Serials of the pages that left, and columns of PROGRESS with `session_id` of those that changed."""

    gone: bytes
    changed: dict[str, bytes]
    session_ids: list[str]


class _Entry(NamedTuple):
    number: int
    pages: int
    has_progress: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Progressed).decode


class PageLog:
    """Writes entries, and knows how many pages of each are open."""

    def __init__(self, next_entry: int = 0, letters: tuple[bytes, bytes] = LETTERS) -> None:
        self._pages_key, self._progressed_key = letters
        self.next_entry = next_entry
        self._entries: deque[_Entry] = deque()
        self._open: dict[int, int] = {}
        self._logged = 0

    def serials(self, count: int) -> Ints:
        """Serials of the pages that the next entry will hold."""
        assert count < 1 << ENTRY_BITS, count
        return (self.next_entry << ENTRY_BITS) + np.arange(count)

    def to_move(self, table: OpenPages) -> Ints:
        """Slots of pages that must come into the next entry so that old ones can go."""
        moving: list[Ints] = []
        dead = self._logged - len(table)
        for entry in self._entries:
            if dead <= SLACK_PAGES + len(table):
                break
            moving.append(table.with_serials(entry.number << ENTRY_BITS, (entry.number + 1) << ENTRY_BITS))
            dead -= entry.pages - len(moving[-1])
        return np.concatenate(moving) if moving else np.empty(0, np.int64)

    def append(self, pages: Columns | None, moved: Ints, gone: Ints, changed: Columns) -> list[Change]:
        """Write an entry: `pages` with their serials of this entry, the old serials of those `moved` here, what left and what changed.

        Columns of `changed` are those of PROGRESS, and `session_id`.
        """
        changes: list[Change] = []
        number, count = self.next_entry, 0
        if pages is not None:  # those that came and left in one call need no place on disk
            is_own = gone >> ENTRY_BITS == number
            stays = np.ones(len(pages["ts_ms"]), np.bool_)
            stays[gone[is_own] - (number << ENTRY_BITS)] = False
            gone, count = gone[~is_own], int(stays.sum())
            if count:
                changes.append((_key(self._pages_key, number), _encoded(pages if count == len(stays) else take(pages, stays))))
        has_progress = bool(len(gone) + len(changed["serial"]))
        if has_progress:
            columns = {name: changed[name].astype(dtype).tobytes() for name, dtype in PROGRESS.items()}
            progressed = Progressed(gone.astype(np.int64).tobytes(), columns, changed["session_id"].tolist())
            changes.append((_key(self._progressed_key, number), _encode(progressed)))
        if not changes and not len(moved):
            return []
        self._hold(_Entry(number, count, has_progress))
        self._let_go(np.concatenate([moved, gone]))
        return changes + self._forget()

    def _hold(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._open[entry.number] = entry.pages
        self._logged += entry.pages
        self.next_entry = entry.number + 1

    def _let_go(self, serials: Ints) -> None:
        numbers, counts = np.unique(serials >> ENTRY_BITS, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._open[number] -= count

    def _forget(self) -> list[Change]:
        """The oldest entries, as far as nothing of them is open."""
        changes: list[Change] = []
        while self._entries and not self._open[self._entries[0].number]:
            entry = self._entries.popleft()
            del self._open[entry.number]
            self._logged -= entry.pages
            if entry.pages:
                changes.append((_key(self._pages_key, entry.number), None))
            if entry.has_progress:
                changes.append((_key(self._progressed_key, entry.number), None))
        return changes

    def recover(self, stored: StoredRows) -> Columns | None:
        """The open pages with what became of them, and the log as it was; None where nothing is open."""
        progress = {int.from_bytes(key[1:], "big"): _decode(row) for key, row in stored.rows(self._progressed_key)}
        parts = {int.from_bytes(key[1:], "big"): _decoded(row) for key, row in stored.rows(self._pages_key)}
        next_entry = self.next_entry
        for number in sorted({*progress, *parts}):
            self._hold(_Entry(number, len(parts[number]["ts_ms"]) if number in parts else 0, number in progress))
        self.next_entry = next_entry
        if not parts:
            return None
        pages = concatenated([parts[number] for number in sorted(parts)])
        # A page that was moved is in the log more than once: the last is the one that counts.
        gone = np.concatenate([np.frombuffer(progressed.gone, np.int64) for progressed in progress.values()] or [np.empty(0, np.int64)])
        pages = take(pages, ~np.isin(pages["serial"], gone))
        for number in sorted(progress):
            _apply(progress[number], pages)
        for number, count in zip(*np.unique(pages["serial"] >> ENTRY_BITS, return_counts=True), strict=True):
            self._open[int(number)] = int(count)
        open_numbers = set(np.unique(pages["serial"] >> ENTRY_BITS).tolist())
        for number in self._open.keys() - open_numbers:
            self._open[number] = 0
        return pages


def _apply(progressed: Progressed, pages: Columns) -> None:
    changed: dict[str, npt.NDArray[Any]] = {name: np.frombuffer(progressed.changed[name], dtype) for name, dtype in PROGRESS.items()}
    order = np.argsort(pages["serial"])
    places = np.searchsorted(pages["serial"], changed["serial"], sorter=order)
    places = order[np.minimum(places, len(order) - 1)] if len(order) else places
    is_open = pages["serial"][places] == changed["serial"] if len(order) else np.zeros(len(places), np.bool_)
    for name, column in changed.items():
        pages[name][places[is_open]] = column[is_open]
    pages["session_id"][places[is_open]] = objects(progressed.session_ids)[is_open]


def _key(letter: bytes, entry: int) -> bytes:
    return letter + entry.to_bytes(8, "big")


def _encoded(pages: Columns) -> bytes:
    """The width of `earned` as 8 bytes, then the batch: Arrow wants its buffers at multiples of 8."""
    earned = np.ascontiguousarray(pages["earned"])
    width = earned.shape[1]
    arrays = [pa.array(pages[name]) for name in (*NUMBERS, *PROGRESS)]
    arrays += [pa.array(pages[name].tolist(), pa.string()) for name in (*TEXTS, "session_id")]
    arrays.append(pa.array(pages["packed"].tolist(), pa.binary()))
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(pages["sizes"].ravel()), len(PARTS)))
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(earned.ravel()), width))
    encoded: bytes = pa.RecordBatch.from_arrays(arrays, schema=_schema(width)).serialize().to_pybytes()
    return b"".join((width.to_bytes(8, "little"), encoded))


def _decoded(row: bytes) -> Columns:
    width = int.from_bytes(row[:8], "little")
    batch = pa.ipc.read_record_batch(pa.py_buffer(row).slice(8), _schema(width))
    columns: Columns = {name: batch.column(name).to_numpy(zero_copy_only=False).copy() for name in (*NUMBERS, *PROGRESS)}
    columns |= {name: shared_texts(batch.column(name)) for name in (*TEXTS, "session_id")}
    columns["packed"] = objects(batch.column("packed").to_pylist())
    columns["sizes"] = batch.column("sizes").values.to_numpy().reshape(-1, len(PARTS)).copy()
    columns["earned"] = batch.column("earned").values.to_numpy().reshape(-1, width).copy()
    return columns


def _schema(width: int) -> pa.Schema:
    fields = [(name, pa.from_numpy_dtype(dtype)) for name, dtype in {**NUMBERS, **PROGRESS}.items()]
    fields += [(name, pa.string()) for name in (*TEXTS, "session_id")]
    fields += [("packed", pa.binary()), ("sizes", pa.list_(pa.int32(), len(PARTS))), ("earned", pa.list_(pa.float32(), width))]
    return pa.schema(fields)
