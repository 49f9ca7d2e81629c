"""Pages as columns, and what each page has for itself (its ids, its message) as one bytes object.

Shape legend: P pages, K kinds of feedback.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from experience.reward import Ints, Objects

Columns = dict[str, npt.NDArray[Any]]
"""Columns of equal length by name. Those of pages: NUMBERS, TEXTS, `earned` [P, K], and `packed` with its `sizes` [P, parts]."""

NUMBERS: dict[str, type] = {
    "ts_ms": np.int64,
    "propensity": np.float64,
    "converted": np.bool_,
    "left": np.bool_,
    "feedback_count": np.int32,
    "feedback_arrival_ms": np.int64,  # -1: none
    "source_partition": np.int32,
    "source_offset": np.int64,
    "offset": np.int64,  # of the samples message that the page came in
}
TEXTS = ("policy", "model_version", "bucket", "kinds")
"""They repeat from page to page. `kinds` has the kinds of `earned`, comma-separated, as in the batch's schema."""
PARTS = ("request_id", "user_id", "feedback_offsets", "exposure")
"""In `packed`, one after the other: an object each would take 30 to 50 bytes more, and a pointer. Offsets are 8 bytes each."""
REQUEST_ID, USER_ID, FEEDBACK_OFFSETS, EXPOSURE = range(len(PARTS))


def pack(parts: Sequence[pa.Array]) -> Columns:
    """`packed` and `sizes` of P pages, from PARTS [P]."""
    parts = [part.cast(pa.binary()) for part in parts]
    sizes = np.stack([pc.binary_length(part).to_numpy() for part in parts], axis=1)
    return {"packed": objects(pc.binary_join_element_wise(*parts, b"").to_pylist()), "sizes": sizes}


def ids(pages: Columns, part: int) -> list[bytes]:
    """One of the ids of each page, in UTF-8."""
    starts = pages["sizes"][:, :part].sum(axis=1)
    ends = starts + pages["sizes"][:, part]
    return [packed[start:end] for packed, start, end in zip(pages["packed"], starts.tolist(), ends.tolist(), strict=True)]


class Unpacked:
    """The parts of some pages as Arrow columns."""

    def __init__(self, pages: Columns, rows: Ints) -> None:
        sizes = pages["sizes"][rows]
        bounds = np.zeros(sizes.size + 1, np.int32)
        np.cumsum(sizes, out=bounds[1:])
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(b"".join(pages["packed"][rows].tolist()))]
        self._every_part = pa.Array.from_buffers(pa.binary(), sizes.size, buffers)

    def take(self, part: int, places: Ints, is_null: npt.NDArray[np.bool_] | None = None) -> pa.BinaryArray:
        """One part of the pages at these places among `rows`."""
        return self._every_part.take(pa.array(places * len(PARTS) + part, mask=is_null))

    def texts(self, part: int, places: Ints) -> pa.StringArray:
        """The same of ids."""
        return self.take(part, places).view(pa.string())

    def offsets(self, places: Ints) -> pa.ListArray:
        """The offsets of feedback."""
        _, bounds, content = self.take(FEEDBACK_OFFSETS, places).buffers()
        ends = np.frombuffer(bounds, np.int32, len(places) + 1) // 8
        return pa.ListArray.from_arrays(pa.array(ends), pa.Array.from_buffers(pa.int64(), int(ends[-1]), [None, content]))


def shared_texts(column: pa.Array) -> Objects:
    """Texts that repeat, each in memory once."""
    encoded = column.dictionary_encode()
    texts: Objects = objects(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    return texts


def objects(values: Sequence[object]) -> Objects:
    """Python objects as a column."""
    column = np.empty(len(values), np.object_)
    column[:] = values
    return column


def take(columns: Columns, rows: npt.NDArray[Any]) -> Columns:
    """Some of the rows."""
    return {name: column[rows] for name, column in columns.items()}


def concatenated(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts; `earned` is as wide as the widest, and filled up with zeros."""
    if len(parts) == 1:
        return parts[0]
    width = max(part["earned"].shape[1] for part in parts)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "earned"}
    whole["earned"] = np.concatenate([widened(part["earned"], width) for part in parts])
    return whole


def widened(earned_PK: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """The same with zeros in as many columns as are missing."""
    return earned_PK if earned_PK.shape[1] == width else np.pad(earned_PK, ((0, 0), (0, width - earned_PK.shape[1])))
