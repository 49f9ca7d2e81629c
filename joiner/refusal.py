"""Dead letters of the joiner: each refused record is counted and its place reported."""

from dataclasses import dataclass

from headrace.step import Count, Outcome, Record
from schemas.dead_letter import DeadLetter, Reason

DETAIL_LENGTH = 200


@dataclass(frozen=True)
class Refusals:
    """Where one call of a step, at `now_ms`, writes what it does not accept."""

    outcome: Outcome
    partition: int
    now_ms: int

    def refuse(self, topic: str, record: Record, reason: Reason, detail: str) -> None:
        """A dead letter and its count."""
        self.outcome.counts[Count("rejected", reason)] += 1
        self.outcome.dead_letters.append(
            DeadLetter(
                stage="joiner",
                reason=reason,
                detail=detail[:DETAIL_LENGTH],
                source_topic=topic,
                source_partition=self.partition,
                source_offset=record.offset,
                size_bytes=len(record.value),
                ts_ms=self.now_ms,
            )
        )

    def ignore(self, what: str) -> None:
        """Harmless: counted only."""
        self.outcome.counts[Count("ignored", what)] += 1
