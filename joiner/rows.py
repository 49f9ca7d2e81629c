"""The joiner's rows in the store: their keys, and records packed into one value.

| key | one row for | value |
|---|---|---|
| b + offset | an open block, by its first exposure's offset | its exposures' records |
| c + offset | a closed block whose requests are still remembered | ClosedPages |
| f + offset | a batch of feedback that set labels in blocks still open | those records |
| m | the partition | Progress |
| w + offset | a feedback that waits for its exposure | its record |

A block's labels are not stored: the feedback that made them is, once, and is applied again on recovery.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa

from headrace.step import Record

PROGRESS_KEY = b"m"


class Progress(msgspec.Struct, array_like=True):
    """Event times seen (ms), and the next offset of each input topic that was read."""

    watermark_ms: int = 0
    exposures_ms: int = 0
    feedback_ms: int = 0
    next_offsets: dict[str, int] = {}


class ClosedPages(msgspec.Struct, array_like=True):
    """The requests of a closed block: their feedback is late, not unknown."""

    max_ts_ms: int
    request_ids: Sequence[str]


encode_row = msgspec.msgpack.encode
decode_progress = msgspec.msgpack.Decoder(Progress).decode
decode_closed = msgspec.msgpack.Decoder(ClosedPages).decode


def row_key(letter: bytes, offset: int) -> bytes:
    """Rows of one letter sort by offset."""
    return letter + offset.to_bytes(8, "big")


def pack(offsets: "array[int]", arrivals_ms: "array[int]", values: pa.BinaryArray) -> bytes:
    """N records as one value, in the machine's byte order: N, offsets and arrivals as int64 [N], ends as int32 [N + 1], the values.

    `values` starts at its buffers' beginning (it is no slice).
    """
    _, ends, joined = values.buffers()
    count = len(values)
    return b"".join([array("q", [count]), offsets, arrivals_ms, ends[: 4 * count + 4], joined or b""])


def pack_records(records: Sequence[Record]) -> bytes:
    """The same for records."""
    offsets, arrivals_ms, values = zip(*records, strict=True)
    return pack(array("q", offsets), array("q", arrivals_ms), pa.array(values, pa.binary()))


def unpack_records(packed: bytes) -> list[Record]:
    """What was packed."""
    count = int(np.frombuffer(packed, np.int64, 1)[0])
    offsets, arrivals_ms = np.frombuffer(packed, np.int64, 2 * count, 8).reshape(2, count).tolist()
    first = 8 + 16 * count + 4 * (count + 1)
    ends = (np.frombuffer(packed, np.int32, count + 1, 8 + 16 * count) + first).tolist()
    values = [packed[start:end] for start, end in pairwise(ends)]
    return [Record(*columns) for columns in zip(offsets, arrivals_ms, values, strict=True)]
