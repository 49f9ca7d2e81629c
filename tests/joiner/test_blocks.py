"""Open pages are found by their requests, closed ones are remembered until they are forgotten, and open blocks end in order."""

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pytest

from headrace.step import Record
from joiner import blocks as blocks_module
from joiner.block import Block
from joiner.blocks import Blocks
from joiner.labels import Ints
from joiner.pages import key_columns
from schemas.exposure import ExposureKey, ItemKey


def block_of(first_offset: int, pages: Iterable[tuple[str, int]]) -> pa.RecordBatch:
    """Pages of one item as (request_id, ts_ms)."""
    keys = [ExposureKey(request_id, "u", ts_ms, b"", b"", [ItemKey("i", 0)]) for request_id, ts_ms in pages]  # type: ignore[arg-type]
    return key_columns([Record(first_offset + page, 0, b"") for page in range(len(keys))], keys)


def add(blocks: Blocks, first_offset: int, requests: Sequence[str], ts_ms: int) -> Block:
    return blocks.add(block_of(first_offset, [(request, ts_ms) for request in requests]), requests)


def places(blocks: Blocks, requests: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Of the open ones: the first offset of the block, and the page."""
    return {request: (place.block.first_offset, place.page) for request, place in blocks.find(requests)[0].items()}


def same_hash(request_ids: Sequence[str]) -> Ints:
    return np.ones(len(request_ids), np.int64)


def six_hashes(request_ids: Sequence[str]) -> Ints:
    return np.array([1 + len(request_id) % 6 for request_id in request_ids], np.int64) << 61


@pytest.mark.parametrize("hashes", [blocks_module.hashes_of, same_hash, six_hashes])
def test_open_pages_are_found_by_their_requests_whatever_the_hashes(
    monkeypatch: pytest.MonkeyPatch, hashes: Callable[[Sequence[str]], Ints]
) -> None:
    monkeypatch.setattr(blocks_module, "hashes_of", hashes)
    rng, blocks, where = random.Random(5), Blocks(), dict[str, tuple[int, int]]()
    opened: list[tuple[Block, list[str]]] = []
    for first_offset in range(0, 1200, 6):
        requests = [f"{'r' * rng.randrange(1, 6)}{first_offset}-{page}" for page in range(6)]
        opened.append((add(blocks, first_offset, requests, first_offset), requests))
        where |= {request: (first_offset, page) for page, request in enumerate(requests)}
        if rng.random() < 0.5:
            block, closed = opened.pop(rng.randrange(len(opened)))
            blocks.close(block)
            for request in closed:
                del where[request]
            assert blocks.find(closed)[1] == set(closed)
        if rng.random() < 0.2:
            blocks.forget(first_offset - 300)
        assert places(blocks, [*rng.sample(sorted(where), min(9, len(where))), "never shown", requests[0]]).items() <= where.items()
    assert places(blocks, [*where, "never shown"]) == where
    assert blocks.pages == len(where)


def test_closed_requests_are_known_until_their_block_is_forgotten_those_of_an_earlier_life_too() -> None:
    rng, blocks, newest_ms = random.Random(3), Blocks(), dict[str, int]()
    closed = []
    for first_offset in range(2000):
        requests = [f"r{first_offset}-{page}" for page in range(rng.choice((1, 1, 1, 7)))]
        closed.append((10 * first_offset + rng.randrange(50), first_offset, requests))
    opened = [block_of(3000, [("open", 1), ("open too", 2)]), block_of(3002, [("open as well", 3)])]
    blocks.recover(closed[:150], opened)
    forgotten: list[int] = []
    for ts_ms, first_offset, requests in closed:
        if first_offset >= 150:
            blocks.close(add(blocks, first_offset, requests, ts_ms))
        newest_ms |= dict.fromkeys(requests, ts_ms)
        if first_offset % 100 == 99:
            before_ms = 10 * first_offset - 3000
            forgotten += blocks.forget(before_ms)
            asked = rng.sample(sorted(newest_ms), 150)
            known = {request for request in asked if newest_ms[request] >= before_ms}
            assert blocks.find([*asked, "never shown"]) == ({}, known)
    assert len(forgotten) == len(set(forgotten))
    assert set(blocks.forget(1 << 60)) == set(range(2000)) - set(forgotten)
    assert blocks.find(list(newest_ms)) == ({}, set())
    assert places(blocks, ["open", "open too", "open as well"]) == {"open": (3000, 0), "open too": (3000, 1), "open as well": (3002, 0)}


def test_a_request_that_closed_and_is_shown_once_more_is_open_and_one_that_closed_twice_is_known_as_long_as_its_later_page() -> None:
    blocks = Blocks()
    blocks.close(add(blocks, 0, ["r1", "r2"], 1000))
    again = add(blocks, 2, ["r1", "r3"], 2000)
    assert places(blocks, ["r1", "r2", "r3"]) == {"r1": (2, 0), "r3": (2, 1)}
    blocks.close(again)
    assert blocks.forget(1500) == [0]
    assert blocks.find(["r1", "r2", "r3"]) == ({}, {"r1", "r3"})


def test_blocks_end_by_their_newest_exposure_and_come_in_the_order_of_their_offsets() -> None:
    blocks = Blocks()
    times_ms = {0: (30, 10), 2: (20,), 3: (5, 40)}
    opened = [
        blocks.add(block_of(offset, [(f"r{ts_ms}", ts_ms) for ts_ms in times]), [f"r{ts_ms}" for ts_ms in times])
        for offset, times in times_ms.items()
    ]

    def close(before_ms: int) -> list[Block]:
        ended = blocks.ended(before_ms)
        for block in ended:
            blocks.close(block)
        return ended

    assert blocks.oldest_ms(100) == 5
    assert close(20) == []
    assert close(31) == opened[:2]
    assert (blocks.pages, blocks.items, blocks.oldest_ms(100), blocks.oldest_ms(3)) == (2, 2, 5, 3)
    assert close(41) == opened[2:]
    assert (blocks.pages, blocks.oldest_ms(100), bool(blocks)) == (0, 100, False)
