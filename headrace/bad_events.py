"""Bad events, as real clients send them: each kind must end as a dead letter with its reason, and the stream goes on."""

from typing import Literal, NamedTuple

import numpy as np

from headrace.users import exposed_items
from schemas.dead_letter import Reason
from schemas.exposure import Exposure, encode_exposure
from schemas.feedback import Feedback, encode_feedback
from schemas.topics import EXPOSURES, FEEDBACK

BadKind = Literal["truncated", "not_a_number", "wrong_type", "unknown_field", "unknown_request", "future", "too_large"]
REASONS: dict[BadKind, Reason] = {
    "truncated": "malformed",
    "not_a_number": "malformed",
    "wrong_type": "malformed",
    "unknown_field": "malformed",
    "unknown_request": "unknown_request",
    "future": "future",
    "too_large": "too_large",
}
"""By kind, the reason for which the joiner must refuse it."""

DAY_MS = 86_400_000


class BadEvent(NamedTuple):
    """One message that a stage must refuse."""

    topic: str
    value: bytes


def bad_event(kind: BadKind, user_id: str, name: str, now_ms: int, max_event_bytes: int) -> BadEvent:
    """A bad event of `kind`. `name` makes its ids unique; `max_event_bytes` is the most that the joiner takes."""
    bad_id = f"bad-{name}"
    ts_ms = now_ms + DAY_MS if kind == "future" else now_ms
    click = encode_feedback(Feedback(event_id=bad_id, request_id=bad_id, user_id=user_id, item_id="i-1", ts_ms=ts_ms, kind="click"))
    page = encode_exposure(Exposure(request_id=bad_id, user_id=user_id, ts_ms=ts_ms, state={}, action=[1.0], items=exposed_items([1])))
    match kind:
        case "truncated":
            event = BadEvent(EXPOSURES, page[:-20])
        case "not_a_number":
            event = BadEvent(FEEDBACK, click.replace(b'"value":1.0', b'"value":NaN'))
        case "wrong_type":
            event = BadEvent(FEEDBACK, click.replace(b'"value":1.0', b'"value":"one"'))
        case "unknown_field":
            event = BadEvent(EXPOSURES, page[:-1] + b',"colour":"red"}')
        case "unknown_request" | "future":
            event = BadEvent(FEEDBACK, click)
        case "too_large":
            event = BadEvent(FEEDBACK, click + b" " * max_event_bytes)
    return event


def draw_kind(random: np.random.Generator) -> BadKind:
    """One of the kinds, each as likely."""
    return list(REASONS)[int(random.integers(len(REASONS)))]
