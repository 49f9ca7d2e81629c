"""What one fetch brings of a partition, as bytes, becomes its records and the offset behind them."""

import gc
import weakref

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from headrace.group_member import unpack

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4


def batch(first_offset: int, *values: bytes, compression: int = 0, step: int = 1) -> bytes:
    """A record batch of format 2 as it lies in the log: offsets `first_offset`, + `step`, ..."""
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 1 << 20)
    for place, value in enumerate(values):
        assert builder.append(place * step, 1000 + place, b"key", value, [("header", b"h")]) is not None
    made = bytes(builder.build())
    return first_offset.to_bytes(8, "big") + made[8:]  # the broker sets it; the CRC does not cover it


def control(offset: int) -> bytes:
    """A transaction's marker: a batch whose control bit is set."""
    builder = DefaultRecordBatchBuilder(2, 0, 1, 7, 0, 0, 1 << 20)
    builder.append(0, 1000, b"\x00\x00\x00\x01", b"\x00" * 6, [])
    made = bytearray(builder.build())
    made[22] |= 0x20
    return offset.to_bytes(8, "big") + bytes(made[8:])


def fetched(value: bytes, fetch_offset: int, check_crcs: bool = True, isolation: int = READ_UNCOMMITTED) -> PartitionRecords:
    return PartitionRecords(TopicPartition("t", 0), MemoryRecords(value), [], fetch_offset, None, None, check_crcs, isolation)


def read(value: bytes, fetch_offset: int, isolation: int = READ_UNCOMMITTED) -> tuple[list[tuple[int, bytes]], int]:
    records, next_offset, _ = unpack(fetched(value, fetch_offset, check_crcs=False, isolation=isolation))
    return [(record.offset, record.value) for record in records], next_offset


@pytest.mark.parametrize("compression", [0, GZIP, SNAPPY, LZ4, ZSTD])
def test_batches_follow_each_other(compression: int) -> None:
    value = batch(5, b"a", b"b", compression=compression) + batch(7, b"c")
    assert read(value, 5) == ([(5, b"a"), (6, b"b"), (7, b"c")], 8)


def test_a_record_has_what_the_producer_gave_it() -> None:
    records, _, newest_ms = unpack(fetched(batch(5, b"a", b"b"), 5))
    assert [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records] == [
        (5, 1000, b"key", b"a", [("header", b"h")]),
        (6, 1001, b"key", b"b", [("header", b"h")]),
    ]
    assert newest_ms == 1001


def test_a_batch_in_which_the_offset_lies_is_cut() -> None:
    assert read(batch(5, b"a", b"b", b"c") + batch(8, b"d"), 6) == ([(6, b"b"), (7, b"c"), (8, b"d")], 9)


def test_compaction_leaves_holes() -> None:
    assert read(batch(5, b"a", b"b", step=10) + batch(100, b"c"), 5) == ([(5, b"a"), (15, b"b"), (100, b"c")], 101)


def test_a_transaction_s_marker_is_passed_over() -> None:
    value = batch(5, b"a") + control(6) + batch(7, b"b")
    assert read(value, 5) == ([(5, b"a"), (7, b"b")], 8)
    assert read(control(6), 6) == ([], 7)


def test_with_transactions_it_is_what_aiokafka_makes_of_it() -> None:
    assert read(batch(5, b"a") + control(6), 5, READ_COMMITTED) == ([(5, b"a")], 7)


@pytest.mark.parametrize("compression", [0, GZIP])
def test_records_of_old_brokers(compression: int) -> None:
    builder = LegacyRecordBatchBuilder(1, compression, 1 << 20)
    for offset, value in enumerate((b"a", b"b", b"c")):
        builder.append(offset, 1000, b"key", value)
    made = bytes(builder.build())
    if compression:
        made = (2).to_bytes(8, "big") + made[8:]  # the broker gives the set its last record's offset
    assert read(made, 1) == ([(1, b"b"), (2, b"c")], 3)


def test_a_batch_that_was_damaged_on_its_way_is_refused() -> None:
    damaged = bytearray(batch(5, b"abc"))
    damaged[-6] ^= 1
    with pytest.raises(CorruptRecordException):
        unpack(fetched(bytes(damaged), 5))


def test_records_are_what_the_application_makes_of_them() -> None:
    made, _, _ = unpack(fetched(batch(5, b"a", b"b") + batch(7, b"c"), 6), lambda records: [record.value for record in records])
    assert made == [b"b", b"c"]


def test_what_was_fetched_goes_with_its_last_user_without_the_collector() -> None:
    part = fetched(batch(5, b"a"), 5)
    still_there = weakref.ref(part)
    gc.disable()
    try:
        unpack(part)
        del part
        assert still_there() is None
    finally:
        gc.enable()
