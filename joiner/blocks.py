"""The blocks of a partition, open and closed, and which page of them a request is."""

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from joiner.block import Block
from joiner.labels import Ints
from joiner.pages import BLOCK_BYTES, ROW_BYTES
from joiner.request_index import RequestIndex, hashes_of

PAGE_BITS = 16
PAGE_MASK = (1 << PAGE_BITS) - 1
assert BLOCK_BYTES // ROW_BYTES < PAGE_MASK, "a page's number is its block's number and, in these bits, its place in the block"


class Place(NamedTuple):
    """Where an open page is."""

    block: Block
    page: int


class ClosedBlock(NamedTuple):
    """What is remembered of it: its feedback is late, not unknown."""

    first_offset: int
    hashes: Ints
    """Of its requests [P]."""


class Blocks:
    """Blocks in the order in which they were opened, which is that of their offsets; closed ones until they are forgotten.

    An open page is found by its request itself, a closed one by 64 bits of hash: of 10**12 unknown requests one may be taken for closed.
    """

    def __init__(self) -> None:
        self._index = RequestIndex()
        self._open: dict[int, Block] = {}  # by number
        self._closed: dict[int, ClosedBlock] = {}
        self._next_number = 0
        self._by_newest_ms: list[tuple[int, int]] = []  # heap of (newest ts_ms, number of a block) that have not ended
        self._by_oldest_ms: list[tuple[int, int]] = []  # heap of (oldest ts_ms, number of a block), some of them closed
        self._closed_by_newest_ms: list[tuple[int, int]] = []  # heap of (newest ts_ms, number of a closed block)
        self.items = 0
        self.pages = 0

    def __bool__(self) -> bool:
        """Whether any is open."""
        return bool(self._open)

    def __iter__(self) -> Iterator[Block]:
        """The open ones."""
        return iter(self._open.values())

    def find(self, request_ids: Sequence[str]) -> tuple[dict[str, Place], set[str]]:
        """Of some requests the open pages, and those whose pages are closed. A request that closed may be shown, and open, once more."""
        opened, closed = dict[str, Place](), set[str]()
        places, numbers = self._index.find(hashes_of(request_ids))
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
            block, page = self._open.get(number >> PAGE_BITS), number & PAGE_MASK
            if block is None:
                closed.add(request_ids[place])
            elif block.is_page(page, request_ids[place]):
                opened[request_ids[place]] = Place(block, page)
        return opened, closed

    def add(self, columns: pa.RecordBatch, request_ids: Sequence[str]) -> Block:
        """Open a block of pages with these keys; `request_ids` are one of them, as strings."""
        block = self._opened(columns, request_ids)
        self._index.add(block.hashes, _page_numbers(block.number, block.hashes))
        return block

    def recover(self, closed: Iterable[tuple[int, int, Sequence[str]]], opened: Iterable[pa.RecordBatch]) -> None:
        """The blocks of an earlier life: of closed ones newest exposure, first offset and requests; of open ones the pages' keys."""
        for max_ts_ms, first_offset, request_ids in closed:
            self._remember(self._next_number, max_ts_ms, ClosedBlock(first_offset, hashes_of(request_ids)))
            self._next_number += 1
        for columns in opened:
            self._opened(columns, columns["request_id"].to_pylist())
        hashes = {number: block.hashes for blocks in (self._closed, self._open) for number, block in blocks.items()}
        if hashes:  # all at once: no table is made only to be outgrown
            numbers = [_page_numbers(number, of_block) for number, of_block in hashes.items()]
            self._index.add(np.concatenate([*hashes.values()]), np.concatenate(numbers))

    def ended(self, before_ms: int) -> list[Block]:
        """The blocks whose newest exposure is older than `before_ms`, each named once: they are to be closed."""
        numbers = []
        while self._by_newest_ms and self._by_newest_ms[0][0] < before_ms:
            numbers.append(heappop(self._by_newest_ms)[1])
        return [self._open[number] for number in sorted(numbers)]

    def close(self, block: Block) -> None:
        """Remember its requests alone."""
        del self._open[block.number]
        self._remember(block.number, block.max_ts_ms, ClosedBlock(block.first_offset, block.hashes))
        self.items -= block.rows
        self.pages -= block.pages

    def forget(self, before_ms: int) -> list[int]:
        """Forget the closed blocks that are older than `before_ms`; their first offsets."""
        forgotten = []
        while self._closed_by_newest_ms and self._closed_by_newest_ms[0][0] < before_ms:
            number = heappop(self._closed_by_newest_ms)[1]
            block = self._closed.pop(number)
            self._index.remove(block.hashes, _page_numbers(number, block.hashes))
            forgotten.append(block.first_offset)
        return forgotten

    def oldest_ms(self, otherwise_ms: int) -> int:
        """The oldest exposure that is open, if it is older than `otherwise_ms`."""
        oldest = self._by_oldest_ms
        while oldest and oldest[0][1] not in self._open:
            heappop(oldest)
        return min(otherwise_ms, oldest[0][0]) if oldest else otherwise_ms

    def first_offset(self) -> int:
        """Of the first open block."""
        return next(iter(self)).first_offset

    def _opened(self, columns: pa.RecordBatch, request_ids: Sequence[str]) -> Block:
        block = Block(self._next_number, columns, hashes_of(request_ids))
        self._next_number += 1
        heappush(self._by_newest_ms, (block.max_ts_ms, block.number))
        heappush(self._by_oldest_ms, (block.min_ts_ms, block.number))
        self._open[block.number] = block
        self.items += block.rows
        self.pages += block.pages
        return block

    def _remember(self, number: int, max_ts_ms: int, block: ClosedBlock) -> None:
        self._closed[number] = block
        heappush(self._closed_by_newest_ms, (max_ts_ms, number))


def _page_numbers(number: int, hashes: Ints) -> Ints:
    """Of a block's pages."""
    return np.arange(number << PAGE_BITS, (number << PAGE_BITS) + len(hashes))
