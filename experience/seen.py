"""Which pages were delivered already: request ids within a horizon of event time, stored in blocks of one delivery each."""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

PREFIX = b"s"

Change = tuple[bytes, bytes | None]


class _Block(msgspec.Struct, array_like=True, gc=False):
    max_ts_ms: int
    request_ids: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Block).decode


class SeenPages:
    """The ids of all pages with ts_ms >= watermark - horizon (and of some that are older)."""

    def __init__(self, horizon_ms: int, stored: Iterable[tuple[bytes, bytes]]) -> None:
        self._horizon_ms = horizon_ms
        self._blocks = deque((key, _decode(row)) for key, row in stored)
        self._ids = {request_id for _, block in self._blocks for request_id in block.request_ids}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._ids

    @property
    def first_offset(self) -> int | None:
        """Where the oldest delivery lies whose ids are remembered: whoever must know them again reads from there."""
        return int.from_bytes(self._blocks[0][0][len(PREFIX) :], "big") if self._blocks else None

    def add(self, request_id: str) -> None:
        self._ids.add(request_id)

    def remember(self, first_offset: int, max_ts_ms: int, request_ids: Sequence[str]) -> list[Change]:
        """Store the ids that were added by one delivery, whose first message has `first_offset`."""
        if not request_ids:
            return []
        block = _Block(max_ts_ms, list(request_ids))
        key = PREFIX + first_offset.to_bytes(8, "big")
        self._blocks.append((key, block))
        return [(key, _encode(block))]

    def forget(self, watermark_ms: int) -> list[Change]:
        """Drop the blocks that are older than the horizon as a whole, oldest delivery first."""
        changes: list[Change] = []
        while self._blocks and self._blocks[0][1].max_ts_ms < watermark_ms - self._horizon_ms:
            key, block = self._blocks.popleft()
            self._ids.difference_update(block.request_ids)
            changes.append((key, None))
        return changes
