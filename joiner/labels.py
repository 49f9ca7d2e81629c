"""Feedback that became labels: listed as it comes, made into columns when its rows leave."""

from collections.abc import Mapping, Sequence
from struct import Struct
from sys import intern

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.step import Record
from joiner.settings import Combine, KindRule
from schemas.feedback import LEAVE
from schemas.sample import label_column

NEVER = np.iinfo(np.int64).max
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


HIT = np.dtype([("kind", "=i4"), ("row", "=i4"), ("value", "=f8"), ("delay_ms", "=i8"), ("arrival_ms", "=i8"), ("offset", "=i8")])
PACK = Struct("=iidqqq").pack
HitArray = npt.NDArray[np.void]


class Hits:
    """H pieces of feedback on the rows of a block, in the order in which they were read; LEAVE is on the first row of its page."""

    __slots__ = ("_hits", "_kinds")

    def __init__(self) -> None:
        self._kinds: tuple[str, ...] = ()
        self._hits = bytearray()

    def add(self, kind: str, row: int, value: float, delay_ms: int, record: Record) -> None:
        """One more: a record of `feedback`."""
        if kind not in self._kinds:
            self._kinds += (intern(kind),)  # one object for all of a kind
        self._hits += PACK(self._kinds.index(kind), row, value, delay_ms, record.arrival_ms, record.offset)

    def first_delays_ms(self, kind: str, rows: int) -> Ints:
        """How long after the exposure the first feedback of a kind came [R]; NEVER where there was none."""
        delays_R = np.full(rows, NEVER)
        of_kind = self._of(kind)
        np.minimum.at(delays_R, of_kind["row"], of_kind["delay_ms"])
        return delays_R

    def left(self, row_bounds: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Whether each page was left [P]; `row_bounds` as in `pages_of`."""
        left_P = np.zeros(len(row_bounds) - 1, np.bool_)
        left_P[pages_of(self._of(LEAVE)["row"], row_bounds)] = True
        return left_P

    def columns(self, rules: Mapping[str, KindRule], kinds: Sequence[str], row_bounds: npt.NDArray[np.int32]) -> dict[str, pa.Array]:
        """The columns [R] of a samples schema that feedback makes. What says that a page was left is on each of its rows."""
        rows = int(row_bounds[-1])
        columns = {}
        for kind in kinds:
            hits = self._of(kind)
            label_R = combined(rules[kind].combine, hits["row"], hits["value"], hits["delay_ms"], rows)
            columns[label_column(kind)] = pa.array(label_R.astype(np.float32))
        first_R, newest_R = np.full(rows, NEVER), np.full(rows, -1)
        on_rows = self._of(LEAVE, others=True)
        np.minimum.at(first_R, on_rows["row"], on_rows["delay_ms"])
        hits = np.concatenate([on_rows, _on_every_row(self._of(LEAVE), row_bounds)])
        np.maximum.at(newest_R, hits["row"], hits["arrival_ms"])
        columns["label_delay_ms"] = pa.array(first_R, mask=first_R == NEVER)
        columns["feedback_arrival_ms"] = pa.array(newest_R, mask=newest_R < 0)
        columns["feedback_offsets"] = _offset_lists(hits["row"], hits["offset"], rows)
        return columns

    def _of(self, kind: str, others: bool = False) -> HitArray:
        """Those of a kind, or of the `others`."""
        hits: HitArray = np.frombuffer(self._hits, HIT)
        number = self._kinds.index(kind) if kind in self._kinds else -1
        return hits[np.flatnonzero((hits["kind"] == number) != others)]


def pages_of(rows: Ints, row_bounds: npt.NDArray[np.int32]) -> Ints:
    """The page of each row. `row_bounds` [P + 1]: where its rows begin, and the last ones end."""
    return np.searchsorted(row_bounds, rows, side="right") - 1


def _on_every_row(hits: HitArray, row_bounds: npt.NDArray[np.int32]) -> HitArray:
    """Hits on the first rows of pages, once for each row of the page."""
    sizes = np.diff(row_bounds)[pages_of(hits["row"], row_bounds)]
    spread = np.repeat(hits, sizes)
    spread["row"] += np.arange(len(spread), dtype=np.int32) - np.repeat(sizes.cumsum() - sizes, sizes).astype(np.int32)
    return spread


def _offset_lists(row_F: Ints, offset_F: Ints, rows: int) -> pa.ListArray:
    """The offsets of F pieces of feedback by row [R], in their order."""
    ends = np.zeros(rows + 1, np.int32)
    np.cumsum(np.bincount(row_F, minlength=rows), out=ends[1:])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(offset_F[np.lexsort((offset_F, row_F))]))


def combined(how: Combine, row_H: Ints, value_H: Floats, delay_H: Ints, rows: int) -> Floats:
    """One value a row [R] from the H values of a kind; 0 where there is none. Ties in time: in the order in which they were read."""
    if how == "sum":
        # bincount adds in float64 and in the order of the feedback: the sum does not depend on how it came in batches.
        return np.bincount(row_H, value_H, rows).astype(np.float64)
    label_R = np.zeros(rows)
    if how == "max":
        label_R[row_H] = -np.inf
        np.maximum.at(label_R, row_H, value_H)
        return label_R
    in_time = np.argsort(delay_H, kind="stable")
    if how == "first":
        in_time = in_time[::-1]
    for place in in_time.tolist():  # the last one written stays
        label_R[row_H[place]] = value_H[place]
    return label_R
