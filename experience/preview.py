"""Early transitions: what the labels say so far, as soon as the next page is shown; and which of them final labels make others.

The joiner's early rows (`pointwise-samples` in `fast` mode) are put together to pages and given to a second collector. Its event time is
that of the newest early page: a page leaves when the user's next one is seen, with the labels of that moment, as revision 0. When the
collector of final pages lets the same instance go, it is compared: if it left early exactly so, nothing more is sent; else it leaves
as revision 1 and takes the early one's place. Whoever keeps the highest revision of each id has the `complete` mode's transitions,
whatever the early ones were: they may be as hasty as they like.

State rows: `P` and `Q` the open early pages, `S` ids of early pages seen, `V` what left early, `W` the clock.
"""

import zlib
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experience.collector import Collector
from experience.columns import take
from experience.pages import page_columns, page_starts
from experience.seen import Change, SeenPages
from experience.settings import ExperienceSettings
from headrace.step import Count, Record, StoredRows
from schemas.codec import WrongBatchError, batch_kinds, decode_batch
from schemas.pointwise_sample import pointwise_schema
from schemas.sample import sample_schema
from schemas.topics import POINTWISE_SAMPLES

LOG, SEEN, LEFT, CLOCK = (b"P", b"Q"), b"S", b"V", b"W"
ROW_KINDS = {LOG[0]: "early_pages", LOG[1]: "early_progress", SEEN: "early_seen", LEFT: "left_early", CLOCK: "early_clock"}
_COMPARED = (
    "session_id",
    "step",
    "reward",
    "return",
    "discount",
    "n_steps",
    "done",
    "ends_session",
    "feedback_count",
    "feedback_arrival_ms",
    "feedback_offsets",
)


class _Clock(msgspec.Struct, array_like=True):
    newest_ms: int = 0
    next_offset: int = 0
    next_entry: int = 0
    departures: int = 0
    """How often something left: it names the row in which that is remembered."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Clock).decode


class Previews:
    """The early side of a partition."""

    def __init__(self, settings: ExperienceSettings, stored: StoredRows, final_ms: int) -> None:
        self._settings = settings
        self._clock = next((_decode(row) for _, row in stored.rows(CLOCK)), _Clock())
        self._collector = Collector(settings, stored, self._clock.next_entry, self._clock.newest_ms, LOG)
        self._seen = SeenPages(settings.dedup_horizon_ms, stored, self._clock.newest_ms, SEEN)
        # A page leaves for good at most about a session's gap after its window: what is forgotten too early is amended needlessly, no more.
        self._left = SeenPages(settings.dedup_horizon_ms + 2 * settings.session_gap_ms, stored, final_ms, LEFT)

    @property
    def open_pages(self) -> int:
        """Early pages that wait for the next one."""
        return self._collector.open_pages

    @property
    def newest_ms(self) -> int:
        """The newest early page's time."""
        return self._clock.newest_ms

    def oldest_ms(self) -> int:
        """The oldest of these pages' time."""
        return self._collector.oldest_ms()

    def needed_from(self) -> int:
        """The first offset of early rows that an open page needs."""
        return min(self._clock.next_offset, self._collector.needs_from())

    def apply(self, records: Sequence[Record], counts: Counter[Count]) -> tuple[list[Record], list[Change]]:
        """Take a delivery's early pages in. Gives the messages that are no point-wise samples, and rows to store."""
        refused: list[Record] = []
        delivered: dict[str, None] = {}
        newest_ms = 0
        for record in records:
            try:
                newest_ms = max(newest_ms, self._admit(record, delivered, counts))
            except (WrongBatchError, ValueError, KeyError, pa.ArrowException):
                refused.append(record)
        self._clock.next_offset = records[-1].offset + 1
        self._clock.newest_ms = max(self._clock.newest_ms, newest_ms)
        changes = self._seen.remember(records[0].offset, newest_ms, list(delivered))
        return refused, changes + self._seen.forget(self._clock.newest_ms)

    def _admit(self, record: Record, delivered: dict[str, None], counts: Counter[Count]) -> int:
        """Whole pages of early rows; the newest one's time. Other rows say nothing that final pages do not."""
        batch, _ = decode_batch(record.value, POINTWISE_SAMPLES)
        kinds = batch_kinds(batch.schema)
        if not batch.schema.equals(pointwise_schema(kinds)):
            raise WrongBatchError("columns are not those of point-wise samples")
        batch.validate(full=True)
        counts[Count("in", POINTWISE_SAMPLES)] += len(batch)
        batch = batch.select(sample_schema(kinds).names).filter(pc.equal(batch["closed_by"], "early"))
        if not len(batch):
            return 0
        starts = page_starts(batch)
        sizes = np.diff(starts, append=len(batch))
        columns, unusable = page_columns(batch, kinds, starts, record.offset, self._settings)
        is_new = sizes == batch["page_size"].to_numpy()[starts]
        if not is_new.all():
            counts[Count("ignored", "incomplete_page")] += int(sizes[~is_new].sum())
        is_new[list(unusable)] = False  # the final page is refused, with a dead letter
        request_ids = batch["request_id"].take(pa.array(starts)).to_pylist()
        known = self._seen.known(request_ids)
        for page, request_id in enumerate(request_ids):
            if request_id in known or request_id in delivered:
                counts[Count("ignored", "duplicate")] += int(sizes[page])
                is_new[page] = False
            elif is_new[page]:
                delivered[request_id] = None
        if not is_new.any():
            return 0
        pages = take(columns, is_new)
        self._collector.add(pages)
        return int(pages["ts_ms"].max())

    def release(self, silent_ms: int = 0) -> tuple[list[pa.RecordBatch], list[Change]]:
        """What the newest early page lets go, `silent_ms` after it, and rows to store."""
        clock = self._clock
        released = self._collector.release(clock.newest_ms + silent_ms + 1)
        clock.next_entry = self._collector.next_entry
        changes = released.changes
        for batch in released.batches:
            clock.departures += 1
            changes += self._left.remember(clock.departures, int(batch["ts_ms"].to_numpy().max()), _fingerprints(batch))
        return released.batches, [*changes, (CLOCK, _encode(clock))] if changes else []

    def stored_clock(self) -> Change:
        """The clock's row."""
        return CLOCK, _encode(self._clock)

    def amendments(self, batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
        """Of the final instances those that did not leave early exactly so, as revision 1."""
        amended = []
        for batch in batches:
            prints = _fingerprints(batch)
            known = self._left.known(prints)
            differs = batch.filter(pa.array([fingerprint not in known for fingerprint in prints], pa.bool_())) if known else batch
            if len(differs):
                place = batch.schema.get_field_index("revision")
                amended.append(differs.set_column(place, batch.schema.field(place), pa.array(np.ones(len(differs), np.int32))))
        return amended

    def forget(self, final_ms: int) -> list[Change]:
        """What no final page will be compared with any more."""
        return self._left.forget(final_ms)


def _fingerprints(batch: pa.RecordBatch) -> list[str]:
    """One text for each instance: the same where nothing differs but through which message it came."""
    parts = [name for name in batch.schema.names if name.startswith(("reward_", "penalty_"))]
    columns = [batch[name].to_pylist() for name in ("transition_id", *_COMPARED, *parts)]
    following = [None if message is None else zlib.crc32(message) for message in batch["next_exposure"].to_pylist()]
    return ["|".join(map(repr, row)) for row in zip(*columns, following, strict=True)]
