"""The stored rows of feedback that set labels: each is kept as long as one of the blocks that it labelled is open."""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from headrace.step import Outcome, Record
from joiner.block import Block
from joiner.rows import pack_records, row_key
from joiner.waiting import WaitingFeedback


class KeptFeedback:
    """Which rows are kept, by the offset of their first record, and from where the topic is needed."""

    def __init__(self) -> None:
        self._rows: set[int] = set()
        self._by_newest_ms: list[tuple[int, int]] = []  # heap of (newest ts_ms of the blocks that a row labelled, the row)
        self._needed: list[int] = []  # heap of offsets, some of them no longer needed

    def keep(self, records: Sequence[Record], labelled: Iterable[Block], outcome: Outcome) -> None:
        """Store the records of labels as one row."""
        first_offset = min(record.offset for record in records)
        self.hold(first_offset, labelled)
        outcome.changes.append((row_key(b"f", first_offset), pack_records(records)))

    def hold(self, first_offset: int, labelled: Iterable[Block]) -> None:
        """Keep a row that is stored."""
        self._rows.add(first_offset)
        heappush(self._by_newest_ms, (max((block.max_ts_ms for block in labelled), default=0), first_offset))
        heappush(self._needed, first_offset)

    def need(self, offset: int) -> None:
        """A record that waits is needed, too."""
        heappush(self._needed, offset)

    def forget(self, before_ms: int, outcome: Outcome) -> None:
        """The blocks whose newest exposure is older than `before_ms` are closed: drop the rows that labelled no other."""
        while self._by_newest_ms and self._by_newest_ms[0][0] < before_ms:
            first_offset = heappop(self._by_newest_ms)[1]
            self._rows.remove(first_offset)
            outcome.changes.append((row_key(b"f", first_offset), None))

    def first_needed(self, waiting: WaitingFeedback) -> int | None:
        """The first offset that an open block or a waiting feedback needs."""
        heap = self._needed
        while heap and heap[0] not in self._rows and heap[0] not in waiting.offsets:
            heappop(heap)
        return heap[0] if heap else None
