"""Feedback: one reaction of a user to an item of a page, or to the page as a whole (`item_id` empty: the user left)."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from schemas.exposure import Id, TimestampMs

LEAVE = "leave"
"""The kind of feedback that ends a session: it belongs to the page, not to an item."""


class Feedback(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One reaction, keyed by `user_id`. `value` is 1 for events that are counted, else in the unit of its kind (dwell: ms).

    `category` is the item's, where the client knows it: the user's stored state remembers it.
    """

    version: Literal[1] = 1
    event_id: Id
    request_id: Id
    user_id: Id
    item_id: Annotated[str, Meta(max_length=256)] = ""
    ts_ms: TimestampMs
    kind: Id
    value: float = 1.0
    category: Annotated[str, Meta(max_length=256)] = ""


EXAMPLE = Feedback(event_id="e-1", request_id="r-7", user_id="u-42", item_id="i-3", ts_ms=1_700_000_001_500, kind="click")

encode_feedback = msgspec.json.Encoder().encode
