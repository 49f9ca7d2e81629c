"""Ids that are kept for long, without an object each.

A string takes 50 bytes beside its text. What is worse: the ones that stay lie scattered among those that come and go with each batch,
and whatever is made later is made in the gaps between them, all over memory: with a million open pages a set of event ids slowed
down the decoding of exposures by a fifth.
"""

from array import array

import pyarrow as pa

LEAST_SLOTS = 8


class Ids:
    """N ids, in order."""

    def __init__(self, column: pa.StringArray) -> None:
        _, ends, text = column.buffers()
        self._ends = array("i", ends[4 * column.offset : 4 * (column.offset + len(column) + 1)].to_pybytes())
        self._text = b"" if text is None else text[: self._ends[-1]].to_pybytes()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def is_at(self, place: int, wanted: str) -> bool:
        """Whether the id there is this one."""
        return self._text[self._ends[place] : self._ends[place + 1]] == wanted.encode()

    def index(self, wanted: str, start: int, end: int) -> int:
        """The first place in [start, end) that is this id, else -1."""
        key, ends, text = wanted.encode(), self._ends, self._text
        for place in range(start, end):
            if text[ends[place] : ends[place + 1]] == key:
                return place
        return -1


class EventIds:
    """The events that each page of a block has had: a set of (page, event_id), as an open hash table with linear probing."""

    def __init__(self) -> None:
        self._pages, self._ends, self._text = array("i"), array("i", [0]), bytearray()
        self._slots = array("i", bytes(4 * LEAST_SLOTS))  # 0: free, else 1 + the place of an event

    def add(self, page: int, event_id: str) -> bool:
        """Whether it is new."""
        key = event_id.encode()
        slot = self._slot(page, key)
        if self._slots[slot]:
            return False
        self._pages.append(page)
        self._text += key
        self._ends.append(len(self._text))
        self._slots[slot] = len(self._pages)
        if 2 * len(self._pages) > len(self._slots):
            self._grow()
        return True

    def _slot(self, page: int, key: bytes) -> int:
        """Where it lies, or would."""
        slots, last = self._slots, len(self._slots) - 1
        slot = hash((page, key)) & last
        while found := slots[slot]:
            if self._pages[found - 1] == page and self._text[self._ends[found - 1] : self._ends[found]] == key:
                break
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        self._slots = array("i", bytes(16 * len(self._slots)))
        for place, page in enumerate(self._pages):
            self._slots[self._slot(page, bytes(self._text[self._ends[place] : self._ends[place + 1]]))] = 1 + place
