"""Which pages were delivered already: request ids within a horizon of event time, stored in blocks of one delivery each."""

from collections import deque
from collections.abc import Sequence

import msgspec

from experience.known_ids import KnownIds
from headrace.step import StoredRows

PREFIX = b"s"

Change = tuple[bytes, bytes | None]


class _Block(msgspec.Struct, array_like=True, gc=False):
    max_ts_ms: int
    request_ids: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Block).decode


class SeenPages:
    """The ids of all pages with ts_ms >= watermark - horizon (and of some that are older), 16 bytes each."""

    def __init__(self, horizon_ms: int, stored: StoredRows, watermark_ms: int, prefix: bytes = PREFIX) -> None:
        self._prefix = prefix
        self._horizon_ms = horizon_ms
        self._deliveries: deque[tuple[int, int]] = deque()  # first offset, newest ts_ms
        self._ids = KnownIds()
        for key, row in stored.rows(prefix):
            block = _decode(row)
            self._add(int.from_bytes(key[1:], "big"), block.max_ts_ms, block.request_ids)
        self._ids.expire(watermark_ms - horizon_ms)

    @property
    def first_offset(self) -> int | None:
        """Where the oldest delivery lies whose ids are remembered: whoever must know them again reads from there."""
        return self._deliveries[0][0] if self._deliveries else None

    def known(self, request_ids: Sequence[str]) -> set[str]:
        """Those that were delivered already."""
        return self._ids.known(request_ids)

    def remember(self, first_offset: int, max_ts_ms: int, request_ids: list[str]) -> list[Change]:
        """Remember and store the ids of one delivery, whose first message has `first_offset`."""
        if not request_ids:
            return []
        self._add(first_offset, max_ts_ms, request_ids)
        return [(self._key(first_offset), _encode(_Block(max_ts_ms, request_ids)))]

    def forget(self, watermark_ms: int) -> list[Change]:
        """Drop the deliveries that are older than the horizon as a whole, oldest first."""
        self._ids.expire(watermark_ms - self._horizon_ms)
        changes: list[Change] = []
        while self._deliveries and self._deliveries[0][1] < watermark_ms - self._horizon_ms:
            changes.append((self._key(self._deliveries.popleft()[0]), None))
        return changes

    def _add(self, first_offset: int, max_ts_ms: int, request_ids: Sequence[str]) -> None:
        self._deliveries.append((first_offset, max_ts_ms))
        self._ids.add(max_ts_ms, request_ids)

    def _key(self, first_offset: int) -> bytes:
        return self._prefix + first_offset.to_bytes(8, "big")
