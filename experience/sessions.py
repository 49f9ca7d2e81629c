"""Pages -> sessions -> TD instances, for one partition of `samples` (Meituan's Experience Collector).

A session is a user's pages in the order of (ts_ms, request_id), each at most `session_gap_ms` after the one before. It ends with a
page that the user left from, with the gap, or after `max_session_pages`. A page leaves as a transition as soon as its future is
settled: when no page that may still arrive can change what comes after it. That is decided by the watermark alone (the samples'
promise that nothing older follows), so that the transitions depend on the events and not on how they were cut into batches.

A page that breaks the promise, older than the watermark, is not lost: while the user's session is open it is put where it belongs
among the pages that wait, or before them; it is a session of its own where even that is too long ago.
"""

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice, zip_longest

import msgspec
import pyarrow.compute as pc

from experience.pages import Page, read_pages
from experience.seen import PREFIX as SEEN
from experience.seen import SeenPages
from experience.settings import ExperienceSettings
from experience.transitions import Instance, transition_batches
from headrace.step import Count, Outcome, Output, Record
from schemas.codec import WrongBatchError, encode_batch
from schemas.dead_letter import DeadLetter
from schemas.dead_letter import Reason as RejectReason
from schemas.topics import SAMPLES, TRANSITIONS

USER = b"u"
CLOCK = b"w"
OUT_OF_ORDER = Count("out_of_order", SAMPLES)
"""Samples of pages older than the watermark promised: used all the same, so neither rejected nor ignored."""
MAX_REWARD = 1e38
"""Rewards are float32: anything larger is an error in the feedback's value, not a success."""


class Session(msgspec.Struct, array_like=True):
    """A user's open session: `step` pages of it have left, `pages` wait, oldest first. `session_id` is its first page's request.

    `first_offset` is where that page lies, once it has left: whoever rebuilds the session must read from there to number it alike.
    """

    pages: list[Page]
    session_id: str = ""
    step: int = 0
    first_offset: int = 0


class Clock(msgspec.Struct, array_like=True):
    """How far the input came: the watermark it promised, the newest page in it (ms since the epoch) and the next offset."""

    promised_ms: int = 0
    newest_ms: int = 0
    next_offset: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode_session = msgspec.msgpack.Decoder(Session).decode
_decode_clock = msgspec.msgpack.Decoder(Clock).decode


def page_order(page: Page) -> tuple[int, str]:
    """The order of a user's pages; the request id decides between pages of the same millisecond."""
    return page.ts_ms, page.request_id


def settle(session: Session, watermark_ms: int, gap_ms: int, max_pages: int) -> list[Instance]:
    """Take those pages from the front of a session whose future no page with ts_ms >= watermark_ms can change."""
    instances: list[Instance] = []
    pages = session.pages
    for page, following in zip_longest(pages, islice(pages, 1, None)):
        gap_end_ms = page.ts_ms if page.left else page.ts_ms + gap_ms
        went_on = following is not None and not page.left and following.ts_ms <= gap_end_ms
        decided_ms = following.ts_ms if following and went_on else gap_end_ms
        # Strictly: a page of the very millisecond of the watermark may still come, and its request id may put it in between.
        if watermark_ms <= decided_ms:
            break
        if session.step == 0:
            session.session_id = page.request_id
        done = not went_on or session.step + 1 >= max_pages
        next_exposure = following.exposure if following and not done else None
        instances.append(Instance(page, session.session_id, session.step, next_exposure, done, went_on))
        session.step = 0 if done else session.step + 1
    del pages[: len(instances)]
    return instances


class PartitionSessions:
    """The step of one partition: samples -> transitions. State rows: `u<user>` a session, `s<offset>` seen ids, `w` the clock.

    A row a session costs RocksDB 6 us a page, where one row a delivery and its tombstones cost 4 us (pages of 1.5 kB); but the
    latter would keep every page of the last `session_gap_ms`, the former keeps the newest one of each user.
    """

    def __init__(self, settings: ExperienceSettings, partition: int, stored: Iterable[tuple[bytes, bytes]]) -> None:
        rows = sorted(stored)
        self._settings = settings
        self._partition = partition
        self._sessions = {key[1:].decode(): _decode_session(row) for key, row in rows if key.startswith(USER)}
        self._seen = SeenPages(settings.dedup_horizon_ms, ((key, row) for key, row in rows if key.startswith(SEEN)))
        self._clock = next((_decode_clock(row) for key, row in rows if key == CLOCK), Clock())
        self._watermark_ms = self._clock.promised_ms
        # Not stored: after a time switched off, the backlog must not look like an idle topic.
        self._last_arrival_ms: int | None = None
        self._waiting = {user_id for user_id, session in self._sessions.items() if _waits(session)}
        # A heap of (ts_ms of the oldest waiting page, user), one or more a session; outdated ones are too old, never too young.
        self._oldest = [(session.pages[0].ts_ms, user_id) for user_id, session in self._sessions.items()]
        heapq.heapify(self._oldest)
        # How many pages wait, or began a session still open, by the offset of their samples message; offsets only grow, so the first
        # key is the smallest.
        self._held = Counter(sorted(offset for session in self._sessions.values() for offset in _offsets(session)))

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        if topic != SAMPLES:
            raise ValueError(f"the experience collector reads {SAMPLES}, not {topic}")
        outcome = Outcome()
        if not records:
            return outcome
        touched: set[str] = set()
        instances: list[Instance] = []
        seen: list[Page] = []
        for record in records:
            seen += self._admit(record, now_ms, outcome, touched, instances)
        self._last_arrival_ms = now_ms
        self._watermark_ms = self._clock.promised_ms
        outcome.changes += self._seen.remember(
            records[0].offset, max((page.ts_ms for page in seen), default=0), [page.request_id for page in seen]
        )
        outcome.changes += self._seen.forget(self._clock.promised_ms)
        outcome.changes.append((CLOCK, _encode(self._clock)))
        self._release(outcome, touched, instances)
        return outcome

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        outcome = Outcome()
        if self._last_arrival_ms is None or SAMPLES in unread:
            self._last_arrival_ms = now_ms
        silent_ms = now_ms - self._last_arrival_ms
        if self._clock.next_offset and silent_ms >= self._settings.idle_s * 1000:
            self._watermark_ms = max(self._clock.promised_ms, self._clock.newest_ms) + silent_ms
            self._release(outcome, set(), [])
        return outcome

    def gauges(self) -> Mapping[str, float]:
        return {"watermark_ms": self._watermark_ms, "open_sessions": len(self._sessions)}

    def _admit(self, record: Record, now_ms: int, outcome: Outcome, touched: set[str], instances: list[Instance]) -> list[Page]:
        """Put the new pages of a message into their sessions, and give them back. Pages that are sessions of their own leave at once."""
        clock, settings, counts = self._clock, self._settings, outcome.counts
        clock.next_offset = record.offset + 1
        try:
            message = read_pages(record.value, record.offset, settings)
        except WrongBatchError as error:
            counts[Count("in", SAMPLES)] += 1
            self._refuse(outcome, record, now_ms, "malformed", str(error), rows=1)
            return []
        counts[Count("in", SAMPLES)] += sum(message.row_counts)
        admitted = []
        for page, rows in zip(message.pages, message.row_counts, strict=True):
            if page.request_id in self._seen:
                counts[Count("ignored", "duplicate")] += rows
            elif page.ts_ms < clock.promised_ms - settings.dedup_horizon_ms:
                age_ms = clock.promised_ms - page.ts_ms
                self._refuse(outcome, record, now_ms, "late", f"page {page.request_id} is {age_ms} ms older than the watermark", rows)
            elif not sum(map(abs, page.earned)) <= MAX_REWARD:  # this way round, NaN is refused too
                self._refuse(outcome, record, now_ms, "malformed", f"page {page.request_id} earned {page.earned}: no usable reward", rows)
            else:
                if page.ts_ms < clock.promised_ms:
                    counts[OUT_OF_ORDER] += rows
                self._seen.add(page.request_id)
                admitted.append(page)
                if not self._join(page, touched):
                    instances.append(Instance(page, page.request_id, 0, None, done=True, went_on=False))
        clock.promised_ms = max(clock.promised_ms, message.watermark_ms)
        clock.newest_ms = max([clock.newest_ms, *(page.ts_ms for page in admitted)])
        return admitted

    def _join(self, page: Page, touched: set[str]) -> bool:
        """Put a page into its user's session; False where that session's first pages have left and it belongs before their time."""
        session = self._sessions.get(page.user_id)
        if session is None:
            session = self._sessions[page.user_id] = Session([])
        elif session.step and page.ts_ms < session.pages[0].ts_ms - self._settings.session_gap_ms:
            return False
        insort(session.pages, page, key=page_order)
        if session.pages[0] is page:
            heapq.heappush(self._oldest, (page.ts_ms, page.user_id))
        self._held[page.offset] += 1
        touched.add(page.user_id)
        return True

    def _release(self, outcome: Outcome, touched: set[str], instances: list[Instance]) -> None:
        """Settle what the watermark allows; send it, with the changes of all sessions that it or a new page touched."""
        expired = self._expired()
        # Sorted, so that a step which was rebuilt gives the same bytes.
        for user_id in sorted(touched | self._waiting | expired):
            session = self._sessions[user_id]
            settled = settle(session, self._watermark_ms, self._settings.session_gap_ms, self._settings.max_session_pages)
            instances += settled
            for instance in settled:
                if instance.step == 0:
                    session.first_offset = instance.page.offset
                else:
                    self._let_go(instance.page.offset)
                if instance.done:
                    self._let_go(session.first_offset)
            if settled or user_id in touched:
                outcome.changes.append((USER + user_id.encode(), _encode(session) if session.pages else None))
            self._file(user_id, session, lost_its_place=user_id in expired)
        outcome.outputs = self._outputs(instances)
        if instances:
            outcome.counts[Count("out", TRANSITIONS)] += len(instances)
        # Of what was seen, too: a page that the joiner sends again would be taken for a new one, in the middle of somebody's session.
        next_offset, seen_from = self._clock.next_offset, self._seen.first_offset
        outcome.needed_from[SAMPLES] = min(next(iter(self._held), next_offset), next_offset if seen_from is None else seen_from)

    def _outputs(self, instances: list[Instance]) -> list[Output]:
        """One message a batch. Each promises only what the ones after it keep too."""
        oldest_ms = self._oldest_ms()
        watermark_ms = self._watermark_ms if oldest_ms is None else min(oldest_ms, self._watermark_ms)
        outputs = []
        for batch in reversed(transition_batches(instances, self._settings)):
            outputs.append(Output(TRANSITIONS, encode_batch(batch, watermark_ms)))
            watermark_ms = min(watermark_ms, pc.min(batch.column("ts_ms")).as_py())
        return outputs[::-1]

    def _file(self, user_id: str, session: Session, lost_its_place: bool) -> None:
        """Bring the indexes up to date with what settle() left of a session."""
        self._waiting.discard(user_id)
        if not session.pages:
            del self._sessions[user_id]
            return
        if _waits(session):
            self._waiting.add(user_id)
        if lost_its_place:
            heapq.heappush(self._oldest, (session.pages[0].ts_ms, user_id))

    def _let_go(self, offset: int) -> None:
        self._held[offset] -= 1
        if not self._held[offset]:
            del self._held[offset]

    def _oldest_ms(self) -> int | None:
        """The ts_ms of the oldest page that waits; brings outdated entries of the heap up to date on the way."""
        while self._oldest:
            ts_ms, user_id = self._oldest[0]
            session = self._sessions.get(user_id)
            if session is None:
                heapq.heappop(self._oldest)
            elif session.pages[0].ts_ms != ts_ms:
                heapq.heapreplace(self._oldest, (session.pages[0].ts_ms, user_id))
            else:
                return ts_ms
        return None

    def _expired(self) -> set[str]:
        """Users whose oldest page is more than a gap behind the watermark. They lose their place in the heap."""
        expired: set[str] = set()
        while (oldest_ms := self._oldest_ms()) is not None and oldest_ms + self._settings.session_gap_ms < self._watermark_ms:
            expired.add(heapq.heappop(self._oldest)[1])
        return expired

    def _refuse(self, outcome: Outcome, record: Record, now_ms: int, reason: RejectReason, detail: str, rows: int) -> None:
        outcome.counts[Count("rejected", reason)] += rows
        outcome.dead_letters.append(
            DeadLetter(
                stage="experience",
                reason=reason,
                detail=detail,
                source_topic=SAMPLES,
                source_partition=self._partition,
                source_offset=record.offset,
                size_bytes=len(record.value),
                ts_ms=now_ms,
            )
        )


def _offsets(session: Session) -> list[int]:
    """Where the pages lie that an open session needs: those that wait, and its first one."""
    return [page.offset for page in session.pages] + ([session.first_offset] if session.step else [])


def _waits(session: Session) -> bool:
    """Whether the session's oldest page needs less than a gap of event time to be settled: it has a successor, or the user left."""
    return len(session.pages) > 1 or session.pages[0].left
