"""Events that clients hand in over HTTP: each is checked by itself, and sent on as the bytes that came, or in its topic's format."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
from msgspec import Raw

from schemas.codec import UNREADABLE
from schemas.exposure import Exposure
from schemas.feedback import Feedback
from serving.messages import RejectedEvent

Kind = Literal["exposures", "feedback"]


class _Keyed(Protocol):
    @property
    def user_id(self) -> str: ...


class Checked(NamedTuple):
    """What is good, as (key, bytes), and what is not, with a counter's reason beside each."""

    good: list[tuple[str, bytes]]
    rejected: list[RejectedEvent]
    reasons: list[str]


def check(kind: Kind, events: Sequence[Raw], max_event_bytes: int, write: Callable[[bytes], bytes] = bytes) -> Checked:
    """Check each event against its topic's schema. `write` makes the topic's bytes of JSON, or raises one of UNREADABLE."""
    decode: Callable[[bytes | Raw], _Keyed] = _DECODERS[kind]
    checked = Checked([], [], [])
    for index, event in enumerate(events):
        value = bytes(event)
        if len(value) > max_event_bytes:
            error, reason = f"{len(value)} bytes; at most {max_event_bytes} (serving.max_event_bytes)", "too_large"
        else:
            try:
                checked.good.append((decode(value).user_id, write(value)))
                continue
            except UNREADABLE as failure:
                error, reason = str(failure), "malformed"
        checked.rejected.append(RejectedEvent(kind, index, error))
        checked.reasons.append(reason)
    return checked


_DECODERS: dict[Kind, Callable[[bytes | Raw], _Keyed]] = {
    "exposures": msgspec.json.Decoder(Exposure).decode,
    "feedback": msgspec.json.Decoder(Feedback).decode,
}
