"""A partition's durable rows, with the input offsets and the counts that belong to them, wherever they are kept."""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import cast

import msgspec

from headrace.step import Count

log = logging.getLogger(__name__)

FIRST_LAYOUT = 1
"""Of a stage that has never changed its rows, and of states from before there were numbers."""


class _Covered(msgspec.Struct):
    offsets: dict[str, int] = {}
    """Next offset of each input topic: everything below it is in the state."""
    counts: list[tuple[str, str, int]] = []
    topic_ids: dict[str, str] = {}
    """Which log of each input topic the offsets belong to."""
    layout: int = FIRST_LAYOUT
    """How the rows are to be read: a number that the stage raises."""


class DurableRows(ABC):
    """`StoredRows` that outlive their process."""

    folder: PurePath
    """Where they are, for people."""
    layout: int | None
    """None where nothing is stored yet."""
    offsets: dict[str, int]
    counts: Counter[Count]
    topic_ids: dict[str, str]

    def _take_over(self, covered: bytes | None) -> None:
        """What belongs to the rows, as `_moved_on` gave it for the last write; None where nothing is stored."""
        stored = msgspec.msgpack.decode(covered, type=_Covered) if covered else _Covered()
        self.offsets, self.topic_ids = stored.offsets, stored.topic_ids
        self.counts = Counter({Count(name, label): n for name, label, n in stored.counts})
        self.layout = stored.layout if covered else None

    def _moved_on(self, offsets: dict[str, int], counts: Counter[Count]) -> bytes:
        """Move `offsets` on and add `counts`. Gives what is to be stored in the same write as the rows."""
        self.offsets.update(offsets)
        self.counts.update(counts)
        counted = [(count.name, count.label, n) for count, n in self.counts.items()]
        return msgspec.msgpack.encode(_Covered(self.offsets, counted, self.topic_ids, self.layout or FIRST_LAYOUT))

    def require_layout(self, layout: int) -> None:
        """Forget rows that were written in another layout: the state is rebuilt from the committed offsets, as without a disk."""
        if self.layout not in (None, layout):
            log.warning("the state in %s has layout %s, this version has %d: rebuilding it from Kafka", self.folder, self.layout, layout)
            self.wipe()
        self.layout = layout

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self.rows()

    @abstractmethod
    def rows(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `prefix`, sorted by key."""

    @abstractmethod
    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of rows; None where there is no such row."""

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        """The values of rows that are there. Raises KeyError where one is not."""
        values = self.find(keys)
        if None in values:
            raise KeyError(keys[values.index(None)])
        return cast(list[bytes], values)

    @abstractmethod
    def write(self, changes: Sequence[tuple[bytes, bytes | None]], offsets: dict[str, int], counts: Counter[Count]) -> None:
        """Apply `changes` (None deletes), move `offsets` on and add `counts`, all or nothing. Raises ConfigError."""

    @abstractmethod
    def wipe(self) -> None:
        """Forget everything: the state is rebuilt from Kafka."""

    @abstractmethod
    def close(self) -> None:
        """Release them for another worker."""
