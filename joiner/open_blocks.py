"""The open blocks of a partition, and which page of them a request is."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from joiner.block import Block
from joiner.pages import BLOCK_BYTES, ROW_BYTES

PAGE_BITS = 16
PAGE_MASK = (1 << PAGE_BITS) - 1
assert BLOCK_BYTES // ROW_BYTES < PAGE_MASK, "a page's number is its block's number and, in these bits, its place in the block"


class Place(NamedTuple):
    """Where an open page is."""

    block: Block
    page: int


class OpenBlocks:
    """Blocks in the order in which they were opened, which is that of their offsets."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}  # request_id -> page number
        self._blocks: dict[int, Block] = {}
        self._next_number = 0
        self._oldest_newest_ms = 0  # no open block's newest exposure is older
        self.items = 0
        self.pages = 0

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._index

    @property
    def requests(self) -> dict[str, int]:
        """The open requests, as a container that costs no call of ours to look into."""
        return self._index

    def place(self, request_id: str) -> Place | None:
        """The open page of a request."""
        number = self._index.get(request_id)
        return None if number is None else Place(self._blocks[number >> PAGE_BITS], number & PAGE_MASK)

    def add(self, columns: pa.RecordBatch, request_ids: Sequence[str]) -> Block:
        """Open a block of pages with these keys; `request_ids` are one of them, as strings."""
        block = Block(columns)
        self._oldest_newest_ms = min(self._oldest_newest_ms, block.max_ts_ms) if self._blocks else block.max_ts_ms
        self._blocks[self._next_number] = block
        number = self._next_number << PAGE_BITS
        self._index.update(zip(request_ids, range(number, number + block.pages), strict=True))
        self._next_number += 1
        self.items += block.rows
        self.pages += block.pages
        return block

    def ended(self, before_ms: int) -> list[Block]:
        """The blocks whose newest exposure is older than `before_ms`."""
        if not self._blocks or self._oldest_newest_ms >= before_ms:
            return []
        return [block for block in self if block.max_ts_ms < before_ms]

    def remove(self, block: Block, request_ids: Sequence[str]) -> None:
        """Close a block with these requests."""
        number = self._index[request_ids[0]] >> PAGE_BITS
        assert self._blocks[number] is block, request_ids[0]
        del self._blocks[number]
        for request_id in request_ids:
            del self._index[request_id]
        self.items -= block.rows
        self.pages -= block.pages
        self._oldest_newest_ms = min((open_block.max_ts_ms for open_block in self), default=0)

    def oldest_ms(self, otherwise_ms: int) -> int:
        """The oldest exposure that is open, if it is older than `otherwise_ms`."""
        return min([otherwise_ms, *(block.min_ts_ms for block in self)])

    def first_offset(self) -> int:
        """Of the first block."""
        return next(iter(self)).first_offset
