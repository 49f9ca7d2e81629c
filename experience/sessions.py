"""The experience collector's step: samples -> pages -> sessions -> transitions, for one partition (Meituan's Experience Collector).

A page leaves when its future is settled (episodes.py). That is decided by the watermark alone (the samples' promise that nothing older
follows), so that the transitions depend on the events and not on how they were cut into batches.

A page that breaks the promise, older than the watermark, is not lost: while the user's session is open it is put where it belongs
among the pages that wait, or before them; it is a session of its own where even that is too long ago.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experience.collector import Collector
from experience.columns import take
from experience.pages import Pages, read_pages
from experience.preview import ROW_KINDS, Previews
from experience.reward import Bools
from experience.seen import SeenPages
from experience.settings import ExperienceSettings
from headrace.step import Count, Outcome, Output, Record, StoredRows
from schemas.codec import WrongBatchError, encode_batch
from schemas.dead_letter import DeadLetter
from schemas.dead_letter import Reason as RejectReason
from schemas.topics import POINTWISE_SAMPLES, SAMPLES, TRANSITIONS

LAYOUT = 4
"""To be raised whenever rows are no longer read as they were written before.

1: a row a session, with its pages. 2: a page's ids and message were columns of their own. 3: no offsets of feedback
among them.
"""
CLOCK = b"w"
OUT_OF_ORDER = Count("out_of_order", SAMPLES)
"""Samples of pages older than the watermark promised: used all the same, so neither rejected nor ignored."""


class Clock(msgspec.Struct, array_like=True):
    """How far the input came: the watermark it promised, the newest page in it (ms since the epoch), the next offset."""

    promised_ms: int = 0
    newest_ms: int = 0
    next_offset: int = 0
    next_entry: int = 0
    """Of the log of open pages."""
    watermark_ms: int = 0
    """What was settled by: past the promise where the topic was silent."""


_encode = msgspec.msgpack.Encoder().encode
_decode_clock = msgspec.msgpack.Decoder(Clock).decode


def topics_of(settings: ExperienceSettings) -> tuple[str, ...]:
    """What the step reads."""
    return (SAMPLES, POINTWISE_SAMPLES) if settings.labels == "early" else (SAMPLES,)


class PartitionSessions:
    """The step. State rows: `p` and `q`, the open pages (page_log.py); `s<offset>` seen ids (seen.py); `w` the clock."""

    def __init__(self, settings: ExperienceSettings, partition: int, stored: StoredRows) -> None:
        stored.require_layout(LAYOUT)
        self._settings = settings
        self._partition = partition
        self._clock = next((_decode_clock(row) for _, row in stored.rows(CLOCK)), Clock())
        self._collector = Collector(settings, stored, self._clock.next_entry, self._clock.watermark_ms)
        self._seen = SeenPages(settings.dedup_horizon_ms, stored, self._clock.promised_ms)
        self._watermark_ms = self._clock.promised_ms
        self._previews = Previews(settings, stored, self._clock.promised_ms) if settings.labels == "early" else None
        self._last_preview_ms: int | None = None
        early_rows = [] if self._previews else [key for letter in ROW_KINDS for key, _ in stored.rows(letter)]
        self._left_over: list[tuple[bytes, bytes | None]] = [(key, None) for key in early_rows]
        """Rows of an earlier life in the other mode."""
        # Not stored: after a time switched off, the backlog must not look like an idle topic.
        self._last_arrival_ms: int | None = None

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        if topic not in topics_of(self._settings):
            raise ValueError(f"the experience collector reads {', '.join(topics_of(self._settings))}, not {topic}")
        outcome = Outcome()
        if not records:
            return outcome
        if topic == POINTWISE_SAMPLES and self._previews:
            self._preview(self._previews, records, now_ms, outcome)
            return outcome
        delivered: dict[str, None] = {}  # in order: a step that was rebuilt gives the same bytes
        newest_ms = max([self._admit(record, now_ms, delivered, outcome) for record in records])
        self._last_arrival_ms = now_ms
        outcome.changes += self._left_over
        self._left_over = []
        outcome.changes += self._seen.remember(records[0].offset, newest_ms, list(delivered))
        outcome.changes += self._seen.forget(self._clock.promised_ms)
        self._release(self._clock.promised_ms, outcome)
        outcome.changes.append((CLOCK, _encode(self._clock)))
        return outcome

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        outcome = Outcome()
        if self._last_arrival_ms is None or SAMPLES in unread:
            self._last_arrival_ms = now_ms
        self._tick_previews(now_ms, unread, outcome)
        silent_ms = now_ms - self._last_arrival_ms
        if self._clock.next_offset and silent_ms >= self._settings.idle_s * 1000:
            self._release(max(self._clock.promised_ms, self._clock.newest_ms) + silent_ms, outcome)
            if outcome.changes:
                outcome.changes.append((CLOCK, _encode(self._clock)))
        return outcome

    def gauges(self) -> Mapping[str, float]:
        collector = self._collector
        gauges = {"watermark_ms": self._watermark_ms, "open_sessions": collector.open_sessions, "open_pages": collector.open_pages}
        return gauges if self._previews is None else {**gauges, "open_early_pages": self._previews.open_pages}

    def _preview(self, previews: Previews, records: Sequence[Record], now_ms: int, outcome: Outcome) -> None:
        """Let early transitions go."""
        self._last_preview_ms = now_ms
        refused, outcome.changes = previews.apply(records, outcome.counts)
        for record in refused:
            outcome.counts[Count("in", POINTWISE_SAMPLES)] += 1
            self._refuse(outcome, record, now_ms, "malformed", "not a record batch of point-wise samples", 1, POINTWISE_SAMPLES)
        self._send_early(previews, 0, outcome)
        outcome.changes.append(previews.stored_clock())
        outcome.needed_from[POINTWISE_SAMPLES] = previews.needed_from()

    def _tick_previews(self, now_ms: int, unread: Collection[str], outcome: Outcome) -> None:
        """Where early rows are silent, sessions end by their gap."""
        previews = self._previews
        if previews is None:
            return
        if self._last_preview_ms is None or POINTWISE_SAMPLES in unread:
            self._last_preview_ms = now_ms
        silent_ms = now_ms - self._last_preview_ms
        if previews.newest_ms and silent_ms >= self._settings.idle_s * 1000:
            self._send_early(previews, silent_ms, outcome)
            if outcome.changes:
                outcome.needed_from[POINTWISE_SAMPLES] = previews.needed_from()

    def _send_early(self, previews: Previews, silent_ms: int, outcome: Outcome) -> None:
        batches, changes = previews.release(silent_ms)
        outcome.changes += changes
        if rows := sum(map(len, batches)):
            outcome.counts[Count("out", TRANSITIONS)] += rows
            outcome.outputs += self._outputs(batches)

    def _admit(self, record: Record, now_ms: int, delivered: dict[str, None], outcome: Outcome) -> int:
        """Take in the new pages of a message, note them in `delivered`, and give the newest one's time."""
        clock, counts = self._clock, outcome.counts
        clock.next_offset = record.offset + 1
        try:
            message = read_pages(record.value, record.offset, self._settings)
        except WrongBatchError as error:
            counts[Count("in", SAMPLES)] += 1
            self._refuse(outcome, record, now_ms, "malformed", str(error), rows=1)
            return 0
        counts[Count("in", SAMPLES)] += int(message.row_counts.sum())
        newest_ms = 0
        if len(message.row_counts):
            is_new = self._new_pages(message, record, now_ms, delivered, outcome)
            pages = message.columns if is_new.all() else take(message.columns, is_new)
            if is_new.any():
                newest_ms = int(pages["ts_ms"].max())
                if out_of_order := int(message.row_counts[is_new][pages["ts_ms"] < clock.promised_ms].sum()):
                    counts[OUT_OF_ORDER] += out_of_order
                self._collector.add(pages)
        clock.promised_ms = max(clock.promised_ms, message.watermark_ms)
        clock.newest_ms = max(clock.newest_ms, newest_ms)
        return newest_ms

    def _new_pages(self, message: Pages, record: Record, now_ms: int, delivered: dict[str, None], outcome: Outcome) -> Bools:
        """Which pages of a message come for the first time and can be used; the others are counted or refused."""
        request_ids, ts_ms = message.request_ids, message.columns["ts_ms"]
        known = self._seen.known(request_ids)
        age_ms = self._clock.promised_ms - ts_ms
        late = set(np.flatnonzero(age_ms > self._settings.dedup_horizon_ms).tolist())
        is_new = np.zeros(len(request_ids), np.bool_)
        for page, request_id in enumerate(request_ids):
            if request_id in known or request_id in delivered:
                outcome.counts[Count("ignored", "duplicate")] += int(message.row_counts[page])
            elif page in late or page in message.unusable:
                reason: RejectReason = "late" if page in late else "malformed"
                detail = f"is {age_ms[page]} ms older than the watermark" if page in late else message.unusable[page]
                self._refuse(outcome, record, now_ms, reason, f"page {request_id} {detail}", int(message.row_counts[page]))
            else:
                delivered[request_id] = None
                is_new[page] = True
        return is_new

    def _release(self, watermark_ms: int, outcome: Outcome) -> None:
        """Settle what the watermark allows, send it, and say what must be stored and kept."""
        collector, clock = self._collector, self._clock
        self._watermark_ms = watermark_ms
        released = collector.release(watermark_ms)
        outcome.changes += released.changes
        clock.next_entry, clock.watermark_ms = collector.next_entry, max(clock.watermark_ms, watermark_ms)
        batches = released.batches
        if self._previews is not None:
            batches = self._previews.amendments(batches)
            outcome.changes += self._previews.forget(clock.promised_ms)
        if rows := sum(map(len, batches)):
            outcome.counts[Count("out", TRANSITIONS)] += rows
            outcome.outputs += self._outputs(batches)
        # Of what was seen, too: a page that the joiner sends again would be taken for a new one, in the middle of somebody's session.
        needed = [clock.next_offset, collector.needs_from()]
        if self._seen.first_offset is not None:
            needed.append(self._seen.first_offset)
        outcome.needed_from[SAMPLES] = min(needed)

    def _outputs(self, batches: Sequence[pa.RecordBatch]) -> list[Output]:
        """One message a batch. Each promises only what the ones after it keep too: final transitions are the last to leave."""
        promise_ms = min(self._collector.oldest_ms(), self._watermark_ms)
        if self._previews is not None:
            promise_ms = min(promise_ms, self._previews.oldest_ms())
        outputs = []
        for batch in reversed(batches):
            outputs.append(Output(TRANSITIONS, encode_batch(batch, promise_ms)))
            promise_ms = min(promise_ms, pc.min(batch.column("ts_ms")).as_py())
        return outputs[::-1]

    def _refuse(
        self, outcome: Outcome, record: Record, now_ms: int, reason: RejectReason, detail: str, rows: int, topic: str = SAMPLES
    ) -> None:
        outcome.counts[Count("rejected", reason)] += rows
        outcome.dead_letters.append(
            DeadLetter(
                stage="experience",
                reason=reason,
                detail=detail,
                source_topic=topic,
                source_partition=self._partition,
                source_offset=record.offset,
                size_bytes=len(record.value),
                ts_ms=now_ms,
            )
        )
