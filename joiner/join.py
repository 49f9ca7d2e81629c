"""The event-time join of one partition: exposures + feedback -> labelled samples. Pure logic, blocks instead of records.

A delivered batch of exposures becomes a block. Only its keys are decoded; what feedback needs of them stays in memory, the rest and
the unopened messages lie in the store. A feedback sets a label in its block; when the watermark has passed the block's newest
exposure by the longest window and grace, the block leaves whole, as one Arrow record batch.

What becomes of an event, in this order (reasons of dead letters in quotes):

- any: "too_large"; "malformed"; "future" (does not move the watermark);
- exposure: "late" where the watermark has passed its window; ignored as a duplicate where its request_id is open; else open;
- feedback: "unknown_kind"; waits where its request is unknown, and is "unknown_request" once its own window has passed; "late" where
  its page is closed, or it is more than its kind's window younger than its exposure, or the watermark has passed its page by that
  window and grace; "unknown_request" where it is older than its exposure or of another user; "unknown_item"; ignored as a duplicate
  where the page has had this event_id; else it is a label.

Closed pages are remembered for one more window; feedback on them that comes still later counts as "unknown_request". The same samples
come out however the topics are cut into batches and whichever is read first, wherever each topic is in event-time order.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import cast

import pyarrow as pa

from headrace.step import Count, Outcome, Output, Record, StoredRows
from joiner import admission, rows
from joiner.block import Block, Layout
from joiner.blocks import Blocks
from joiner.input_format import as_json
from joiner.kept_feedback import KeptFeedback
from joiner.pages import Pages, read_keys
from joiner.pointwise_stream import PointwiseStream
from joiner.refusal import Refusals
from joiner.settings import JoinerSettings, KindRule
from joiner.stored_blocks import StoredBlocks
from joiner.waiting import Waiting, WaitingFeedback
from joiner.watermark import Watermark
from schemas.codec import decode_feedback, encode_batch
from schemas.dead_letter import Reason
from schemas.event_format import EventFormat
from schemas.feedback import Feedback
from schemas.sample import sample_schema
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES

SPANS_PER_WINDOW = 8
"""A block holds pages of at most an eighth of a join window: so much later than need be its first page may leave."""
ACCEPTED_BEFORE = KindRule(1 << 62, 0, "sum")
"""Whatever the windows are set to now."""


class PartitionJoin:
    """The joiner's `PartitionStep`. `stored` are the rows that its earlier life stored (see rows.py); `formats` those that are not JSON."""

    def __init__(
        self,
        settings: JoinerSettings,
        partition: int,
        stored: StoredRows,
        formats: Mapping[str, EventFormat] = MappingProxyType({}),
    ) -> None:
        stored.require_layout(rows.LAYOUT)
        self._settings, self._partition, self._formats = settings, partition, formats
        self._rules = settings.rules()
        self._hold_ms = settings.hold_ms
        self._span_ms = max(1, (settings.fast_wait_ms or self._hold_ms) // SPANS_PER_WINDOW)
        self._layout = Layout(sample_schema(settings.feedback_kinds), self._rules, settings.feedback_kinds, partition)
        self._blocks, self._stored = Blocks(), StoredBlocks(stored)
        self._waiting, self._kept = WaitingFeedback(stored), KeptFeedback()
        self._pointwise = PointwiseStream(settings, partition, self._stored, rows.read_delays(stored))
        self._progress = rows.read_progress(stored)
        seen = self._progress
        self._watermark = Watermark(1000.0 * settings.idle_s, seen.watermark_ms, seen.exposures_ms, seen.feedback_ms)
        self._next_offsets = dict(seen.next_offsets)
        self._read_since_tick: set[str] = set()
        self._recover(stored)

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        """Join a batch of `exposures` or `feedback`."""
        self._begin_call()
        refusals = Refusals(Outcome(), self._partition, now_ms)
        if records:
            refusals.outcome.counts[Count("in", topic)] += len(records)
            read = {EXPOSURES: self._on_exposures, FEEDBACK: self._on_feedback}[topic]
            self._next_offsets[topic] = records[-1].offset + 1
            if topic in self._formats:
                records = as_json(topic, records, self._formats[topic], self._settings.max_event_bytes, refusals)
            self._read_since_tick.add(topic)
            self._watermark.observe(topic, read(records, refusals) if records else 0, now_ms)
        return self._pass_time(refusals)

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        """Let go what the passing of wall time closes: only where a topic is idle, and read to its end."""
        self._begin_call()
        self._read_since_tick.clear()
        self._watermark.tick(now_ms, unread)
        return self._pass_time(Refusals(Outcome(), self._partition, now_ms))

    def paused(self) -> Collection[str]:
        """The topic that is ahead of the other in event time, while more is held than the settings allow.

        Where waiting for the other does not help, because it is silent or the window itself holds more, a batch is taken a tick.
        """
        newest_ms = self._watermark.newest_ms
        ahead_ms = newest_ms[EXPOSURES] - newest_ms[FEEDBACK]
        if len(self._waiting) > self._settings.max_waiting_feedback and ahead_ms < 0:
            topic, helps = FEEDBACK, not self._watermark.is_idle(EXPOSURES)
        elif self._blocks.items > self._settings.max_open_items:
            topic, helps = EXPOSURES, ahead_ms > self._span_ms and not self._watermark.is_idle(FEEDBACK)
        else:
            return ()
        return (topic,) if helps or topic in self._read_since_tick else ()

    def gauges(self) -> Mapping[str, float]:
        """Event time (ms), what is held, and whether the intake is slowed down."""
        return {
            "watermark_ms": self._watermark.ms,
            "open_pages": self._blocks.pages,
            "open_items": self._blocks.items,
            "waiting_feedback": len(self._waiting),
            "paused_topics": len(self.paused()),
        }

    def _begin_call(self) -> None:
        self._stored.begin_call()
        self._waiting.begin_call()

    def _bounds(self, now_ms: int) -> admission.Bounds:
        settings = self._settings
        return admission.Bounds(self._watermark.ms - self._hold_ms, now_ms + settings.max_future_ms, settings.max_event_bytes)

    def _open_among(self, request_ids: Sequence[str]) -> Collection[str]:
        return self._blocks.find(request_ids)[0].keys()

    def _on_exposures(self, records: Sequence[Record], refusals: Refusals) -> int:
        """Open blocks; gives the newest event time (ms)."""
        pages, newest_ms = admission.exposures(records, self._bounds(refusals.now_ms), self._open_among, refusals)
        for part in pages.cut(self._span_ms) if pages else ():
            block = self._blocks.add(part.columns, part.request_ids)
            self._stored.put(part, refusals.outcome)
            self._pointwise.opened(block)
            if self._waiting:
                self._label_waiting(block, part, refusals)
        return newest_ms

    def _label_waiting(self, block: Block, pages: Pages, refusals: Refusals) -> None:
        """Give a new block the feedback that waited for it."""
        waited = self._waiting.take(pages.request_ids, block.hashes, refusals.outcome)
        if waited:
            page_of = {request_id: page for page, request_id in enumerate(pages.request_ids)}
            accepted = [
                record for record, feedback in waited if self._label(block, page_of[feedback.request_id], record, feedback, refusals)
            ]
            if accepted:
                self._kept.keep(accepted, {block}, refusals.outcome)

    def _on_feedback(self, records: Sequence[Record], refusals: Refusals) -> int:
        """Set labels, or wait for exposures; gives the newest event time (ms)."""
        newest_ms = 0
        accepted: list[Record] = []
        labelled: set[Block] = set()
        waiting: list[Waiting] = []
        reactions = list(admission.feedback(records, self._bounds(refusals.now_ms), refusals))
        opened, closed = self._blocks.find([reaction.request_id for _, reaction in reactions])
        for record, reaction in reactions:
            newest_ms = max(newest_ms, reaction.ts_ms)
            if reaction.kind not in self._rules:
                refusals.refuse(FEEDBACK, record, "unknown_kind", f"{reaction.kind!r} is not in joiner.feedback_kinds")
            elif (place := opened.get(reaction.request_id)) is not None:
                if self._label(place.block, place.page, record, reaction, refusals):
                    accepted.append(record)
                    labelled.add(place.block)
            elif reaction.request_id in closed:
                refusals.refuse(FEEDBACK, record, "late", f"the page {reaction.request_id!r} is closed")
            else:
                waiting.append((record, reaction))
                self._kept.need(record.offset)
        if waiting:
            self._waiting.add(waiting, refusals.outcome)
        if accepted:
            self._kept.keep(accepted, labelled, refusals.outcome)
        return newest_ms

    def _label(self, block: Block, page: int, record: Record, feedback: Feedback, refusals: Refusals) -> bool:
        """Whether the feedback became a label; else it is counted or refused."""
        row, refused = block.label(page, feedback, record, self._rules[feedback.kind], self._watermark.ms)
        if refused is None:
            self._pointwise.labelled(block, row, feedback.kind)
            return True
        reason, detail = refused
        if reason == "duplicate":
            refusals.ignore("duplicate_feedback")
        else:
            refusals.refuse(FEEDBACK, record, cast(Reason, reason), detail)
        return False

    def _pass_time(self, refusals: Refusals) -> Outcome:
        """Let go what the watermark has passed, and say what must be stored and kept."""
        outcome = refusals.outcome
        ended_ms = self._watermark.advance(refusals.now_ms) - self._hold_ms
        if self._pointwise.has_rows_to_send(self._watermark.ms):
            self._pointwise.send(self._watermark, self._blocks.oldest_ms(max(0, ended_ms)), outcome)
        if ended := self._blocks.ended(ended_ms):
            self._close_blocks(ended, ended_ms, outcome)
        self._kept.forget(ended_ms, outcome)
        outcome.changes += [(rows.row_key(b"c", first_offset), None) for first_offset in self._blocks.forget(ended_ms - self._hold_ms)]
        for record, feedback in self._waiting.expire(ended_ms, outcome):
            refusals.refuse(FEEDBACK, record, "unknown_request", f"no exposure of {feedback.request_id!r} within {self._hold_ms} ms")
        newest_ms = self._watermark.newest_ms
        progress = rows.Progress(self._watermark.ms, newest_ms[EXPOSURES], newest_ms[FEEDBACK], dict(self._next_offsets))
        if progress != self._progress:
            self._progress = progress
            outcome.changes.append((rows.PROGRESS_KEY, rows.encode_row(progress)))
        outcome.needed_from = self._needed_from()
        return outcome

    def _close_blocks(self, ended: Sequence[Block], ended_ms: int, outcome: Outcome) -> None:
        """Send blocks whose newest exposure is older than `ended_ms`."""
        closing = []
        for block in ended:
            columns = self._stored.columns(block)
            self._close(block, columns, outcome)
            closing.append((block, columns))
        # No sample that is still to come is older than this: later exposures are not (they would be late), nor are open blocks.
        promise_ms = self._blocks.oldest_ms(max(0, ended_ms))
        promises_ms = list(accumulate([promise_ms, *(block.min_ts_ms for block in reversed(ended))], min))[-2::-1]
        for (block, columns), promise_ms in zip(closing, promises_ms, strict=True):
            messages = self._stored.messages(columns, block.every_page())  # one block's at a time: a silence may end a whole window's
            closed_by = "window" if block.max_ts_ms < self._watermark.both_ms() - self._hold_ms else "idle"
            samples = block.samples(self._layout, columns, messages, closed_by, block.every_row())
            outcome.counts[Count("out", SAMPLES)] += block.rows
            outcome.outputs.append(Output(SAMPLES, encode_batch(samples, promise_ms)))
            self._pointwise.close(block, samples, self._watermark.feedback_ms(), promise_ms, outcome)

    def _close(self, block: Block, columns: pa.RecordBatch, outcome: Outcome) -> None:
        """Take a block out of the state."""
        self._blocks.close(block)
        self._stored.delete(block, columns, outcome)
        closed = rows.ClosedRow(block.max_ts_ms, columns["request_id"].to_pylist())
        outcome.changes.append((rows.row_key(b"c", block.first_offset), rows.encode_row(closed)))

    def _needed_from(self) -> dict[str, int]:
        """By topic the first offset that an open block or a waiting feedback needs, else the next one; nothing of an unread topic."""
        needed = dict(self._next_offsets)
        if self._blocks:
            needed[EXPOSURES] = self._blocks.first_offset()
        first = self._kept.first_needed(self._waiting)
        if first is not None:
            needed[FEEDBACK] = first
        return needed

    def _recover(self, stored: StoredRows) -> None:
        """Rebuild the state; labels by applying their feedback again, to whichever of its blocks are still open."""
        closed = ((row.max_ts_ms, first_offset, row.request_ids) for first_offset, row in rows.read_closed(stored))
        self._blocks.recover(closed, (read_keys(row) for _, row in stored.rows(b"b")))
        early_ms = rows.read_early(stored)
        for block in self._blocks:
            block.early_ms = early_ms.get(block.first_offset)
        for first_offset, records in rows.read_records(stored, b"f"):
            self._kept.hold(first_offset, self._label_again(records))
        for block in self._blocks:
            self._pointwise.opened(block)
        self._waiting.recover()
        for offset in self._waiting.offsets:
            self._kept.need(offset)

    def _label_again(self, records: Sequence[Record]) -> set[Block]:
        """Set the labels of feedback that was accepted before, whatever the windows are set to now."""
        labelled = set()
        reactions = [decode_feedback(record.value) for record in records]
        opened, _ = self._blocks.find([feedback.request_id for feedback in reactions])
        for record, feedback in zip(records, reactions, strict=True):
            place = opened.get(feedback.request_id)
            if place is not None:
                row, refused = place.block.label(place.page, feedback, record, ACCEPTED_BEFORE, 0)
                if refused is None:  # else it was for an earlier page, closed by now, whose request was shown once more
                    self._pointwise.labelled_before(place.block, row, feedback.kind)
                    labelled.add(place.block)
        return labelled
