"""What a stream stage is: per partition, a pure step from a batch of records to what must be sent, stored and committed."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from schemas.dead_letter import DeadLetter


class Record(NamedTuple):
    """One record as it lies in a topic. `arrival_ms` is the time that the broker has for it."""

    offset: int
    arrival_ms: int
    value: bytes


class Output(NamedTuple):
    """One message to send, to the same partition number that the step works on."""

    topic: str
    value: bytes


class Count(NamedTuple):
    """What a counter counts: `name` is in, out, out_of_order (`label`: the topic), rejected or ignored (`label`: the reason)."""

    name: str
    label: str


@dataclass
class Outcome:
    """What a step did with a batch, or with the passing of time.

    `changes` are the state's new rows (None deletes). They are stored in one atomic write, together with the offsets and the
    counts, after `outputs` were acknowledged. `needed_from` names, by input topic, the offset from which the topic must be read
    again to rebuild the state without a disk: only offsets below it are committed.
    """

    outputs: list[Output] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    changes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    counts: Counter[Count] = field(default_factory=Counter)
    needed_from: dict[str, int] = field(default_factory=dict)


class PartitionStep(Protocol):
    """One partition of a stage: pure logic with its state in memory. It never looks at a clock, a disk or a network.

    A step is made from the rows that its earlier life stored, and from nothing else: making it again from them gives the same
    step. `apply` gets the records of one topic in offset order, none of them twice; `tick` is called about twice a second, with the
    topics that are not known to be read to their end: those are not silent, however long ago their last record came.
    """

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome: ...

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome: ...

    def gauges(self) -> Mapping[str, float]:
        """What the step looks like now: watermark_ms, open_pages and such, for /metrics."""
        ...


@runtime_checkable
class PausingStep(PartitionStep, Protocol):
    """A step that can do without a topic for a while, so as not to hold more than it wants in memory.

    `paused` is asked after every apply and tick. A topic that it names is not fetched any more, and `apply` sees nothing of it until
    it is named no longer; then it goes on where it was. What waits in it is not silence: `tick` has it among the unread topics.
    """

    def paused(self) -> Collection[str]: ...


class StoredRows(Protocol):
    """The rows that a step's earlier life stored, sorted by key, and those that its outcomes have changed since.

    What an outcome changes is to be seen here before the step's next call.
    """

    def require_layout(self, layout: int) -> None:
        """Forget all rows where they were written in another layout. A step whose rows have changed calls it before it reads them."""
        ...

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...

    def rows(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `prefix`."""
        ...

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of rows; None where there is no such row."""
        ...

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        """The values of rows that are there. Raises KeyError where one is not."""
        ...


class MakeStep(Protocol):
    """Makes the step of a partition from its stored rows."""

    def __call__(self, partition: int, stored: StoredRows) -> PartitionStep: ...
