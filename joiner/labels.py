"""Feedback that became labels: listed as it comes, made into columns when its rows leave."""

from array import array
from collections.abc import Mapping, Sequence
from sys import intern

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.step import Record
from joiner.settings import Combine, KindRule
from schemas.sample import label_column

NEVER = np.iinfo(np.int64).max
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Hits:
    """H pieces of feedback on the rows of a block, as columns, in the order in which they were read."""

    def __init__(self) -> None:
        self._kinds: list[str] = []
        self._rows, self._delays_ms, self._arrivals_ms, self._values = array("q"), array("q"), array("q"), array("d")
        self._offsets = array("q")

    def add(self, kind: str, row: int, value: float, delay_ms: int, record: Record) -> None:
        """One more: a record of `feedback`."""
        self._kinds.append(intern(kind))  # one object for all of a kind
        self._rows.append(row)
        self._values.append(value)
        self._delays_ms.append(delay_ms)
        self._arrivals_ms.append(record.arrival_ms)
        self._offsets.append(record.offset)

    def first_delays_ms(self, kind: str, rows: int) -> Ints:
        """How long after the exposure the first feedback of a kind came [R]; NEVER where there was none."""
        delays_R = np.full(rows, NEVER)
        is_kind = self._is(kind)
        np.minimum.at(delays_R, np.frombuffer(self._rows, np.int64)[is_kind], np.frombuffer(self._delays_ms, np.int64)[is_kind])
        return delays_R

    def columns(
        self, rules: Mapping[str, KindRule], kinds: Sequence[str], page_arrivals_ms: Ints, of_pages: tuple[Ints, Ints]
    ) -> dict[str, pa.Array]:
        """The columns [R] of a samples schema that feedback makes.

        `page_arrivals_ms` [R]: the newest arrival of feedback on the row's page as a whole, -1 where there was none. `of_pages`: rows and
        the offsets of such feedback.
        """
        rows = len(page_arrivals_ms)
        row_H, value_H = np.frombuffer(self._rows, np.int64), np.frombuffer(self._values, np.float64)
        delay_H, arrival_H = np.frombuffer(self._delays_ms, np.int64), np.frombuffer(self._arrivals_ms, np.int64)
        columns = {}
        for kind in kinds:
            of = self._is(kind)
            label_R = combined(rules[kind].combine, row_H[of], value_H[of], delay_H[of], rows)
            columns[label_column(kind)] = pa.array(label_R.astype(np.float32))
        first_R, newest_R = np.full(rows, NEVER), page_arrivals_ms.copy()
        np.minimum.at(first_R, row_H, delay_H)
        np.maximum.at(newest_R, row_H, arrival_H)
        columns["label_delay_ms"] = pa.array(first_R, mask=first_R == NEVER)
        columns["feedback_arrival_ms"] = pa.array(newest_R, mask=newest_R < 0)
        source_row, source_offset = np.append(row_H, of_pages[0]), np.append(np.frombuffer(self._offsets, np.int64), of_pages[1])
        columns["feedback_offsets"] = offset_lists(source_row, source_offset, rows)
        return columns

    def _is(self, kind: str) -> npt.NDArray[np.bool_]:
        return np.fromiter([other == kind for other in self._kinds], np.bool_, len(self._kinds))


def offset_lists(row_F: Ints, offset_F: Ints, rows: int) -> pa.ListArray:
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
