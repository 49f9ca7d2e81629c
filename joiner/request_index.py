"""Page numbers by the hash of their request, for whole batches at a time."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from joiner.labels import Ints

SLOTS = 16
"""Of a bucket: two lines of the processor's cache hold its hashes."""
LEAST_BUCKETS = 64
FULLEST, EMPTIEST, NORMAL = 10, 2, 6
"""Entries a bucket, on average: outside the first two the table is made anew with the third. Of 10 in 1 bucket of 40 one is over."""
AT_ONCE = 1 << 14
"""Entries that are placed at a time: few of them meet in one bucket."""
BITS = np.uint64(32)


class RequestIndex:
    """A hash table in two arrays, B buckets of SLOTS entries; what a full bucket does not take lies in a dict.

    A batch is looked up in one go, so that the processor waits for many places of memory at once: Python's dict waits for one after
    the other, twice a request. It holds hashes alone: whoever asks must check whether the page that it names is of the request.
    """

    def __init__(self) -> None:
        self._entries = 0
        self._make(LEAST_BUCKETS)

    def __len__(self) -> int:
        return self._entries

    def add(self, hashes: Ints, numbers: Ints) -> None:
        """Entries [N]; no two of one number."""
        self._entries += len(hashes)
        if self._entries > FULLEST * len(self._hashes):
            self._remake()
        self._put(hashes, numbers)

    def find(self, hashes: Ints) -> tuple[Ints, Ints]:
        """Of hashes [N] those that have entries, by their places in N, and the entries' numbers: both [found], a place for each."""
        in_bucket = self._bucket(hashes)
        found = np.flatnonzero(self._hashes.take(in_bucket, axis=0) == hashes[:, np.newaxis])
        places = found // SLOTS
        numbers = self._numbers.reshape(-1)[in_bucket[places] * SLOTS + found % SLOTS]
        crowded = np.flatnonzero(self._is_crowded[in_bucket])
        more = [(place, number) for place in crowded.tolist() for number in self._crowded_out.get(int(hashes[place]), ())]
        if more:
            extra = np.array(more, np.int64)
            return np.concatenate([places, extra[:, 0]]), np.concatenate([numbers, extra[:, 1]])
        return places, numbers

    def remove(self, hashes: Ints, numbers: Ints) -> None:
        """Entries [N] that are there."""
        in_bucket = self._bucket(hashes)
        is_it = self._hashes.take(in_bucket, axis=0) == hashes[:, np.newaxis]
        is_it &= self._numbers.take(in_bucket, axis=0) == numbers[:, np.newaxis]
        found = np.flatnonzero(is_it)
        places = found // SLOTS
        self._hashes.reshape(-1)[in_bucket[places] * SLOTS + found % SLOTS] = 0
        if len(found) < len(hashes):
            for place in np.setdiff1d(np.arange(len(hashes)), places).tolist():
                of_hash = self._crowded_out[int(hashes[place])]
                of_hash.remove(int(numbers[place]))
                if not of_hash:
                    del self._crowded_out[int(hashes[place])]
        self._entries -= len(hashes)
        if self._entries < EMPTIEST * len(self._hashes) and len(self._hashes) > LEAST_BUCKETS:
            self._remake()

    def _make(self, buckets: int) -> None:
        self._hashes = np.zeros((buckets, SLOTS), np.int64)  # 0: free
        self._numbers = np.zeros((buckets, SLOTS), np.int64)
        self._crowded_out: dict[int, set[int]] = {}
        self._is_crowded = np.zeros(buckets, np.bool_)  # whether entries of the bucket have gone to the dict

    def _bucket(self, hashes: Ints) -> Ints:
        """From the upper half of a hash, evenly, whatever the number of buckets is."""
        return ((hashes.view(np.uint64) >> BITS) * np.uint64(len(self._hashes)) >> BITS).view(np.int64)

    def _put(self, hashes: Ints, numbers: Ints) -> None:
        for first in range(0, len(hashes), AT_ONCE):
            self._place(hashes[first : first + AT_ONCE], numbers[first : first + AT_ONCE])

    def _place(self, hashes: Ints, numbers: Ints) -> None:
        in_bucket = self._bucket(hashes)
        slots, owners = self._hashes.reshape(-1), self._numbers.reshape(-1)
        while len(hashes):
            is_free = self._hashes.take(in_bucket, axis=0) == 0
            slot = in_bucket * SLOTS + is_free.argmax(axis=1)
            has_room = slots[slot] == 0
            if not has_room.all():
                self._crowd_out(hashes[~has_room], numbers[~has_room])
                hashes, numbers, in_bucket, slot = hashes[has_room], numbers[has_room], in_bucket[has_room], slot[has_room]
            owners[slot] = numbers  # where several want one slot the last one gets it, the others try again
            lost = owners[slot] != numbers
            slots[slot[~lost]] = hashes[~lost]
            hashes, numbers, in_bucket = hashes[lost], numbers[lost], in_bucket[lost]

    def _crowd_out(self, hashes: Ints, numbers: Ints) -> None:
        for key, number in zip(hashes.tolist(), numbers.tolist(), strict=True):
            self._crowded_out.setdefault(key, set()).add(number)
        self._is_crowded[self._bucket(hashes)] = True

    def _remake(self) -> None:
        """Bucket after bucket: they are in the order of their hashes in the old table and in the new one, so both are walked once."""
        hashes, numbers, crowded_out = self._hashes, self._numbers, self._crowded_out
        self._make(max(LEAST_BUCKETS, self._entries // NORMAL))
        taken = np.zeros(len(self._hashes), np.int64)
        for first in range(0, len(hashes), AT_ONCE // SLOTS):
            part = slice(first, first + AT_ONCE // SLOTS)
            is_used = hashes[part] != 0
            self._append(hashes[part][is_used], numbers[part][is_used], taken)
        keys = np.fromiter(crowded_out, np.int64, len(crowded_out))
        counts = np.fromiter(map(len, crowded_out.values()), np.int64, len(crowded_out))
        self._append(np.repeat(keys, counts), np.fromiter(chain(*crowded_out.values()), np.int64, counts.sum()), taken)

    def _append(self, hashes: Ints, numbers: Ints, taken: Ints) -> None:
        """Place entries in the first free slots of their buckets: `taken` [B] are those before them, nothing was removed yet."""
        in_bucket = self._bucket(hashes)
        order = np.argsort(in_bucket, kind="stable")
        hashes, numbers, in_bucket = hashes[order], numbers[order], in_bucket[order]
        firsts = np.flatnonzero(np.diff(in_bucket, prepend=-1))
        counts = np.diff(firsts, append=len(hashes))
        place = taken[in_bucket] + np.arange(len(hashes)) - np.repeat(firsts, counts)
        taken[in_bucket[firsts]] += counts
        has_room = place < SLOTS
        slot = (in_bucket * SLOTS + place)[has_room]
        self._hashes.reshape(-1)[slot], self._numbers.reshape(-1)[slot] = hashes[has_room], numbers[has_room]
        self._crowd_out(hashes[~has_room], numbers[~has_room])


def hashes_of(request_ids: Sequence[str]) -> Ints:
    """As Python has them in this process; none is 0."""
    hashes = np.fromiter(map(hash, request_ids), np.int64, len(request_ids))
    hashes[hashes == 0] = 1
    return hashes
