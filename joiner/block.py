"""A block: what stays in memory of the pages of one delivered batch while it is open. The rest of them lies in the store."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from joiner.labels import Hits, Ints
from joiner.settings import KindRule
from schemas.feedback import LEAVE, Feedback


class Block:
    """P pages with R items (rows) in offset order; the rows of a page are consecutive.

    Feedback is only listed as it comes: it becomes label columns when the block leaves.
    """

    def __init__(self, columns: pa.RecordBatch) -> None:
        self.first_offset: int = columns["offset"][0].as_py()
        """Offset of the earliest exposure: it names the block."""
        self.ts_ms: Ints = columns["ts_ms"].to_numpy().copy()
        self.min_ts_ms, self.max_ts_ms = int(self.ts_ms.min()), int(self.ts_ms.max())
        self.feedback_rows: set[int] = set()
        self.early_ms: int | None = None
        """Up to which event time feedback had been seen when the rows left early, in `fast` mode."""
        self.positive_rows: set[int] = set()
        """Rows with feedback of the target kind."""
        self.hits = Hits()
        # As Arrow columns ids take a quarter of what Python's strings do, and the few with feedback can be looked up all the same.
        # Copies: a view would keep all that was read from the store.
        self._item_ids, self._user_ids = copied(columns["item_ids"].values), copied(columns["user_id"])
        self._first_rows: npt.NDArray[np.int32] = columns["item_ids"].offsets.to_numpy().copy()
        self._leaves: list[tuple[int, int]] = []  # page, arrival_ms
        self._events: set[tuple[int, str]] = set()

    @property
    def pages(self) -> int:
        """P."""
        return len(self.ts_ms)

    @property
    def rows(self) -> int:
        """R."""
        return len(self._item_ids)

    def label(
        self, page: int, feedback: Feedback, arrival_ms: int, rule: KindRule, watermark_ms: int
    ) -> tuple[int, tuple[str, str] | None]:
        """Set the label that a feedback on a page means. Gives its row, and None, or why it does not count.

        A refusal is ("duplicate", "") or a dead letter's reason and detail.
        """
        delay_ms = feedback.ts_ms - int(self.ts_ms[page])
        refused = self._refused(page, feedback, delay_ms, rule, watermark_ms)
        if refused is not None:
            return -1, refused
        row = int(self._first_rows[page])
        if feedback.kind != LEAVE and self._item_ids[row].as_py() != feedback.item_id:
            try:
                row += self._item_ids[row : self._first_rows[page + 1]].to_pylist().index(feedback.item_id)
            except ValueError:
                return -1, ("unknown_item", f"{feedback.item_id!r} is not on the page {feedback.request_id!r}")
        event = page, feedback.event_id
        if event in self._events:
            return -1, ("duplicate", "")
        self._events.add(event)
        if feedback.kind == LEAVE:
            self._leaves.append((page, arrival_ms))
        else:
            self.hits.add(feedback.kind, row, feedback.value, delay_ms, arrival_ms)
        return row, None

    def _refused(self, page: int, feedback: Feedback, delay_ms: int, rule: KindRule, watermark_ms: int) -> tuple[str, str] | None:
        """Why a feedback does not count on a page, whatever its item."""
        if delay_ms > rule.window_ms:
            return "late", f"{delay_ms} ms after its exposure, window {rule.window_ms} ms"
        if delay_ms < 0:
            return "unknown_request", f"{-delay_ms} ms before the exposure of {feedback.request_id!r}"
        behind_ms = watermark_ms - (feedback.ts_ms - delay_ms) - rule.window_ms - rule.grace_ms
        if behind_ms > 0:
            return "late", f"the watermark passed its page's window and grace {behind_ms} ms ago"
        if self._user_ids[page].as_py() != feedback.user_id:
            return "unknown_request", f"{feedback.request_id!r} is no request of user {feedback.user_id!r}"
        return None

    def every_page(self) -> Ints:
        """The places of all pages [P]."""
        return np.arange(self.pages)

    def every_row(self) -> Ints:
        """The places of all rows [R]."""
        return np.arange(self.rows)

    def pages_of(self, rows: Ints) -> Ints:
        """The pages that these rows are on, each once, in order."""
        return np.unique(np.searchsorted(self._first_rows, rows, side="right") - 1)

    def samples(self, layout: "Layout", columns: pa.RecordBatch, messages: pa.BinaryArray, closed_by: str, rows: Ints) -> pa.RecordBatch:
        """Some rows of the block as a batch of `layout.schema`, labels as they stand.

        `columns` is what the store holds of the block, `messages` those of `pages_of(rows)`.
        """
        sizes = np.diff(self._first_rows)
        page_R = np.repeat(np.arange(self.pages), sizes)
        left_P, arrivals_ms_P = np.zeros(self.pages, np.bool_), np.full(self.pages, -1)
        for page, arrival_ms in self._leaves:
            left_P[page] = True
            arrivals_ms_P[page] = max(arrivals_ms_P[page], arrival_ms)
        labels = self.hits.columns(layout.rules, layout.kinds, arrivals_ms_P[page_R])
        page_of_row = page_R[rows]
        pages, message_of_row = np.unique(page_of_row, return_inverse=True)
        assert len(pages) == len(messages), (len(pages), len(messages))
        of_page = {
            "request_id": columns["request_id"],
            "user_id": columns["user_id"],
            "page_size": pa.array(sizes.astype(np.int32)),
            "ts_ms": columns["ts_ms"],
            "policy": columns["policy"],
            "model_version": columns["model_version"],
            "left": pa.array(left_P),
            "source_offset": columns["offset"],
        }
        of_row = {"item_id": columns["item_ids"].values, "position": columns["positions"].values, **labels}
        every_row, one_row_a_page = len(rows) == self.rows, self.rows == self.pages
        taken = {
            **{name: column if every_row and one_row_a_page else column.take(pa.array(page_of_row)) for name, column in of_page.items()},
            **{name: column if every_row else column.take(pa.array(rows)) for name, column in of_row.items()},
            "closed_by": pa.repeat(pa.scalar(closed_by, pa.string()), len(rows)),
            "source_partition": pa.repeat(pa.scalar(layout.partition, pa.int32()), len(rows)),
            "exposure": pa.DictionaryArray.from_arrays(pa.array(message_of_row.astype(np.int32)), messages),
        }
        return pa.RecordBatch.from_arrays([taken[name] for name in layout.schema.names], schema=layout.schema)


class Layout(NamedTuple):
    """What the samples of a partition look like."""

    schema: pa.Schema
    rules: Mapping[str, KindRule]
    kinds: Sequence[str]
    partition: int


def copied(column: pa.Array) -> pa.Array:
    """The same values in buffers of their own."""
    return column.take(pa.array(np.arange(len(column), dtype=np.int32)))
