"""The events that the broker-to-broker benchmark joins, made as JSON bytes, and the label that each of their items must get."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from confluent_kafka import Producer

from schemas.topics import EXPOSURES, FEEDBACK

PARTITIONS = 4
START_MS = 1_700_000_000_000
SPAN_MS = 2 * 3_600_000
WINDOW_MS = 1_800_000
MEAN_DELAY_MS = 300_000
"""Reactions come after an exponential time of this mean, the slowest exactly at the window's end: they count still."""
LATE_EVERY = 100
"""One reaction of so many comes after its window: it must not become a label."""
FEEDBACK_SHARE = 31 / 300
"""Reactions an exposed item."""
FLUSH = "flush"
"""Request ids of the events that end the log begin so: they close every window, their own samples are not counted."""

Message = tuple[str, int, bytes]
"""Topic, partition, JSON."""


class JoinLog(NamedTuple):
    """Messages in event-time order by topic, and the label of every (request_id, item_id)."""

    messages: list[Message]
    labels: dict[tuple[str, str], float]
    exposures: int
    feedback: int
    exposure_bytes: float
    feedback_bytes: float
    items_a_page: int

    @property
    def events(self) -> int:
        """Exposures and feedback that are counted."""
        return self.exposures + self.feedback


def make_log(items: int, items_a_page: int, seed: int = 1) -> JoinLog:
    """`items` exposed items on pages of `items_a_page`, evenly over two hours, in turns on the partitions."""
    chance = np.random.default_rng(seed)
    pages = items // items_a_page
    exposures = [(EXPOSURES, page % PARTITIONS, value) for page, value in enumerate(exposure_messages(0, pages, pages, items_a_page, seed))]
    reacted = np.sort(chance.choice(pages * items_a_page, round(pages * items_a_page * FEEDBACK_SHARE), replace=False))
    delays_ms = np.minimum(chance.exponential(MEAN_DELAY_MS, len(reacted)).astype(np.int64) + 500, WINDOW_MS)
    is_late = np.arange(len(reacted)) % LATE_EVERY == 0
    delays_ms[is_late] = WINDOW_MS + chance.integers(1, 300_000, is_late.sum())
    pages_reacted = reacted // items_a_page
    reacted_ms = _shown_ms(pages_reacted, pages) + delays_ms
    order = np.argsort(reacted_ms, kind="stable")
    feedback = [
        (FEEDBACK, page % PARTITIONS, _feedback(event, page, f"i{item}", ts_ms))
        for event, (page, item, ts_ms) in enumerate(
            zip(pages_reacted[order].tolist(), reacted[order].tolist(), reacted_ms[order].tolist(), strict=True)
        )
    ]
    labels = {(f"r{item // items_a_page}", f"i{item}"): 0.0 for item in range(pages * items_a_page)}
    labels.update(((f"r{item // items_a_page}", f"i{item}"), 1.0) for item in reacted[~is_late].tolist())
    return JoinLog(
        [*exposures, *feedback, *_flushes()],
        labels,
        len(exposures),
        len(feedback),
        sum(len(value) for _, _, value in exposures) / len(exposures),
        sum(len(value) for _, _, value in feedback) / max(1, len(feedback)),
        items_a_page,
    )


def exposure_messages(first: int, end: int, pages: int, items_a_page: int, seed: int) -> Iterator[bytes]:
    """The exposures number `first` to `end` of a log of `pages`, as schemas/exposure.py has them."""
    chance = np.random.default_rng((seed, first))
    drawn = chance.random((end - first, 2)).round(6).tolist()
    recent = chance.integers(0, 10**6, (end - first, 6)).tolist()
    scores = chance.random((end - first, items_a_page, 2)).round(6).tolist()
    shown_ms = _shown_ms(np.arange(first, end), pages).tolist()
    for page, ts_ms, (age, action), ids, page_scores in zip(range(first, end), shown_ms, drawn, recent, scores, strict=True):
        first_item = page * items_a_page
        shown = ",".join(
            f'{{"item_id":"i{first_item + place}","position":{place},"scores":{{"click":{click},"pay":{pay}}},"features":{{}}}}'
            for place, (click, pay) in enumerate(page_scores)
        )
        yield (
            f'{{"version":1,"request_id":"r{page}","user_id":"u{page % 50_000}","ts_ms":{ts_ms},"scene":"home","policy":"fusion",'
            f'"model_version":"fusion-000012","state":{{"hour":13.0,"age_days":{age},"city":"hz",'
            f'"recent_items":["i{ids[0]}","i{ids[1]}","i{ids[2]}","i{ids[3]}","i{ids[4]}","i{ids[5]}"]}},'
            f'"action":[{action},1.0],"propensity":0.8,"items":[{shown}]}}'
        ).encode()


def _shown_ms(pages: "np.ndarray[tuple[int], np.dtype[np.int64]]", total: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return START_MS + pages * SPAN_MS // total


def _feedback(event: int, page: int, item_id: str, ts_ms: int) -> bytes:
    return (
        f'{{"event_id":"e{event}","request_id":"r{page}","user_id":"u{page % 50_000}","item_id":"{item_id}",'
        f'"ts_ms":{ts_ms},"kind":"click"}}'
    ).encode()


def _flushes() -> Iterator[Message]:
    """One exposure and one feedback a partition, so much later that they close everything before them."""
    ts_ms = START_MS + SPAN_MS + 10 * WINDOW_MS
    for partition in range(PARTITIONS):
        ids = f'"request_id":"{FLUSH}{partition}","user_id":"u{partition}","ts_ms":{ts_ms}'
        yield EXPOSURES, partition, f'{{{ids},"state":{{}},"action":[1.0],"items":[{{"item_id":"i0","position":0}}]}}'.encode()
        yield FEEDBACK, partition, f'{{{ids},"event_id":"{FLUSH}{partition}","item_id":"i0","kind":"click"}}'.encode()


def fill(broker: str, messages: Sequence[Message] | Iterator[Message]) -> None:
    """Produce the messages in order, and return when the broker has them."""
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "linger.ms": 50,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 500_000,
            "max.in.flight": 1,  # a batch that is sent again must not come behind the next one
            "log_level": 0,
        }
    )
    for topic, partition, value in messages:
        try:
            producer.produce(topic, value, partition=partition)
        except BufferError:  # the queue is full: let it drain
            producer.flush()
            producer.produce(topic, value, partition=partition)
    left = producer.flush(120)
    if left:
        raise TimeoutError(f"the broker at {broker} has not taken {left} of the benchmark's messages after 120 s")
