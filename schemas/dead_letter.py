"""A dead letter: data that a stage refused, why, and where its original bytes still are."""

from typing import Literal

from msgspec import Struct

Reason = Literal[
    "malformed",
    "too_large",
    "future",
    "late",
    "unknown_request",
    "unknown_item",
    "unknown_kind",
    "wrong_state",
    "wrong_action",
    "wrong_spec",
]


class DeadLetter(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One refused record, keyed by `stage`: (source_topic, source_partition, source_offset) finds its bytes again."""

    version: Literal[1] = 1
    stage: str
    reason: Reason
    detail: str
    source_topic: str
    source_partition: int
    source_offset: int
    size_bytes: int
    ts_ms: int


EXAMPLE = DeadLetter(
    stage="joiner",
    reason="malformed",
    detail="Object missing required field `request_id`",
    source_topic="exposures",
    source_partition=2,
    source_offset=4711,
    size_bytes=96,
    ts_ms=1_700_000_000_120,
)
