"""What a join put into Kafka, read by a consumer of its own, and how much of it is wrong."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import orjson
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from benchmarks.join_log import FLUSH, PARTITIONS
from schemas.codec import decode_batch
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES

QUIET_S = 0.5
TIMEOUT_S = 60.0

Pair = tuple[str, str]
Row = tuple[str, str, float]
"""request_id, item_id, label."""


def warm_up(broker: str, messages: int) -> None:
    """Read both inputs once: the first contestant must not pay for a cold broker."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "benchmark", "enable.auto.commit": False, "log_level": 0})
    consumer.assign([TopicPartition(topic, partition, 0) for topic in (EXPOSURES, FEEDBACK) for partition in range(PARTITIONS)])
    deadline_s = time.monotonic() + TIMEOUT_S
    while messages > 0:
        messages -= len(consumer.consume(10_000, 0.2))
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the broker at {broker} still has {messages} messages to give after {TIMEOUT_S:.0f} s")
    consumer.close()


class Faults(NamedTuple):
    """How many rows have a wrong label or should not be there, came again, or never came."""

    wrong_labels: int
    duplicates: int
    missing: int


class SampleReader:
    """Reads each topic on from where it read last: the rows of one run, whatever lay in the topic before."""

    def __init__(self, broker: str) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": broker, "group.id": "benchmark-reader", "enable.auto.commit": False, "log_level": 0}
        )
        self._next: dict[tuple[str, int], int] = {}

    def read(self, topic: str, end: int) -> Iterator[Row]:
        """The rows that came since the last call: at least up to `end`, the sum of the partitions' ends, and until no more come."""
        starts = [TopicPartition(topic, partition, self._next.setdefault((topic, partition), 0)) for partition in range(PARTITIONS)]
        self._consumer.assign(starts)
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            messages = self._consumer.consume(10_000, QUIET_S)
            if not messages and sum(self._next[topic, partition] for partition in range(PARTITIONS)) >= end:
                return
            for message in messages:
                if message.error() is not None:
                    raise KafkaException(message.error())
                self._next[topic, message.partition() or 0] = (message.offset() or 0) + 1
                yield from rows_of(topic, message)
        raise TimeoutError(f"{topic} reaches to {end}, but the broker has not given all of it within {TIMEOUT_S:.0f} s")

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def rows_of(topic: str, message: Message) -> Iterator[Row]:
    """The counted rows of a message: an Arrow batch of the joiner, or a peer's JSON object."""
    value = message.value() or b""
    if topic == SAMPLES:
        batch, _ = decode_batch(value, SAMPLES)
        rows: Iterator[Row] = zip(*(batch[name].to_pylist() for name in ("request_id", "item_id", "label_click")), strict=True)
    else:
        sample = orjson.loads(value)
        rows = iter([(sample["request_id"], sample["item_id"], sample["label_click"])])
    return (row for row in rows if not row[0].startswith(FLUSH))


def faults(labels: dict[Pair, float], rows: list[Row]) -> Faults:
    """Compare the rows of a run with the labels that its log must give."""
    came = Counter((request_id, item_id) for request_id, item_id, _ in rows)
    wrong = sum(labels.get((request_id, item_id)) != label for request_id, item_id, label in rows)
    return Faults(wrong, len(rows) - len(came), len(labels.keys() - came.keys()))
