"""Closed pages are remembered until they are forgotten, however many blocks they came in; and open blocks end in order."""

import random

import pyarrow as pa

from headrace.known_ids import KnownIds
from headrace.step import Record
from joiner.block import Block
from joiner.open_blocks import OpenBlocks
from joiner.pages import Pages
from schemas.exposure import ExposureKey, ItemKey


def test_requests_are_known_until_their_block_is_forgotten() -> None:
    rng, closed, newest_ms = random.Random(3), KnownIds(), dict[str, int]()
    forgotten: list[int] = []
    for first_offset in range(2000):
        ts_ms = 10 * first_offset + rng.randrange(50)
        requests = [f"r{first_offset}-{page}" for page in range(rng.choice((1, 1, 1, 7)))]
        closed.add(ts_ms, first_offset, requests)
        newest_ms |= dict.fromkeys(requests, ts_ms)
        if first_offset % 100 == 99:
            before_ms = 10 * first_offset - 3000
            forgotten += closed.expire(before_ms)
            asked = rng.sample(sorted(newest_ms), 150)
            assert closed.known([*asked, "never shown"]) == {request for request in asked if newest_ms[request] >= before_ms}
    assert len(forgotten) == len(set(forgotten))
    assert set(closed.expire(1 << 60)) == set(range(2000)) - set(forgotten)
    assert closed.known(list(newest_ms)) == set()


def test_a_request_that_closed_twice_is_known_as_long_as_its_later_page() -> None:
    closed = KnownIds()
    closed.add(1000, 0, ["r1", "r2"])
    closed.add(2000, 2, ["r1", "r3"])
    assert closed.expire(1500) == [0]
    assert closed.known(["r1", "r2", "r3"]) == {"r1", "r3"}


def test_a_look_at_many_small_blocks_is_a_look_at_few_runs() -> None:
    closed = KnownIds()
    for first_offset in range(5000):
        closed.add(first_offset, first_offset, [f"r{first_offset}"])
    assert len(closed._runs) <= 14


def block_of(first_offset: int, *times_ms: int) -> pa.RecordBatch:
    keys = [ExposureKey(f"r{ts_ms}", "u", ts_ms, b"", b"", [ItemKey("i", 0)]) for ts_ms in times_ms]  # type: ignore[arg-type]
    return Pages([Record(first_offset + page, 0, b"") for page in range(len(keys))], keys).columns()


def test_blocks_end_by_their_newest_exposure_and_come_in_the_order_of_their_offsets() -> None:
    blocks = OpenBlocks()
    times_ms = {0: (30, 10), 2: (20,), 3: (5, 40)}
    opened = [blocks.add(block_of(offset, *times), [f"r{ts_ms}" for ts_ms in times]) for offset, times in times_ms.items()]

    def close(before_ms: int) -> list[Block]:
        ended = blocks.ended(before_ms)
        for block in ended:
            blocks.remove(block, [f"r{ts_ms}" for ts_ms in block.ts_ms.tolist()])
        return ended

    assert blocks.oldest_ms(100) == 5
    assert close(20) == []
    assert close(31) == opened[:2]
    assert (blocks.pages, blocks.items, blocks.oldest_ms(100), blocks.oldest_ms(3)) == (2, 2, 5, 3)
    assert close(41) == opened[2:]
    assert (blocks.pages, blocks.oldest_ms(100), bool(blocks)) == (0, 100, False)
