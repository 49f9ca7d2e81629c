"""Events as the joiner gets them, and its samples as plain rows."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from headrace.memory_rows import InMemory
from headrace.step import Outcome, Record
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch, encode_json
from schemas.exposure import ExposedItem, Exposure
from schemas.feedback import Feedback
from schemas.topics import SAMPLES

WINDOW_MS = 100
NOW_MS = 1_000_000
"""The wall clock: events of these tests lie below it, so none is of the future."""
SETTINGS = JoinerSettings(
    join_window_ms=WINDOW_MS, feedback_kinds=("click", "dwell"), idle_s=1000.0, max_future_ms=10, max_event_bytes=4096
)
Row = dict[str, Any]


def join(settings: JoinerSettings = SETTINGS, stored: Iterable[tuple[bytes, bytes]] = ()) -> InMemory:
    return InMemory(partial(PartitionJoin, settings, 3), stored)


def exposure(request_id: str, ts_ms: int, items: Sequence[str] = ("i1",), user_id: str = "u", **rest: Any) -> bytes:
    shown = [ExposedItem(item_id=item, position=position, scores={"click": 0.5}) for position, item in enumerate(items)]
    page = {"state": {"hour": 1.0}, "action": [1.0], "items": shown} | rest
    return encode_json(Exposure(request_id=request_id, user_id=user_id, ts_ms=ts_ms, **page))


def feedback(
    request_id: str, ts_ms: int, item_id: str = "i1", event_id: str = "", kind: str = "click", value: float = 1.0, user_id: str = "u"
) -> bytes:
    event_id = event_id or f"{request_id}/{item_id}/{kind}/{ts_ms}"
    return encode_json(
        Feedback(event_id=event_id, request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=ts_ms, kind=kind, value=value)
    )


def records(*values: bytes, first_offset: int = 0) -> list[Record]:
    """Records at consecutive offsets, each arriving 5 ms after the wall clock of its offset."""
    return [Record(first_offset + place, NOW_MS + 10 * (first_offset + place), value) for place, value in enumerate(values)]


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """All samples of these outcomes, messages decoded to bytes."""
    return rows_of(outcomes, SAMPLES)


def rows_of(outcomes: Iterable[Outcome], topic: str) -> list[Row]:
    """All rows of a topic of these outcomes, messages decoded to bytes."""
    outputs = [output for outcome in outcomes for output in outcome.outputs if output.topic == topic]
    return [row for output in outputs for row in decode_batch(output.value, topic)[0].to_pylist()]


def counts(outcomes: Iterable[Outcome], name: str) -> dict[str, int]:
    """The counts of one name, by label."""
    total = sum((outcome.counts for outcome in outcomes), Counter())
    return {count.label: n for count, n in total.items() if count.name == name}


def store(stored: dict[bytes, bytes], outcome: Outcome) -> None:
    """What the disk does with an outcome's changes."""
    for key, value in outcome.changes:
        if value is None:
            stored.pop(key, None)
        else:
            stored[key] = value
