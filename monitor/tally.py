"""The monitor's step: everything that flows through Headrace, counted once, per partition and durably.

The state is a handful of small tallies, one a topic, each with rows of its own: a record changes the rows that it touches (totals,
its versions, its open sessions) and adds the digests of its ids. Nothing is rewritten that a record did not touch.
Each topic's tally depends on that topic's records alone, so it does not matter how the topics' records interleave.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache

import msgspec
import numpy as np
import pyarrow as pa

from headrace.step import Count, Outcome, Record
from monitor import letters, pages, rewards, versions, window
from monitor.letters import LetterTally
from monitor.pages import PageTally
from monitor.rewards import RewardTally
from monitor.seen import Changes
from monitor.settings import MonitorSettings
from monitor.versions import VersionTally
from monitor.window import Window
from schemas.codec import UNREADABLE, WrongBatchError, batch_kinds, decode_batch
from schemas.dead_letter import DeadLetter
from schemas.policy import PolicyVersion
from schemas.sample import sample_schema
from schemas.topics import DEAD_LETTERS, POLICIES, SAMPLES, TRANSITIONS
from schemas.transition import transition_schema

INPUTS = (SAMPLES, TRANSITIONS, POLICIES, DEAD_LETTERS)
STAGE = "monitor"

_decode_policy = msgspec.json.Decoder(PolicyVersion).decode
_decode_letter = msgspec.json.Decoder(DeadLetter).decode


class PartitionTally:
    """A PartitionStep over `INPUTS`. Its outputs are dead letters only: reports, metrics and alerts read the tallies."""

    def __init__(self, settings: MonitorSettings, partition: int, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        rows: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for key, row in stored:
            rows.setdefault(key[:1], []).append((key, row))
        self.partition = partition
        self.pages = PageTally(settings, rows.get(pages.PREFIX, ()))
        self.rewards = RewardTally(settings, rows.get(rewards.PREFIX, ()))
        self.versions = VersionTally(settings, rows.get(versions.PREFIX, ()))
        self.letters = LetterTally(settings, rows.get(letters.PREFIX, ()))
        self.window = Window(settings, rows.get(window.PREFIX, ()))
        self._readers: dict[str, Callable[[Record, Changes, Counter[Count]], None]] = {
            SAMPLES: self._on_samples,
            TRANSITIONS: self._on_transitions,
            POLICIES: self._on_policy,
            DEAD_LETTERS: self._on_dead_letter,
        }

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        """Count the records of one topic. What cannot be read is refused; the rest of the batch is counted."""
        outcome = Outcome()
        changes: Changes = []
        for record in records:
            try:
                self._readers[topic](record, changes, outcome.counts)
            except (*UNREADABLE, WrongBatchError) as error:
                outcome.counts[Count("in", topic)] += 1
                outcome.counts[Count("rejected", "malformed")] += 1
                outcome.dead_letters.append(
                    DeadLetter(
                        stage=STAGE,
                        reason="malformed",
                        detail=str(error)[:500],
                        source_topic=topic,
                        source_partition=self.partition,
                        source_offset=record.offset,
                        size_bytes=len(record.value),
                        ts_ms=now_ms,
                    )
                )
            # A tally has no memory of records to rebuild: without the disk the monitor counts on from here, from zero.
            outcome.needed_from[topic] = record.offset + 1
        outcome.changes = list(dict(changes).items())  # only a row's last change needs writing
        outcome.counts = +outcome.counts
        return outcome

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        """Time alone changes nothing."""
        return Outcome()

    def gauges(self) -> Mapping[str, float]:
        return {
            "watermark_ms": self.rewards.totals.watermark_ms,
            "open_sessions": len(self.rewards.open),
            "remembered_ids": len(self.pages.seen) + len(self.rewards.seen) + len(self.letters.seen),
        }

    def _on_samples(self, record: Record, changes: Changes, counts: Counter[Count]) -> None:
        batch, watermark_ms = _opened(record.value, SAMPLES)
        fresh = self.pages.count(record.offset, batch, watermark_ms, changes, counts)
        counts[Count("in", SAMPLES)] += len(batch)
        self.window.count(record.arrival_ms, changes, accepted=fresh)

    def _on_transitions(self, record: Record, changes: Changes, counts: Counter[Count]) -> None:
        batch, watermark_ms = _opened(record.value, TRANSITIONS)
        _, feedback_count = self.rewards.count(record.offset, batch, watermark_ms, changes, counts)
        counts[Count("in", TRANSITIONS)] += len(batch)
        self.window.count(record.arrival_ms, changes, accepted=feedback_count)

    def _on_policy(self, record: Record, changes: Changes, counts: Counter[Count]) -> None:
        if not record.value:  # a tombstone: the policy was withdrawn from the compacted topic; its versions stay in the report
            counts[Count("ignored", "tombstone")] += 1
        elif not self.versions.count(_decode_policy(record.value), changes):
            counts[Count("ignored", "duplicate")] += 1
        counts[Count("in", POLICIES)] += 1

    def _on_dead_letter(self, record: Record, changes: Changes, counts: Counter[Count]) -> None:
        if self.letters.count(record.offset, record.arrival_ms, _decode_letter(record.value), changes):
            self.window.count(record.arrival_ms, changes, refused=1)
        else:
            counts[Count("ignored", "duplicate")] += 1
        counts[Count("in", DEAD_LETTERS)] += 1


@cache
def _expected_schema(topic: str, kinds: tuple[str, ...]) -> pa.Schema:
    return sample_schema(kinds) if topic == SAMPLES else transition_schema(kinds)


def _opened(message: bytes, topic: str) -> tuple[pa.RecordBatch, int]:
    """A record batch with exactly the columns that its topic promises, and its watermark."""
    batch, watermark_ms = decode_batch(message, topic)
    schema = batch.schema
    if b"headrace.kinds" not in schema.metadata or not schema.equals(_expected_schema(topic, batch_kinds(schema))):
        raise WrongBatchError(f"a batch of {topic} with other columns: {', '.join(schema.names)}")
    holes = [field.name for field, column in zip(schema, batch.columns, strict=True) if column.null_count and not field.nullable]
    if holes:
        raise WrongBatchError(f"a batch of {topic} with nulls in {', '.join(holes)}")
    if topic == TRANSITIONS and not np.isfinite(batch["reward"].to_numpy()).all():
        raise WrongBatchError("a transition's reward is not finite")
    return batch, watermark_ms
