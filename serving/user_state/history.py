"""A user's newest events by kind, and the features that are made of them when a request comes.

It is a function of the *set* of events: the newest `max_events` of a kind by (time, id), each id once. How they were ordered, cut into
batches or delivered again has no effect.
"""

from bisect import bisect_left, bisect_right
from hashlib import blake2b

import msgspec
from msgspec import Struct


class Events(Struct, array_like=True, gc=False):
    """Events of one kind, oldest first, column by column."""

    ts_ms: list[int] = []
    hashes: list[int] = []
    """64 bits of each event's id."""
    items: list[str] = []
    categories: list[str] = []

    def add(self, ts_ms: int, event_id: str, item_id: str, category: str, max_events: int) -> bool:
        """Put an event in its place; the oldest gives way. False where it is there already."""
        event_hash = hash_of(event_id)
        if event_hash in self.hashes:
            return False
        first, last = bisect_left(self.ts_ms, ts_ms), bisect_right(self.ts_ms, ts_ms)
        place = bisect_left(self.hashes, event_hash, first, last)
        self.ts_ms.insert(place, ts_ms)
        self.hashes.insert(place, event_hash)
        self.items.insert(place, item_id)
        self.categories.insert(place, category)
        if len(self.ts_ms) > max_events:
            for column in (self.ts_ms, self.hashes, self.items, self.categories):
                del column[0]
        return True

    def since(self, ts_ms: int, until_ms: int) -> tuple[int, int]:
        """Places of the events later than `ts_ms`, up to and including `until_ms`."""
        return bisect_right(self.ts_ms, ts_ms), bisect_right(self.ts_ms, until_ms)


History = dict[str, Events]
"""A user's events by kind."""

decode_history = msgspec.msgpack.Decoder(History).decode
encode_history = msgspec.msgpack.Encoder(order="sorted").encode


def hash_of(event_id: str) -> int:
    """64 bits of an id: among a user's few hundred events two ids collide once in some 1e14 users."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "big")


def newest_ms(history: History) -> int:
    """When the user was last heard of."""
    return max(events.ts_ms[-1] for events in history.values())
