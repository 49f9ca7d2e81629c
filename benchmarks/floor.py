"""The floor that the joiner is held against: one process, confluent-kafka, orjson, a dict of open items. Nothing is durable.

It is the join that one would write by hand: batches from the consumer, event time by the smaller of the two topics' newest times,
samples as JSON as soon as their window has passed. It checks nothing, commits nothing, and a crash loses what is open.
floor_tuned.py is the same loop with Python's collector tuned.
"""

import argparse
import gc
import logging
from collections import deque
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaException, Message, Producer

from headrace.worker import configure_logging
from schemas.topics import EXPOSURES, FEEDBACK

BATCH = 5_000
WAIT_S = 0.02
CONSUMER: dict[str, str | int | float | bool] = {
    "enable.auto.commit": False,
    "auto.offset.reset": "earliest",
    "fetch.wait.max.ms": 50,
    "fetch.queue.backoff.ms": 10,  # the default of 1 s can let it run dry behind a queue that was full
    "session.timeout.ms": 6000,  # as the joiner's: a broker may let half of it pass before a first join
}
PRODUCER: dict[str, str | int | float | bool] = {"linger.ms": 20, "queue.buffering.max.messages": 1_000_000}
log = logging.getLogger(__name__)

Row = list[Any]
"""One open item: ts_ms, (request_id, item_id), its page, the item, label, label delay."""


class Partition:
    """Open items of one partition, oldest first, and feedback that came ahead of its exposure."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._open: dict[tuple[str, str], Row] = {}
        self._oldest: deque[Row] = deque()
        self._early: dict[tuple[str, str], int] = {}
        self._oldest_early: deque[tuple[int, tuple[str, str]]] = deque()
        self._exposures_ms = self._feedback_ms = 0

    def on_exposure(self, page: dict[str, Any]) -> None:
        """Open the page's items."""
        self._exposures_ms = ts_ms = page["ts_ms"]
        request_id = page["request_id"]
        for item in page.pop("items"):
            pair = request_id, item["item_id"]
            row = [ts_ms, pair, page, item, 0.0, None]
            self._open[pair] = row
            self._oldest.append(row)
            if self._early and (reacted_ms := self._early.pop(pair, None)) is not None:
                self._label(row, reacted_ms)

    def on_feedback(self, feedback: dict[str, Any]) -> None:
        """Label the item, or keep the feedback for it."""
        self._feedback_ms = ts_ms = feedback["ts_ms"]
        pair = feedback["request_id"], feedback["item_id"]
        row = self._open.get(pair)
        if row is not None:
            self._label(row, ts_ms)
        elif ts_ms > self._exposures_ms - self._window_ms:
            self._early[pair] = ts_ms
            self._oldest_early.append((ts_ms, pair))

    def on_events(self, events: list[tuple[bool, dict[str, Any]]]) -> None:
        """A batch of both topics: whether each is an exposure, and the decoded message."""
        for is_exposure, event in events:
            if is_exposure:
                self.on_exposure(event)
            else:
                self.on_feedback(event)

    def _label(self, row: Row, reacted_ms: int) -> None:
        delay_ms = reacted_ms - row[0]
        if 0 <= delay_ms <= self._window_ms:
            row[4], row[5] = 1.0, delay_ms

    def close(self) -> list[bytes]:
        """The samples whose window has passed."""
        ended_ms = min(self._exposures_ms, self._feedback_ms) - self._window_ms
        oldest, items, samples = self._oldest, self._open, []
        while oldest and oldest[0][0] < ended_ms:
            _, pair, page, item, label, delay_ms = oldest.popleft()
            del items[pair]
            samples.append(orjson.dumps({**page, **item, "label_click": label, "label_delay_ms": delay_ms}))
        while self._oldest_early and self._oldest_early[0][0] < ended_ms:
            self._early.pop(self._oldest_early.popleft()[1], None)
        return samples


def run(broker: str, group: str, out_topic: str, window_ms: int) -> None:
    """Join until the process is ended."""
    consumer = Consumer({**CONSUMER, "bootstrap.servers": broker, "group.id": group})
    producer = Producer({**PRODUCER, "bootstrap.servers": broker})
    consumer.subscribe([EXPOSURES, FEEDBACK])
    partitions: dict[int, Partition] = {}
    is_first = True
    while True:
        messages = consumer.consume(BATCH, WAIT_S)
        if messages and is_first:
            log.info("first batch of %d records", len(messages))
            is_first = False
        touched = join(messages, partitions, window_ms)
        for number in touched:
            for sample in partitions[number].close():
                produce(producer, out_topic, sample, number)
        producer.poll(0)


def join(messages: list[Message], partitions: dict[int, Partition], window_ms: int) -> set[int]:
    """Apply a batch; gives the partitions that it touched."""
    loads, touched = orjson.loads, set()
    for message in messages:
        if message.error() is not None:
            raise KafkaException(message.error())
        number: Any = message.partition()
        partition = partitions.get(number)
        if partition is None:
            partition = partitions[number] = Partition(window_ms)
        touched.add(number)
        if message.topic() == EXPOSURES:
            partition.on_exposure(loads(message.value() or b""))
        else:
            partition.on_feedback(loads(message.value() or b""))
    return touched


def produce(producer: Producer, topic: str, sample: bytes, partition: int) -> None:
    """Hand a sample over to the producer's own thread."""
    try:
        producer.produce(topic, sample, partition=partition)
    except BufferError:  # the queue is full: let it drain
        producer.poll(0.1)
        produce(producer, topic, sample, partition)


def seldom_collect() -> None:
    """Walk the open items less often: they hold no cycles, and with the default thresholds the walks are half of all CPU time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


def arguments() -> argparse.Namespace:
    """BROKER GROUP TOPIC WINDOW_MS: what every peer is started with."""
    parser = argparse.ArgumentParser()
    for name in ("broker", "group", "out_topic"):
        parser.add_argument(name)
    parser.add_argument("window_ms", type=int)
    return parser.parse_args()


def main() -> None:
    """`python -m benchmarks.floor BROKER GROUP TOPIC WINDOW_MS`."""
    chosen = arguments()
    configure_logging("INFO")
    run(chosen.broker, chosen.group, chosen.out_topic, chosen.window_ms)


if __name__ == "__main__":
    main()
