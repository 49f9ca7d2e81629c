"""Events accepted and refused lately, in buckets of their arrival: what the alert rules look at."""

from collections.abc import Iterable, Mapping

import msgspec

from monitor.seen import Changes
from monitor.settings import MonitorSettings

PREFIX = b"w"


class Bucket(msgspec.Struct, array_like=True):
    """Events of `bucket_s` seconds, by the broker's time of the record that told of them."""

    refused: int = 0
    accepted: int = 0

    def __add__(self, other: "Bucket") -> "Bucket":
        return Bucket(self.refused + other.refused, self.accepted + other.accepted)


class Window:
    """One partition's buckets by number (arrival // bucket_s), the newest `history_s` seconds of them. Stored: one row a bucket."""

    def __init__(self, settings: MonitorSettings, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.buckets: dict[int, Bucket] = {int.from_bytes(key[1:], "big"): msgspec.msgpack.decode(row, type=Bucket) for key, row in stored}
        self._bucket_ms = settings.bucket_s * 1000
        self._kept = settings.history_s // settings.bucket_s

    def count(self, arrival_ms: int, changes: Changes, refused: int = 0, accepted: int = 0) -> None:
        """Add events to the bucket of their arrival; those of a bucket that is no longer kept change nothing."""
        number = arrival_ms // self._bucket_ms
        newest = max(self.buckets, default=number)
        if number <= newest - self._kept:
            return
        self.buckets[number] = self.buckets.get(number, Bucket()) + Bucket(refused, accepted)
        changes.append((_key(number), msgspec.msgpack.encode(self.buckets[number])))
        if number > newest:
            for old in [old for old in self.buckets if old <= number - self._kept]:
                del self.buckets[old]
                changes.append((_key(old), None))


def _key(number: int) -> bytes:
    return PREFIX + number.to_bytes(8, "big")


def merged(windows: Iterable[Mapping[int, Bucket]]) -> dict[int, Bucket]:
    """The buckets of all partitions together, oldest first."""
    total: dict[int, Bucket] = {}
    for buckets in windows:
        for number, bucket in buckets.items():
            total[number] = total.get(number, Bucket()) + bucket
    return dict(sorted(total.items()))
