"""What the joiner's stored rows of a partition say, without making its step of them: for people."""

from typing import NamedTuple

from headrace.step import StoredRows
from joiner import rows
from joiner.pages import read_keys


class StoredState(NamedTuple):
    """Event times in ms since the epoch; None where there is nothing."""

    watermark_ms: int | None
    exposures_ms: int | None
    feedback_ms: int | None
    open_blocks: int
    open_pages: int
    open_items: int
    oldest_open_ms: int | None
    """The oldest page that is open."""
    oldest_closes_in_ms: int | None
    """How far, in event time, the watermark must move until that page leaves with its block; below 0 it leaves with the next batch."""
    label_feedback: int
    """Feedback that became labels of open pages."""
    waiting_feedback: int
    closed_requests: int
    """Of pages that are closed and remembered."""


def stored_state(stored: StoredRows, hold_ms: int) -> StoredState:
    """Of rows in the layout of this version; `hold_ms` is how far the watermark passes a page before it leaves."""
    progress = rows.read_progress(stored)
    blocks = pages = items = 0
    oldest: tuple[int, int] | None = None  # the oldest page's time, and the newest of its block
    for _, row in stored.rows(b"b"):
        columns = read_keys(row)
        times_ms = columns["ts_ms"].to_numpy()
        block = int(times_ms.min()), int(times_ms.max())
        oldest = block if oldest is None else min(oldest, block)
        blocks, pages, items = blocks + 1, pages + len(times_ms), items + len(columns["item_ids"].values)
    return StoredState(
        watermark_ms=progress.watermark_ms or None,
        exposures_ms=progress.exposures_ms or None,
        feedback_ms=progress.feedback_ms or None,
        open_blocks=blocks,
        open_pages=pages,
        open_items=items,
        oldest_open_ms=None if oldest is None else oldest[0],
        oldest_closes_in_ms=None if oldest is None else oldest[1] + hold_ms + 1 - progress.watermark_ms,
        label_feedback=sum(rows.count_records(row) for _, row in stored.rows(b"f")),
        waiting_feedback=sum(1 for _ in stored.rows(b"w")),
        closed_requests=sum(len(closed.request_ids) for _, closed in rows.read_closed(stored)),
    )
