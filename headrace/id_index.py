"""id -> place: an open-addressing hash table of columns, worked on for a whole batch of ids at once.

Linear probing (Knuth, *The Art of Computer Programming* 3, 6.4, algorithm L), home slot by Fibonacci hashing (6.4, p. 517). Every pass
looks at one slot for each id that is not settled yet, so that the passes of a batch grow shorter and shorter. An id costs 16 bytes a slot:
ten million ids lie in 2 ** 24 slots, 256 MiB; a dict of Python integers takes more than a gigabyte.

Ids are 64-bit keys of which two values are taken: EMPTY marks a slot that never held one, GONE one whose id was removed.
"""

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.int64]

EMPTY, GONE = np.uint64(0), np.uint64(1)
FIRST_KEY = 2
MAX_LOAD = 0.65
"""Used slots by all slots. Then an id that is there takes 1.9 looks on average, one that is not 4.6 (Knuth, 6.4, eq. 23 and 24)."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SMALLEST = 1 << 10


class IdIndex:
    """Columns by slot: `keys`; `places` and `seen`, which mean what the owner wants. Slots change with `insert` and `remove`."""

    def __init__(self) -> None:
        self._make(_SMALLEST)

    def _make(self, slots: int) -> None:
        self.keys = np.zeros(slots, np.uint64)
        self.places = np.zeros(slots, np.int32)
        self.seen = np.zeros(slots, np.uint32)
        self._count = self._used = 0
        self._shift = np.uint64(64 - slots.bit_length() + 1)
        self._mask = np.int64(slots - 1)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return self.keys.nbytes + self.places.nbytes + self.seen.nbytes

    def slots(self) -> Slots:
        """The slots that hold an id, in no order."""
        return np.flatnonzero(self.keys >= FIRST_KEY)

    def find(self, keys: Keys) -> Slots:
        """The slot of each id; -1 where it is not there, as EMPTY never is."""
        slots = self._home(keys)
        held = self.keys[slots]
        open_ = np.flatnonzero((held != keys) & (held != EMPTY))
        slots[held == EMPTY] = -1
        at, wanted = slots[open_], keys[open_]
        while len(open_):
            at = (at + 1) & self._mask
            held = self.keys[at]
            is_held = held != EMPTY
            is_open = (held != wanted) & is_held
            slots[open_] = np.where(is_held, at, -1)
            open_, at, wanted = open_[is_open], at[is_open], wanted[is_open]
        return slots

    def insert(self, keys: Keys) -> Slots:
        """Take in distinct ids that are not there. Gives their slots; those of others may change, too."""
        assert keys.size == 0 or int(keys.min()) >= FIRST_KEY, "keys 0 and 1 are taken"
        if self._used + len(keys) > MAX_LOAD * len(self.keys):
            self._rebuild(self._count + len(keys))
        slots = self._home(keys)
        open_, at, wanted = np.arange(len(keys)), slots, keys
        while len(open_):
            held = self.keys[at]
            is_free = held < FIRST_KEY
            free = at[is_free]
            self.keys[free] = wanted[is_free]  # of several that want one slot the last gets it
            is_in = self.keys[at] == wanted
            self._used += int(np.count_nonzero(is_in & (held == EMPTY)))
            slots[open_[is_in]] = at[is_in]
            open_, at, wanted = open_[~is_in], (at[~is_in] + 1) & self._mask, wanted[~is_in]
        self._count += len(keys)
        return slots

    def remove(self, slots: Slots) -> None:
        """Forget the ids in these slots."""
        self.keys[slots] = GONE
        self._count -= len(slots)

    def _home(self, keys: Keys) -> Slots:
        return ((keys * _GOLDEN) >> self._shift).astype(np.int64)

    def _rebuild(self, count: int) -> None:
        """Into as many slots as `count` ids want: GONE ones are free again. Not at the limit, or the next batch would rebuild it again."""
        slots = _SMALLEST
        while count > 0.93 * MAX_LOAD * slots:
            slots *= 2
        live = self.slots()
        keys, places, seen = self.keys[live], self.places[live], self.seen[live]
        self._make(slots)
        for start in range(0, len(keys), 1 << 20):  # the temporaries of all at once would double the memory
            part = slice(start, start + (1 << 20))
            at = self.insert(keys[part])
            self.places[at], self.seen[at] = places[part], seen[part]
