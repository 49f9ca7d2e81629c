"""Which events the joiner accepts: what can be told of an event by itself, and of an exposure among the exposures."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

import pyarrow as pa

from headrace.step import Record
from joiner.pages import Pages, key_columns
from joiner.refusal import Refusals
from schemas.codec import UNREADABLE, decode_exposure_key, decode_feedback
from schemas.exposure import ExposureKey, ItemKey
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK

MAX_VALUE = 1e30
"""Largest feedback value: hundreds of millions of them still add up to a finite float32 label."""

AT_ONCE = 256
"""Exposures whose objects live at a time: they fit into the processor's own cache, what a whole fetch of them takes does not."""

T = TypeVar("T")
OpenAmong = Callable[[Sequence[str]], Collection[str]]
"""Gives those of some requests that are open."""


class Bounds(NamedTuple):
    """Of acceptable events: exposures before `earliest_ms` are late, events after `latest_ms` are of the future."""

    earliest_ms: int
    latest_ms: int
    max_event_bytes: int


def exposures(records: Sequence[Record], bounds: Bounds, open_among: OpenAmong, refusals: Refusals) -> tuple[Pages | None, int]:
    """The pages of the acceptable exposures, if any, and the newest event time (ms) of the well-formed; the others are refused."""
    pages = _all_exposures(records, bounds, open_among)
    if pages is None:
        return _each_exposure(records, bounds, open_among, refusals)
    return pages, int(pages.columns["ts_ms"].to_numpy().max())


def _all_exposures(records: Sequence[Record], bounds: Bounds, open_among: OpenAmong) -> Pages | None:
    """The pages of a batch in which every exposure is acceptable, else None: at half the cost of looking at each."""
    request_ids: list[str] = []
    parts = []
    for first in range(0, len(records), AT_ONCE):
        part = records[first : first + AT_ONCE]
        values = [record.value for record in part]
        if max(map(len, values)) > bounds.max_event_bytes:
            return None
        try:
            keys = list(map(decode_exposure_key, values))
        except UNREADABLE:
            return None
        if any(_named_twice(key.items) for key in keys if len(key.items) > 1):
            return None
        request_ids += [key.request_id for key in keys]
        parts.append(key_columns(part, keys))
    columns = pa.concat_batches(parts) if len(parts) > 1 else parts[0]
    times_ms = columns["ts_ms"].to_numpy()
    if times_ms.min() < bounds.earliest_ms or times_ms.max() > bounds.latest_ms:
        return None
    if len(set(request_ids)) < len(request_ids) or open_among(request_ids):
        return None
    return Pages(records, request_ids, columns)


def _each_exposure(records: Sequence[Record], bounds: Bounds, open_among: OpenAmong, refusals: Refusals) -> tuple[Pages | None, int]:
    kept: list[tuple[Record, ExposureKey]] = []
    requests: set[str] = set()
    newest_ms = 0
    for record, key in _readable(decode_exposure_key, EXPOSURES, records, bounds, refusals):
        if _named_twice(key.items):
            refusals.refuse(EXPOSURES, record, "malformed", f"an item is twice on the page {key.request_id!r}")
            continue
        if key.ts_ms > bounds.latest_ms:
            refusals.refuse(EXPOSURES, record, "future", f"{key.ts_ms - refusals.now_ms} ms ahead of the clock")
            continue
        newest_ms = max(newest_ms, key.ts_ms)
        if key.ts_ms < bounds.earliest_ms:
            refusals.refuse(EXPOSURES, record, "late", f"{bounds.earliest_ms - key.ts_ms} ms after its window")
        elif key.request_id in requests:
            refusals.ignore("duplicate_exposure")
        else:
            requests.add(key.request_id)
            kept.append((record, key))
    shown_before = open_among(list(requests))
    for _ in shown_before:
        refusals.ignore("duplicate_exposure")
    kept = [(record, key) for record, key in kept if key.request_id not in shown_before]
    return _pages(kept) if kept else None, newest_ms


def _pages(kept: Sequence[tuple[Record, ExposureKey]]) -> Pages:
    records, keys = zip(*kept, strict=True)
    return Pages(records, [key.request_id for key in keys], key_columns(records, keys))


def feedback(records: Sequence[Record], bounds: Bounds, refusals: Refusals) -> Iterator[tuple[Record, Feedback]]:
    """The acceptable feedback; the other records are refused."""
    for record, reaction in _readable(decode_feedback, FEEDBACK, records, bounds, refusals):
        if not -MAX_VALUE <= reaction.value <= MAX_VALUE:
            refusals.refuse(FEEDBACK, record, "malformed", f"value {reaction.value} is not within +-{MAX_VALUE:g}")
        elif reaction.ts_ms > bounds.latest_ms:
            refusals.refuse(FEEDBACK, record, "future", f"{reaction.ts_ms - refusals.now_ms} ms ahead of the clock")
        else:
            yield record, reaction


def _readable(
    decode: Callable[[bytes], T], topic: str, records: Sequence[Record], bounds: Bounds, refusals: Refusals
) -> Iterator[tuple[Record, T]]:
    """The records that can be read, decoded; the others are refused."""
    for record in records:
        if len(record.value) > bounds.max_event_bytes:
            refusals.refuse(topic, record, "too_large", f"{len(record.value)} bytes, allowed are {bounds.max_event_bytes}")
            continue
        try:
            message = decode(record.value)
        except UNREADABLE as error:
            refusals.refuse(topic, record, "malformed", str(error))
            continue
        yield record, message


def _named_twice(items: Sequence[ItemKey]) -> bool:
    """Whether an item is on a page more than once: samples are told apart by request and item."""
    return len({item.item_id for item in items}) < len(items)
