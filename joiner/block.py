"""A block: the exposures of one delivered batch, kept as columns with their messages unopened, and the labels set in them."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from operator import attrgetter
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from headrace.step import Record
from joiner.rows import pack
from schemas.exposure import ExposureKey, ItemKey
from schemas.feedback import LEAVE, Feedback
from schemas.sample import label_column

ROW_BYTES = 160
"""About what a sample takes beside its message: three ids of 10 to 30 bytes, the arm, and 60 bytes of numbers."""
BLOCK_BYTES = 1 << 20
"""Blocks are cut to about this size, in messages and ROW_BYTES, uncompressed; sent they are about half of it."""
NEVER = np.iinfo(np.int64).max

_key_columns = attrgetter("request_id", "user_id", "ts_ms", "policy", "model_version", "items")
_item_columns = attrgetter("item_id", "position")


class Pages(NamedTuple):
    """P exposures in offset order as columns: what the broker knows of them, then what the joiner opens of them."""

    offsets: Sequence[int]
    arrivals_ms: Sequence[int]
    values: Sequence[bytes]
    request_ids: Sequence[str]
    user_ids: Sequence[str]
    ts_ms: Sequence[int]
    policies: Sequence[str]
    model_versions: Sequence[str]
    items: Sequence[list[ItemKey]]

    @classmethod
    def of(cls, records: Sequence[Record], keys: Iterator[ExposureKey]) -> Self:
        """The columns of at least one record. `keys` are taken one at a time, so that few are ever in memory."""
        return cls(*zip(*records, strict=True), *zip(*map(_key_columns, keys), strict=True))

    def cut(self, span_ms: int) -> Iterator["Pages"]:
        """Parts of about equal size, none larger than BLOCK_BYTES and the page that crosses it, or with pages of two `span_ms`.

        A block leaves with its newest page, so that a page waits for at most a span of younger ones. (A page out of order goes
        with the younger ones that came before it.)
        """
        costs = np.fromiter(map(len, self.values), np.int64) + ROW_BYTES * np.fromiter(map(len, self.items), np.int64)
        ends = costs.cumsum()
        parts = 1 + int(ends[-1]) // BLOCK_BYTES
        spans = np.maximum.accumulate(np.fromiter(self.ts_ms, np.int64)) // span_ms
        is_first = np.diff((ends - costs) * parts // ends[-1]).astype(bool) | np.diff(spans).astype(bool)
        for start, end in pairwise([0, *(np.flatnonzero(is_first) + 1).tolist(), len(costs)]):
            yield Pages._make(column[start:end] for column in self)


class Block:
    """P pages with R items (rows) in offset order; the rows of a page are consecutive.

    Feedback is only listed as it comes: it becomes label columns when the block leaves.
    """

    def __init__(self, pages: Pages) -> None:
        self.request_ids = pages.request_ids
        self.ts_ms = array("q", pages.ts_ms)
        self.min_ts_ms, self.max_ts_ms = min(self.ts_ms), max(self.ts_ms)
        self.feedback_rows: set[int] = set()
        self._offsets, self._arrivals_ms = array("q", pages.offsets), array("q", pages.arrivals_ms)
        self._sizes = array("i", map(len, pages.items))
        self._first_rows = array("q", accumulate(self._sizes, initial=0))
        item_ids, positions = zip(*map(_item_columns, chain.from_iterable(pages.items)), strict=True)
        # As Arrow columns they take a quarter of what Python's strings do, and the few rows with feedback can be looked up all the same.
        self._item_ids, self._positions = pa.array(item_ids, pa.string()), pa.array(positions, pa.int32())
        self._request_ids, self._user_ids = pa.array(pages.request_ids, pa.string()), pa.array(pages.user_ids, pa.string())
        self._policies, self._model_versions = pa.array(pages.policies, pa.string()), pa.array(pages.model_versions, pa.string())
        self._messages = pa.array(pages.values, pa.binary())
        self._hits: list[tuple[str, int, float, int, int]] = []  # kind, row, value, delay_ms, arrival_ms
        self._leaves: list[tuple[int, int]] = []  # page, arrival_ms
        self._events: set[tuple[int, str]] = set()

    @property
    def first_offset(self) -> int:
        """Offset of the earliest exposure: it names the block."""
        return self._offsets[0]

    @property
    def pages(self) -> int:
        """P."""
        return len(self.ts_ms)

    @property
    def rows(self) -> int:
        """R."""
        return self._first_rows[-1]

    def packed(self) -> bytes:
        """The exposures' records as one stored value."""
        return pack(self._offsets, self._arrivals_ms, self._messages)

    def label(self, page: int, feedback: Feedback, arrival_ms: int, window_ms: int) -> tuple[str, str] | None:
        """Set the label that a feedback on a page means; else say why not: ("duplicate", "") or a dead letter's reason and detail."""
        delay_ms = feedback.ts_ms - self.ts_ms[page]
        if delay_ms > window_ms:
            return "late", f"{delay_ms} ms after its exposure, window {window_ms} ms"
        if delay_ms < 0:
            return "unknown_request", f"{-delay_ms} ms before the exposure of {feedback.request_id!r}"
        if self._user_ids[page].as_py() != feedback.user_id:
            return "unknown_request", f"{feedback.request_id!r} is no request of user {feedback.user_id!r}"
        row = self._first_rows[page]
        if feedback.kind != LEAVE and self._item_ids[row].as_py() != feedback.item_id:
            try:
                row += self._item_ids[row : self._first_rows[page + 1]].to_pylist().index(feedback.item_id)
            except ValueError:
                return "unknown_item", f"{feedback.item_id!r} is not on the page {feedback.request_id!r}"
        event = page, feedback.event_id
        if event in self._events:
            return "duplicate", ""
        self._events.add(event)
        if feedback.kind == LEAVE:
            self._leaves.append((page, arrival_ms))
        else:
            self._hits.append((feedback.kind, row, feedback.value, delay_ms, arrival_ms))
        return None

    def samples(self, schema: pa.Schema, kinds: Sequence[str], partition: int) -> pa.RecordBatch:
        """The block as a batch of `schema`, labels as they stand."""
        rows, page_of_row = self.rows, np.repeat(np.arange(self.pages, dtype=np.int32), self._sizes)
        left = np.zeros(self.pages, np.bool_)
        left[[page for page, _ in self._leaves]] = True
        columns = {
            "request_id": self._request_ids,
            "user_id": self._user_ids,
            "page_size": pa.array(np.frombuffer(self._sizes, np.int32)),
            "ts_ms": pa.array(np.frombuffer(self.ts_ms, np.int64)),
            "policy": self._policies,
            "model_version": self._model_versions,
            "left": pa.array(left),
            "source_offset": pa.array(np.frombuffer(self._offsets, np.int64)),
        }
        if rows > self.pages:
            columns = {name: column.take(pa.array(page_of_row)) for name, column in columns.items()}
        columns |= {
            "item_id": self._item_ids,
            "position": self._positions,
            **self._label_columns(kinds),
            "closed_by": pa.repeat(pa.scalar("window", pa.string()), rows),
            "source_partition": pa.repeat(pa.scalar(partition, pa.int32()), rows),
            "exposure": pa.DictionaryArray.from_arrays(pa.array(page_of_row), self._messages),
        }
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _label_columns(self, kinds: Sequence[str]) -> dict[str, pa.Array]:
        """The columns [R] that feedback makes."""
        hit_kinds, rows, values, delays_ms, arrivals_ms = zip(*self._hits, strict=True) if self._hits else ((),) * 5
        row_of_hit, value_of_hit, kind_of_hit = np.array(rows, np.int64), np.array(values, np.float64), np.array(hit_kinds, np.object_)
        columns = {}
        for kind in kinds:
            hit = kind_of_hit == kind
            # bincount adds in float64 and in the order of the feedback: the sum does not depend on how it came in batches.
            columns[label_column(kind)] = pa.array(np.bincount(row_of_hit[hit], value_of_hit[hit], self.rows).astype(np.float32))
        first_ms, newest_ms = np.full(self.rows, NEVER), np.full(self.rows, -1)
        np.minimum.at(first_ms, row_of_hit, np.array(delays_ms, np.int64))
        np.maximum.at(newest_ms, row_of_hit, np.array(arrivals_ms, np.int64))
        for page, arrival_ms in self._leaves:
            page_rows = newest_ms[self._first_rows[page] : self._first_rows[page + 1]]
            np.maximum(page_rows, arrival_ms, out=page_rows)
        columns["label_delay_ms"] = pa.array(first_ms, mask=first_ms == NEVER)
        columns["feedback_arrival_ms"] = pa.array(newest_ms, mask=newest_ms < 0)
        return columns
