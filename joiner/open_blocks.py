"""The open blocks of a partition, and which page of them a request is."""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
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
        self._by_newest_ms: list[tuple[int, int]] = []  # heap of (newest ts_ms, number of a block) that have not ended
        self._by_oldest_ms: list[tuple[int, int]] = []  # heap of (oldest ts_ms, number of a block), some of them closed
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
        heappush(self._by_newest_ms, (block.max_ts_ms, self._next_number))
        heappush(self._by_oldest_ms, (block.min_ts_ms, self._next_number))
        self._blocks[self._next_number] = block
        number = self._next_number << PAGE_BITS
        self._index.update(zip(request_ids, range(number, number + block.pages), strict=True))
        self._next_number += 1
        self.items += block.rows
        self.pages += block.pages
        return block

    def ended(self, before_ms: int) -> list[Block]:
        """The blocks whose newest exposure is older than `before_ms`, each named once: they are to be removed."""
        numbers = []
        while self._by_newest_ms and self._by_newest_ms[0][0] < before_ms:
            numbers.append(heappop(self._by_newest_ms)[1])
        return [self._blocks[number] for number in sorted(numbers)]

    def remove(self, block: Block, request_ids: Sequence[str]) -> None:
        """Close a block with these requests."""
        number = self._index[request_ids[0]] >> PAGE_BITS
        assert self._blocks[number] is block, request_ids[0]
        del self._blocks[number]
        for request_id in request_ids:
            del self._index[request_id]
        self.items -= block.rows
        self.pages -= block.pages

    def oldest_ms(self, otherwise_ms: int) -> int:
        """The oldest exposure that is open, if it is older than `otherwise_ms`."""
        oldest = self._by_oldest_ms
        while oldest and oldest[0][1] not in self._blocks:
            heappop(oldest)
        return min(otherwise_ms, oldest[0][0]) if oldest else otherwise_ms

    def first_offset(self) -> int:
        """Of the first block."""
        return next(iter(self)).first_offset
