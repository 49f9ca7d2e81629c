"""A block: what stays in memory of the pages of one delivered batch while it is open. The rest of them lies in the store."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.step import Record
from joiner.event_ids import EventIds
from joiner.labels import Hits, Ints, pages_of
from joiner.page_keys import PageKeys
from joiner.settings import KindRule
from schemas.feedback import LEAVE, Feedback


class Block:
    """P pages with R items (rows) in offset order; the rows of a page are consecutive.

    Feedback is only listed as it comes: it becomes label columns when the block leaves.
    """

    __slots__ = ("_events", "_keys", "early_ms", "first_offset", "hashes", "hits", "max_ts_ms", "min_ts_ms", "number")

    def __init__(self, number: int, columns: pa.RecordBatch, hashes: Ints) -> None:
        self.number, self.hashes = number, hashes
        """What Blocks finds it by: `hashes` are those of its requests [P]."""
        self.first_offset: int = columns["offset"][0].as_py()
        """Offset of the earliest exposure: it names the block."""
        self._keys = PageKeys(columns)
        times_ms = self._keys.times_ms()
        self.min_ts_ms, self.max_ts_ms = int(times_ms.min()), int(times_ms.max())
        self.early_ms: int | None = None
        """Up to which event time feedback had been seen when the rows left early, in `fast` mode."""
        self.hits = Hits()
        self._events: EventIds | None = None

    @property
    def pages(self) -> int:
        """P."""
        return self._keys.pages

    @property
    def rows(self) -> int:
        """R."""
        return self._keys.rows

    def is_page(self, page: int, request_id: str) -> bool:
        """Whether the page is of this request."""
        return self._keys.is_request(page, request_id)

    def label(self, page: int, feedback: Feedback, record: Record, rule: KindRule, watermark_ms: int) -> tuple[int, tuple[str, str] | None]:
        """Set the label that a feedback, read from `record`, means on a page. Gives its row, and None, or why it does not count.

        A refusal is ("duplicate", "") or a dead letter's reason and detail.
        """
        delay_ms = feedback.ts_ms - self._keys.ts_ms(page)
        refused = self._refused(page, feedback, delay_ms, rule, watermark_ms)
        if refused is not None:
            return -1, refused
        row = self._keys.row_of(page, None if feedback.kind == LEAVE else feedback.item_id)
        if row < 0:
            return -1, ("unknown_item", f"{feedback.item_id!r} is not on the page {feedback.request_id!r}")
        if self._events is None:
            self._events = EventIds()
        if not self._events.add(page, feedback.event_id):
            return -1, ("duplicate", "")
        self.hits.add(feedback.kind, row, feedback.value, delay_ms, record)
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
        if not self._keys.is_user(page, feedback.user_id):
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
        return np.unique(pages_of(rows, self._keys.row_bounds()))

    def samples(self, layout: "Layout", columns: pa.RecordBatch, messages: pa.BinaryArray, closed_by: str, rows: Ints) -> pa.RecordBatch:
        """Some rows of the block as a batch of `layout.schema`, labels as they stand.

        `columns` is what the store holds of the block, `messages` those of `pages_of(rows)`.
        """
        bounds = self._keys.row_bounds()
        sizes = np.diff(bounds)
        page_R = np.repeat(np.arange(self.pages), sizes)
        left_P, labels = self.hits.left(bounds), self.hits.columns(layout.rules, layout.kinds, bounds)
        page_of_row = page_R[rows]
        pages, message_of_row = np.unique(page_of_row, return_inverse=True)
        assert len(pages) == len(messages), (len(pages), len(messages))
        of_page = {
            "request_id": columns["request_id"],
            "user_id": columns["user_id"],
            "page_size": pa.array(sizes),
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
