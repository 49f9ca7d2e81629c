"""The joiner's rows in the store: their keys, and records packed into one value.

| key | one row for | value |
|---|---|---|
| b + offset | an open block, by its first exposure's offset | its pages' keys (pages.py) |
| c + offset | a closed block whose requests are still remembered | ClosedRow |
| d | the partition, if it has a point-wise stream | DelayCounts |
| e + offset | an open block whose rows left early | the watermark at that time |
| f + offset | a batch of feedback that set labels in blocks still open | those records |
| m | the partition | Progress |
| p + offset | some pages of an open block, by the first one's offset | their messages (pages.py) |
| w + offset | a feedback that waits for its exposure | its record (pack_record) |

A block's labels are not stored: the feedback that made them is, once, and is applied again on recovery.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import msgspec
import numpy as np

from headrace.step import Record, StoredRows

LAYOUT = 3
"""To be raised whenever rows are no longer read as they were written before: the state is then rebuilt from Kafka.

1: a block's keys, labels and messages were one row, `b`. 2: `w` was packed as `f` is.
"""
ROW_KINDS: Mapping[bytes, str] = {
    b"b": "open_blocks",
    b"c": "closed_blocks",
    b"d": "delay_counts",
    b"e": "early_blocks",
    b"f": "label_feedback",
    b"m": "progress",
    b"p": "messages",
    b"w": "waiting_feedback",
}
DELAYS_KEY = b"d"
PROGRESS_KEY = b"m"


class Progress(msgspec.Struct, array_like=True):
    """Event times seen (ms), and the next offset of each input topic that was read."""

    watermark_ms: int = 0
    exposures_ms: int = 0
    feedback_ms: int = 0
    next_offsets: dict[str, int] = {}


class ClosedRow(msgspec.Struct, array_like=True):
    """The requests of a closed block: their feedback is late, not unknown."""

    max_ts_ms: int
    request_ids: Sequence[str]


encode_row = msgspec.msgpack.encode
decode_progress = msgspec.msgpack.Decoder(Progress).decode
decode_closed = msgspec.msgpack.Decoder(ClosedRow).decode
decode_delays = msgspec.msgpack.Decoder(list[int]).decode
decode_early = msgspec.msgpack.Decoder(int).decode


def row_key(letter: bytes, offset: int) -> bytes:
    """Rows of one letter sort by offset."""
    return letter + offset.to_bytes(8, "big")


def pack_record(record: Record) -> bytes:
    """One record without its offset: its arrival in 8 bytes, and its value."""
    return record.arrival_ms.to_bytes(8, "big", signed=True) + record.value


def unpack_record(offset: int, packed: bytes) -> Record:
    """What was packed."""
    return Record(offset, int.from_bytes(packed[:8], "big", signed=True), packed[8:])


def pack_records(records: Sequence[Record]) -> bytes:
    """N records as one value, in the machine's byte order: N, offsets and arrivals as int64 [N], ends as int32 [N + 1], the values."""
    offsets, arrivals_ms, values = zip(*records, strict=True)
    ends = array("i", accumulate(map(len, values), initial=0))
    return b"".join([array("q", [len(records)]), array("q", offsets), array("q", arrivals_ms), ends, *values])


def count_records(packed: bytes) -> int:
    """N of a packed value."""
    return int(np.frombuffer(packed, np.int64, 1)[0])


def unpack_records(packed: bytes) -> list[Record]:
    """What was packed."""
    count = count_records(packed)
    offsets, arrivals_ms = np.frombuffer(packed, np.int64, 2 * count, 8).reshape(2, count).tolist()
    first = 8 + 16 * count + 4 * (count + 1)
    ends = (np.frombuffer(packed, np.int32, count + 1, 8 + 16 * count) + first).tolist()
    values = [packed[start:end] for start, end in pairwise(ends)]
    return [Record(*columns) for columns in zip(offsets, arrivals_ms, values, strict=True)]


def read_progress(stored: StoredRows) -> Progress:
    """How far the partition is."""
    for _, value in stored.rows(PROGRESS_KEY):
        return decode_progress(value)
    return Progress()


def read_delays(stored: StoredRows) -> list[int]:
    """What DelayCounts stored."""
    for _, value in stored.rows(DELAYS_KEY):
        return decode_delays(value)
    return []


def read_closed(stored: StoredRows) -> Iterator[tuple[int, ClosedRow]]:
    """The closed blocks, by their first offsets."""
    for key, value in stored.rows(b"c"):
        yield int.from_bytes(key[1:], "big"), decode_closed(value)


def read_early(stored: StoredRows) -> dict[int, int]:
    """The watermark at which a block's rows left early, by its first offset."""
    return {int.from_bytes(key[1:], "big"): decode_early(value) for key, value in stored.rows(b"e")}


def read_records(stored: StoredRows, letter: bytes) -> Iterator[tuple[int, list[Record]]]:
    """The records of the rows of a letter, by their first offsets."""
    for key, value in stored.rows(letter):
        yield int.from_bytes(key[1:], "big"), unpack_records(value)
