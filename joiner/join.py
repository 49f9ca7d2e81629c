"""The event-time join of one partition: exposures + feedback -> labelled samples. Pure logic, blocks instead of records.

A delivered batch of exposures becomes a block. Only its keys are decoded; a feedback sets a label in its block; when the watermark
has passed the block's newest exposure by the join window, the block leaves whole, as one Arrow record batch, its messages unopened.

What becomes of an event, in this order (reasons of dead letters in quotes):

- any: "too_large"; "malformed"; "future" (does not move the watermark);
- exposure: "late" where the watermark has passed its window; ignored as a duplicate where its request_id is known; else open;
- feedback: "unknown_kind"; waits where its request is unknown, and is "unknown_request" once its own window has passed; "late" where
  its page is closed or it is more than a window younger than its exposure; "unknown_request" where it is older than its exposure or
  of another user; "unknown_item"; ignored as a duplicate where the page has had this event_id; else it is a label.

Closed pages are remembered for one more window; feedback on them that comes still later counts as "unknown_request". The same samples
come out however the topics are cut into batches and whichever is read first, wherever each topic is in event-time order.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from types import MappingProxyType
from typing import TypeVar, cast

import pyarrow as pa

from headrace.step import Count, Outcome, Output, Record
from joiner.block import Block, Pages
from joiner.input_format import as_json
from joiner.refusal import Refusals
from joiner.rows import (
    PROGRESS_KEY,
    ClosedPages,
    Progress,
    decode_closed,
    decode_progress,
    encode_row,
    pack_records,
    row_key,
    unpack_records,
)
from joiner.settings import JoinerSettings
from joiner.waiting import WaitingFeedback
from joiner.watermark import Watermark
from schemas.codec import UNREADABLE, decode_exposure_key, decode_feedback, encode_batch
from schemas.dead_letter import Reason
from schemas.event_format import EventFormat
from schemas.exposure import ExposureKey, ItemKey
from schemas.feedback import LEAVE, Feedback
from schemas.sample import sample_schema
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES

SPANS_PER_WINDOW = 8
"""A block holds pages of at most an eighth of a join window: so much later than need be its first page may leave."""
PAGE_BITS = 16
"""A page's number is its block's number and, in these bits, its place in the block: BLOCK_BYTES / ROW_BYTES is far below 2**16."""
PAGE_MASK = (1 << PAGE_BITS) - 1
MAX_VALUE = 1e30
"""Largest feedback value: hundreds of millions of them still add up to a finite float32 label."""

T = TypeVar("T")


class PartitionJoin:
    """The joiner's `PartitionStep`. `stored` are the rows that its earlier life stored (see rows.py); `formats` those that are not JSON."""

    def __init__(
        self,
        settings: JoinerSettings,
        partition: int,
        stored: Iterable[tuple[bytes, bytes]],
        formats: Mapping[str, EventFormat] = MappingProxyType({}),
    ) -> None:
        self._settings = settings
        self._formats = formats
        self._window_ms = settings.join_window_ms
        self._span_ms = max(1, self._window_ms // SPANS_PER_WINDOW)
        self._kinds = frozenset({*settings.feedback_kinds, LEAVE})
        self._schema: pa.Schema = sample_schema(settings.feedback_kinds)
        self._partition = partition
        self._index: dict[str, int] = {}  # request_id -> page number; its block is gone where the page is closed
        self._blocks: dict[int, Block] = {}  # by block number, in offset order
        self._next_block = 0
        self._oldest_block_ms = 0  # no open block is older, by its newest exposure
        self._closed: list[tuple[int, int, Sequence[str]]] = []  # heap of (newest ts_ms, first offset, request_ids)
        self._waiting = WaitingFeedback()
        self._feedback_rows: dict[int, int] = {}  # first offset of a stored feedback row -> open blocks that it labelled
        self._needed_feedback: list[int] = []  # heap of offsets, some of them no longer needed
        self._progress = Progress()
        self._recover(stored)
        seen = self._progress
        self._watermark = Watermark(1000.0 * settings.idle_s, seen.watermark_ms, seen.exposures_ms, seen.feedback_ms)
        self._next_offsets = dict(seen.next_offsets)

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        """Join a batch of `exposures` or `feedback`."""
        refusals = Refusals(Outcome(), self._partition, now_ms)
        if records:
            refusals.outcome.counts[Count("in", topic)] += len(records)
            read = {EXPOSURES: self._on_exposures, FEEDBACK: self._on_feedback}[topic]
            self._next_offsets[topic] = records[-1].offset + 1
            if topic in self._formats:
                records = as_json(topic, records, self._formats[topic], self._settings.max_event_bytes, refusals)
            self._watermark.observe(topic, read(records, refusals) if records else 0, now_ms)
        return self._pass_time(refusals)

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        """Let go what the passing of wall time closes: only where a topic is idle, and read to its end."""
        self._watermark.tick(now_ms, unread)
        return self._pass_time(Refusals(Outcome(), self._partition, now_ms))

    def gauges(self) -> Mapping[str, float]:
        """Event time (ms) and what is held in memory."""
        return {
            "watermark_ms": self._watermark.ms,
            "open_pages": sum(block.pages for block in self._blocks.values()),
            "open_items": sum(block.rows for block in self._blocks.values()),
            "waiting_feedback": len(self._waiting),
        }

    def _on_exposures(self, records: Sequence[Record], refusals: Refusals) -> int:
        """Open blocks; gives the newest event time (ms)."""
        earliest_ms, latest_ms = self._watermark.ms - self._window_ms, refusals.now_ms + self._settings.max_future_ms
        pages = self._admit_all(records, earliest_ms, latest_ms)
        newest_ms = max(pages.ts_ms) if pages else 0
        if pages is None:
            pages, newest_ms = self._admit_each(records, earliest_ms, latest_ms, refusals)
        for part in pages.cut(self._span_ms) if pages else ():
            self._open_block(Block(part), refusals)
        return newest_ms

    def _admit_all(self, records: Sequence[Record], earliest_ms: int, latest_ms: int) -> Pages | None:
        """The pages of a batch in which every exposure is acceptable, else None: at half the cost of looking at each."""
        values = [record.value for record in records]
        if max(map(len, values)) > self._settings.max_event_bytes:
            return None
        try:
            pages = Pages.of(records, map(decode_exposure_key, values))
        except UNREADABLE:
            return None
        if (
            min(pages.ts_ms) < earliest_ms
            or max(pages.ts_ms) > latest_ms
            or any(_named_twice(items) for items in pages.items if len(items) > 1)
        ):
            return None
        requests = set(pages.request_ids)
        return pages if len(requests) == len(records) and self._index.keys().isdisjoint(requests) else None

    def _admit_each(self, records: Sequence[Record], earliest_ms: int, latest_ms: int, refusals: Refusals) -> tuple[Pages | None, int]:
        """The pages of the acceptable exposures, if any, and the newest event time (ms) of the well-formed; the others are refused."""
        kept: list[tuple[Record, ExposureKey]] = []
        requests: set[str] = set()
        newest_ms = 0
        for record, key in self._read(decode_exposure_key, EXPOSURES, records, refusals):
            if _named_twice(key.items):
                refusals.refuse(EXPOSURES, record, "malformed", f"an item is twice on the page {key.request_id!r}")
                continue
            if key.ts_ms > latest_ms:
                refusals.refuse(EXPOSURES, record, "future", f"{key.ts_ms - refusals.now_ms} ms ahead of the clock")
                continue
            newest_ms = max(newest_ms, key.ts_ms)
            if key.ts_ms < earliest_ms:
                refusals.refuse(EXPOSURES, record, "late", f"{earliest_ms - key.ts_ms} ms after its window of {self._window_ms} ms")
            elif key.request_id in self._index or key.request_id in requests:
                refusals.ignore("duplicate_exposure")
            else:
                requests.add(key.request_id)
                kept.append((record, key))
        return Pages.of([record for record, _ in kept], (key for _, key in kept)) if kept else None, newest_ms

    def _read(self, decode: Callable[[bytes], T], topic: str, records: Sequence[Record], refusals: Refusals) -> Iterator[tuple[Record, T]]:
        """The records that can be read, decoded; the others are refused."""
        max_bytes = self._settings.max_event_bytes
        for record in records:
            if len(record.value) > max_bytes:
                refusals.refuse(topic, record, "too_large", f"{len(record.value)} bytes, allowed are {max_bytes}")
                continue
            try:
                message = decode(record.value)
            except UNREADABLE as error:
                refusals.refuse(topic, record, "malformed", str(error))
                continue
            yield record, message

    def _open_block(self, block: Block, refusals: Refusals) -> None:
        """Open a block and give it the feedback that waited for it."""
        self._add_block(block)
        refusals.outcome.changes.append((row_key(b"b", block.first_offset), block.packed()))
        if not self._waiting:
            return
        accepted: list[Record] = []
        for page, request_id in enumerate(block.request_ids):
            if request_id in self._waiting:
                for record, feedback in self._waiting.take(request_id):
                    refusals.outcome.changes.append((row_key(b"w", record.offset), None))
                    if self._label(block, page, record, feedback, refusals):
                        accepted.append(record)
        if accepted:
            self._keep_feedback(accepted, {block}, refusals.outcome)

    def _add_block(self, block: Block) -> None:
        self._oldest_block_ms = min(self._oldest_block_ms, block.max_ts_ms) if self._blocks else block.max_ts_ms
        self._blocks[self._next_block] = block
        number = self._next_block << PAGE_BITS
        self._index.update(zip(block.request_ids, range(number, number + block.pages), strict=True))
        self._next_block += 1

    def _on_feedback(self, records: Sequence[Record], refusals: Refusals) -> int:
        """Set labels, or wait for exposures; gives the newest event time (ms)."""
        latest_ms, newest_ms = refusals.now_ms + self._settings.max_future_ms, 0
        accepted: list[Record] = []
        labelled: set[Block] = set()
        for record, feedback in self._read(decode_feedback, FEEDBACK, records, refusals):
            if not -MAX_VALUE <= feedback.value <= MAX_VALUE:
                refusals.refuse(FEEDBACK, record, "malformed", f"value {feedback.value} is not within +-{MAX_VALUE:g}")
                continue
            if feedback.ts_ms > latest_ms:
                refusals.refuse(FEEDBACK, record, "future", f"{feedback.ts_ms - refusals.now_ms} ms ahead of the clock")
                continue
            newest_ms = max(newest_ms, feedback.ts_ms)
            number = self._index.get(feedback.request_id)
            if feedback.kind not in self._kinds:
                refusals.refuse(FEEDBACK, record, "unknown_kind", f"{feedback.kind!r} is not in joiner.feedback_kinds")
            elif number is None:
                self._wait(record, feedback, refusals)
            elif (block := self._blocks.get(number >> PAGE_BITS)) is None:
                refusals.refuse(FEEDBACK, record, "late", f"the page {feedback.request_id!r} is closed")
            elif self._label(block, number & PAGE_MASK, record, feedback, refusals):
                accepted.append(record)
                labelled.add(block)
        if accepted:
            self._keep_feedback(accepted, labelled, refusals.outcome)
        return newest_ms

    def _wait(self, record: Record, feedback: Feedback, refusals: Refusals) -> None:
        self._waiting.add(record, feedback)
        heappush(self._needed_feedback, record.offset)
        refusals.outcome.changes.append((row_key(b"w", record.offset), pack_records([record])))

    def _label(self, block: Block, page: int, record: Record, feedback: Feedback, refusals: Refusals) -> bool:
        """Whether the feedback became a label; else it is counted or refused."""
        refused = block.label(page, feedback, record.arrival_ms, self._window_ms)
        if refused is None:
            return True
        reason, detail = refused
        if reason == "duplicate":
            refusals.ignore("duplicate_feedback")
        else:
            refusals.refuse(FEEDBACK, record, cast(Reason, reason), detail)
        return False

    def _keep_feedback(self, records: Sequence[Record], labelled: set[Block], outcome: Outcome) -> None:
        """Store the records of labels as one row, for as long as one of their blocks is open."""
        first_offset = min(record.offset for record in records)
        self._hold_feedback(first_offset, labelled)
        outcome.changes.append((row_key(b"f", first_offset), pack_records(records)))

    def _hold_feedback(self, first_offset: int, labelled: set[Block]) -> None:
        self._feedback_rows[first_offset] = len(labelled)
        heappush(self._needed_feedback, first_offset)
        for block in labelled:
            block.feedback_rows.add(first_offset)

    def _pass_time(self, refusals: Refusals) -> Outcome:
        """Let go what the watermark has passed, and say what must be stored and kept."""
        outcome, index = refusals.outcome, self._index
        ended_ms = self._watermark.advance(refusals.now_ms) - self._window_ms
        if self._blocks and self._oldest_block_ms < ended_ms:
            self._close_blocks(ended_ms, outcome)
        while self._closed and self._closed[0][0] < ended_ms - self._window_ms:
            _, first_offset, request_ids = heappop(self._closed)
            outcome.changes.append((row_key(b"c", first_offset), None))
            for request_id in request_ids:
                del index[request_id]
        for record, feedback in self._waiting.expire(ended_ms):
            outcome.changes.append((row_key(b"w", record.offset), None))
            refusals.refuse(FEEDBACK, record, "unknown_request", f"no exposure of {feedback.request_id!r} within {self._window_ms} ms")
        newest_ms = self._watermark.newest_ms
        progress = Progress(self._watermark.ms, newest_ms[EXPOSURES], newest_ms[FEEDBACK], dict(self._next_offsets))
        if progress != self._progress:
            self._progress = progress
            outcome.changes.append((PROGRESS_KEY, encode_row(progress)))
        outcome.needed_from = self._needed_from()
        return outcome

    def _close_blocks(self, ended_ms: int, outcome: Outcome) -> None:
        """Send every block whose newest exposure is older than `ended_ms`."""
        closing = {number: block for number, block in self._blocks.items() if block.max_ts_ms < ended_ms}
        for number, block in closing.items():
            del self._blocks[number]
            self._forget_feedback(block, outcome)
            heappush(self._closed, (block.max_ts_ms, block.first_offset, block.request_ids))
            outcome.changes.append((row_key(b"b", block.first_offset), None))
            outcome.changes.append((row_key(b"c", block.first_offset), encode_row(ClosedPages(block.max_ts_ms, block.request_ids))))
            outcome.counts[Count("out", SAMPLES)] += block.rows
        self._oldest_block_ms = min((block.max_ts_ms for block in self._blocks.values()), default=0)
        # No sample that is still to come is older than this: later exposures are not (they would be late), nor are open blocks.
        promise_ms = min([max(0, ended_ms), *(block.min_ts_ms for block in self._blocks.values())])
        messages = []
        for block in reversed(closing.values()):
            samples = block.samples(self._schema, self._settings.feedback_kinds, self._partition)
            messages.append(Output(SAMPLES, encode_batch(samples, promise_ms)))
            promise_ms = min(promise_ms, block.min_ts_ms)
        outcome.outputs.extend(reversed(messages))

    def _forget_feedback(self, block: Block, outcome: Outcome) -> None:
        for first_offset in block.feedback_rows:
            self._feedback_rows[first_offset] -= 1
            if not self._feedback_rows[first_offset]:
                del self._feedback_rows[first_offset]
                outcome.changes.append((row_key(b"f", first_offset), None))

    def _needed_from(self) -> dict[str, int]:
        """By topic the first offset that an open block or a waiting feedback needs, else the next one; nothing of an unread topic."""
        needed = dict(self._next_offsets)
        if self._blocks:
            needed[EXPOSURES] = next(iter(self._blocks.values())).first_offset
        heap = self._needed_feedback
        while heap and heap[0] not in self._feedback_rows and heap[0] not in self._waiting.offsets:
            heappop(heap)
        if heap:
            needed[FEEDBACK] = heap[0]
        return needed

    def _recover(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        """Rebuild the state; labels by applying their feedback again, to whichever of its blocks are still open."""
        rows: dict[bytes, list[tuple[int, bytes]]] = {}
        for key, value in stored:
            rows.setdefault(key[:1], []).append((int.from_bytes(key[1:], "big"), value))
        for first_offset, value in rows.get(b"c", []):
            closed = decode_closed(value)
            heappush(self._closed, (closed.max_ts_ms, first_offset, closed.request_ids))
            self._index.update(dict.fromkeys(closed.request_ids, -1))
        for _, value in rows.get(b"b", []):
            records = unpack_records(value)
            self._add_block(Block(Pages.of(records, (decode_exposure_key(record.value) for record in records))))
        for first_offset, value in rows.get(b"f", []):
            self._hold_feedback(first_offset, self._label_again(unpack_records(value)))
        for _, value in rows.get(b"w", []):
            for record in unpack_records(value):
                self._waiting.add(record, decode_feedback(record.value))
                heappush(self._needed_feedback, record.offset)
        for _, value in rows.get(PROGRESS_KEY, []):
            self._progress = decode_progress(value)

    def _label_again(self, records: Sequence[Record]) -> set[Block]:
        """Set the labels of feedback that was accepted before, whatever the window is set to now."""
        labelled = set()
        for record in records:
            feedback = decode_feedback(record.value)
            number = self._index.get(feedback.request_id, -1)
            block = self._blocks.get(number >> PAGE_BITS)
            if block is not None:
                block.label(number & PAGE_MASK, feedback, record.arrival_ms, max(self._window_ms, feedback.ts_ms))
                labelled.add(block)
        return labelled


def _named_twice(items: Sequence[ItemKey]) -> bool:
    """Whether an item is on a page more than once: samples are told apart by request and item."""
    return len({item.item_id for item in items}) < len(items)
