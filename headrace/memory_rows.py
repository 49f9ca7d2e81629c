"""A step with its rows in memory: what a stage and its store are to it, without a disk."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from headrace.step import Outcome, PartitionStep, Record, StoredRows


class MemoryRows:
    """`StoredRows` in a dict."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._rows = dict(stored)

    def require_layout(self, layout: int) -> None:
        """What is in memory was written by this version."""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self.rows()

    def rows(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `prefix`, sorted by key."""
        for key in sorted(key for key in self._rows if key.startswith(prefix)):
            yield key, self._rows[key]

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of rows; None where there is no such row."""
        return [self._rows.get(key) for key in keys]

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        """The values of rows that are there. Raises KeyError where one is not."""
        return [self._rows[key] for key in keys]

    def change(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put rows, or delete those whose value is None."""
        for key, value in changes:
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value


class InMemory:
    """A `PartitionStep` made from `stored` whose changes are kept for it."""

    def __init__(self, make_step: Callable[[StoredRows], PartitionStep], stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._rows = MemoryRows(stored)
        self._step = make_step(self._rows)

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        return self._kept(self._step.apply(topic, records, now_ms))

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        return self._kept(self._step.tick(now_ms, unread))

    def gauges(self) -> Mapping[str, float]:
        return self._step.gauges()

    def _kept(self, outcome: Outcome) -> Outcome:
        self._rows.change(outcome.changes)
        return outcome
