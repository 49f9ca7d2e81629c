"""Which events the pages of a block have had, in one buffer."""

from array import array

LEAST_SLOTS = 8


class EventIds:
    """A set of (page, event_id), as an open hash table of their hashes with linear probing.

    Of 10**14 blocks with 500 events each, one may take a new event for one that it has had: hashes have 64 bits.
    """

    __slots__ = ("_count", "_slots")

    def __init__(self) -> None:
        self._count = 0
        self._slots = array("q", bytes(8 * LEAST_SLOTS))  # 0: free

    def add(self, page: int, event_id: str) -> bool:
        """Whether it is new."""
        key = hash((page, event_id)) or 1
        slot = self._slot(key)
        if self._slots[slot]:
            return False
        self._slots[slot] = key
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    def _slot(self, key: int) -> int:
        """Where it lies, or would."""
        slots, last = self._slots, len(self._slots) - 1
        slot = key & last
        while slots[slot] not in (0, key):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        keys = [key for key in self._slots if key]
        self._slots = array("q", bytes(16 * len(self._slots)))
        for key in keys:
            self._slots[self._slot(key)] = key
