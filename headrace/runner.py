"""The in-process runner: the stages' pure steps chained without a broker, in event-time order, deterministic.

It gives what the brokered pipeline gives for the same events. Its clock stands still at a time that no event lies behind, so that
neither side of a join ever looks idle while the log is read; at its end one tick, far later, closes every window and session, as
silence does in a live system.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from headrace.step import Count, Outcome, PartitionStep, Record
from schemas.dead_letter import DeadLetter
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES, TRANSITIONS

CHUNK_EVENTS = 5_000
SILENCE_MS = 10 * 365 * 24 * 3_600_000
"""How much later the last tick is: longer than any window, session gap or idle time."""


class Event(NamedTuple):
    """One external event for `topic` (exposures or feedback), with its own time, which is its arrival time too."""

    ts_ms: int
    topic: str
    value: bytes


class Message(NamedTuple):
    """One record batch between stages, with its offset in its topic."""

    offset: int
    value: bytes


@dataclass
class Emitted:
    """What the chain gave for some events: messages of `samples` and `transitions`, and what was refused, in order."""

    samples: list[Message] = field(default_factory=list)
    transitions: list[Message] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)

    def extend(self, other: "Emitted") -> None:
        """Append what came later."""
        self.samples += other.samples
        self.transitions += other.transitions
        self.dead_letters += other.dead_letters


class InProcess:
    """exposures, feedback -> `join` -> samples -> `sessions` -> transitions, as one partition of the pipeline.

    Offsets count up from 0 in each topic, in the order of the events. `now_ms` is the clock: not before the newest event.
    """

    def __init__(self, join: PartitionStep, sessions: PartitionStep, now_ms: int) -> None:
        self._steps = {"joiner": join, "experience": sessions}
        self._now_ms = now_ms
        self._next_offset: Counter[str] = Counter()
        self.counts: dict[str, Counter[Count]] = {stage: Counter() for stage in self._steps}

    def feed(self, events: Sequence[Event]) -> Emitted:
        """Apply the next events, which are in event-time order; each topic's part of them is one delivered batch."""
        emitted = Emitted()
        for topic in (EXPOSURES, FEEDBACK):
            values = [(event.ts_ms, event.value) for event in events if event.topic == topic]
            if values:
                records = self._records(topic, values)
                self._take("joiner", self._steps["joiner"].apply(topic, records, self._now_ms), emitted)
        return emitted

    def close(self) -> Emitted:
        """The log is over: long silence closes what is open."""
        emitted = Emitted()
        # Twice: a step that has seen no tick yet may only begin to measure the silence.
        for now_ms in (self._now_ms, self._now_ms + SILENCE_MS):
            for stage, step in self._steps.items():
                self._take(stage, step.tick(now_ms), emitted)
        return emitted

    def _records(self, topic: str, values: Iterable[tuple[int, bytes]]) -> list[Record]:
        first = self._next_offset[topic]
        records = [Record(offset, arrival_ms, value) for offset, (arrival_ms, value) in enumerate(values, first)]
        self._next_offset[topic] += len(records)
        return records

    def _take(self, stage: str, outcome: Outcome, emitted: Emitted) -> None:
        """Count an outcome and hand its messages on to the next stage."""
        self.counts[stage].update(outcome.counts)
        emitted.dead_letters += outcome.dead_letters
        for output in outcome.outputs:
            (record,) = self._records(output.topic, [(self._now_ms, output.value)])
            message = Message(record.offset, record.value)
            if output.topic == TRANSITIONS:
                emitted.transitions.append(message)
            else:
                assert output.topic == SAMPLES, output.topic
                emitted.samples.append(message)
                self._take("experience", self._steps["experience"].apply(SAMPLES, [record], self._now_ms), emitted)


def in_event_time_order(exposures: Iterable[Event], feedback: Iterable[Event]) -> list[Event]:
    """Both sides as one: by time, at the same millisecond pages first, else in the order given."""
    return sorted([*exposures, *feedback], key=lambda event: (event.ts_ms, event.topic != EXPOSURES))


def run(
    join: PartitionStep, sessions: PartitionStep, events: Iterable[Event], now_ms: int, chunk_events: int = CHUNK_EVENTS
) -> tuple[Emitted, InProcess]:
    """All of a log's events, in event-time order, to the end. The second value has the counts."""
    chain = InProcess(join, sessions, now_ms)
    emitted = Emitted()
    for chunk in chunks(iter(events), chunk_events):
        emitted.extend(chain.feed(chunk))
    emitted.extend(chain.close())
    return emitted, chain


def chunks(events: Iterator[Event], size: int) -> Iterator[list[Event]]:
    """The events in lists of `size`, the last one shorter."""
    while chunk := list(islice(events, size)):
        yield chunk
