"""Pages: the exposures of one delivered batch as columns, their messages unopened, and the rows in which the store holds them.

A block's keys are one row (Arrow, one line a page) and its messages several, of CHUNK_PAGES pages each: a restart reads the keys
alone, the close of a block reads all of it, and a label that leaves early reads one chunk.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.step import Record
from joiner.rows import row_key
from schemas.exposure import ExposureKey

CHUNK_PAGES = 64
ROW_BYTES = 160
"""About what a sample takes beside its message: three ids of 10 to 30 bytes, the arm, and 60 bytes of numbers."""
BLOCK_BYTES = 1 << 20
"""Blocks are cut to about this size, in messages and ROW_BYTES, uncompressed; sent they are about half of it."""

KEYS = pa.schema(
    [
        ("offset", pa.int64()),
        ("arrival_ms", pa.int64()),
        ("request_id", pa.string()),
        ("user_id", pa.string()),
        ("ts_ms", pa.int64()),
        ("policy", pa.string()),
        ("model_version", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("positions", pa.list_(pa.int32())),
    ]
)
MESSAGES = pa.schema([("exposure", pa.binary())])


class Pages(NamedTuple):
    """P acceptable exposures in offset order: what the broker knows of them, and what the joiner opens of them."""

    records: Sequence[Record]
    request_ids: Sequence[str]
    columns: pa.RecordBatch
    """Of KEYS."""

    def cut(self, span_ms: int) -> Iterator["Pages"]:
        """Parts of about equal size, none larger than BLOCK_BYTES and the page that crosses it, or with pages of two `span_ms`.

        A block leaves with its newest page, so that a page waits for at most a span of younger ones. (A page out of order goes
        with the younger ones that came before it.)
        """
        count = len(self.records)
        costs = np.fromiter([len(record.value) for record in self.records], np.int64, count)
        costs += ROW_BYTES * np.diff(self.columns["item_ids"].offsets)
        ends = costs.cumsum()
        parts = 1 + int(ends[-1]) // BLOCK_BYTES
        spans = np.maximum.accumulate(self.columns["ts_ms"].to_numpy()) // span_ms
        is_first = np.diff((ends - costs) * parts // ends[-1]).astype(bool) | np.diff(spans).astype(bool)
        firsts = np.flatnonzero(is_first)
        if not len(firsts):
            yield self
            return
        for start, end in pairwise([0, *(firsts + 1).tolist(), count]):
            yield Pages(self.records[start:end], self.request_ids[start:end], self.columns.slice(start, end - start))

    def rows(self) -> list[tuple[bytes, bytes]]:
        """The store's rows of these pages."""
        rows = [(row_key(b"b", self.records[0].offset), self.columns.serialize().to_pybytes())]
        for first in range(0, len(self.records), CHUNK_PAGES):
            chunk = self.records[first : first + CHUNK_PAGES]
            messages = pa.RecordBatch.from_arrays([pa.array([record.value for record in chunk], pa.binary())], schema=MESSAGES)
            rows.append((row_key(b"p", chunk[0].offset), messages.serialize().to_pybytes()))
        return rows


def key_columns(records: Sequence[Record], keys: Sequence[ExposureKey]) -> pa.RecordBatch:
    """The keys of P records as a batch of KEYS."""
    items = [item for key in keys for item in key.items]
    ends = np.zeros(len(keys) + 1, np.int32)
    np.cumsum([len(key.items) for key in keys], out=ends[1:])
    item_ids = pa.array([item.item_id for item in items], pa.string())
    positions = pa.array([item.position for item in items], pa.int32())
    return pa.RecordBatch.from_arrays(
        [
            pa.array([record.offset for record in records], pa.int64()),
            pa.array([record.arrival_ms for record in records], pa.int64()),
            pa.array([key.request_id for key in keys], pa.string()),
            pa.array([key.user_id for key in keys], pa.string()),
            pa.array([key.ts_ms for key in keys], pa.int64()),
            pa.array([key.policy for key in keys], pa.string()),
            pa.array([key.model_version for key in keys], pa.string()),
            pa.ListArray.from_arrays(pa.array(ends), item_ids),
            pa.ListArray.from_arrays(pa.array(ends), positions),
        ],
        schema=KEYS,
    )


def read_keys(row: bytes) -> pa.RecordBatch:
    """The keys of a stored block."""
    return pa.ipc.read_record_batch(pa.py_buffer(row), KEYS)


def message_keys(offsets: npt.NDArray[np.int64], pages: npt.NDArray[np.int64]) -> list[bytes]:
    """The store's keys of the chunks with the messages of some `pages` (their places, sorted) of a block with these `offsets` [P]."""
    return [row_key(b"p", offset) for offset in offsets[np.unique(pages // CHUNK_PAGES) * CHUNK_PAGES].tolist()]


def read_messages(rows: Sequence[bytes], pages: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """The messages of `pages`, from the values of their `message_keys`."""
    chunks = [pa.ipc.read_record_batch(pa.py_buffer(row), MESSAGES).column(0) for row in rows]
    joined = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    if len(joined) == len(pages):
        return joined
    numbers = pages // CHUNK_PAGES
    return joined.take(pa.array(np.searchsorted(np.unique(numbers), numbers) * CHUNK_PAGES + pages % CHUNK_PAGES))
