"""The join of bytewax_join.py as fast as we could make Bytewax do it: source and sink of our own, collector tuned, no recovery.

Bytewax's `KafkaSource` builds a dataclass with eight fields a message, its `KafkaSink` waits for the broker after every batch: here
source and sink are short ones, each message still being one item of the dataflow.
"""

import logging
from collections.abc import Iterable
from typing import Any

import orjson
from bytewax import operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from benchmarks.floor import CONSUMER, PRODUCER, Partition, arguments, produce, seldom_collect
from benchmarks.join_log import PARTITIONS
from headrace.worker import configure_logging
from schemas.topics import EXPOSURES, FEEDBACK

log = logging.getLogger(__name__)
BATCH = 1_000
"""Records a batch: as Bytewax's own source has it. 300 and 5,000 are slower."""
WAIT_S = 0.001

Event = tuple[str, tuple[bool, dict[str, Any]]]
"""Its partition as the key; whether it is an exposure, and the decoded message."""
Sample = tuple[str, bytes]


class Source(FixedPartitionedSource[Event, None]):
    """Both topics, from their beginning."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self.delivered = False

    def list_parts(self) -> list[str]:
        return [f"{partition}-{topic}" for topic in (EXPOSURES, FEEDBACK) for partition in range(PARTITIONS)]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "TopicPart":
        partition, topic = for_part.split("-")
        return TopicPart(self, self._broker, topic, int(partition))


class TopicPart(StatefulSourcePartition[Event, None]):
    """One partition of one topic."""

    def __init__(self, source: Source, broker: str, topic: str, partition: int) -> None:
        self._source, self._key, self._is_exposure = source, str(partition), topic == EXPOSURES
        self._consumer = Consumer({**CONSUMER, "bootstrap.servers": broker, "group.id": "unused"})
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])

    def next_batch(self) -> list[Event]:
        messages = self._consumer.consume(BATCH, WAIT_S)
        if messages and not self._source.delivered:
            log.info("first batch of %d records", len(messages))
            self._source.delivered = True
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
        key, is_exposure, loads = self._key, self._is_exposure, orjson.loads
        return [(key, (is_exposure, loads(message.value() or b""))) for message in messages]

    def snapshot(self) -> None:
        """Nothing is durable."""


class Join(StatefulBatchLogic[tuple[bool, dict[str, Any]], bytes, None]):
    """The open items of one partition."""

    def __init__(self, window_ms: int) -> None:
        self._partition = Partition(window_ms)

    def on_batch(self, values: list[tuple[bool, dict[str, Any]]]) -> tuple[Iterable[bytes], bool]:
        self._partition.on_events(values)
        return self._partition.close(), StatefulBatchLogic.RETAIN

    def snapshot(self) -> None:
        """Nothing is durable."""


class Sink(DynamicSink[Sample]):
    """A topic; samples go to the partition number that they came from."""

    def __init__(self, broker: str, topic: str) -> None:
        self._broker, self._topic = broker, topic

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "TopicSink":
        return TopicSink(Producer({**PRODUCER, "bootstrap.servers": self._broker}), self._topic)


class TopicSink(StatelessSinkPartition[Sample]):
    """Hands samples over to the producer's own thread."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer, self._topic = producer, topic

    def write_batch(self, items: list[Sample]) -> None:
        for key, sample in items:
            produce(self._producer, self._topic, sample, int(key))
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.flush()


def dataflow(broker: str, out_topic: str, window_ms: int) -> Dataflow:
    """Kafka to Kafka."""
    flow = Dataflow("join")
    events = op.input("read", flow, Source(broker))
    samples = op.stateful_batch("join", events, lambda _resumed: Join(window_ms))
    op.output("write", samples, Sink(broker, out_topic))
    return flow


def main() -> None:
    """`python -m benchmarks.bytewax_tuned BROKER GROUP TOPIC WINDOW_MS`; Bytewax has no consumer groups."""
    chosen = arguments()
    configure_logging("INFO")
    seldom_collect()
    run_main(dataflow(chosen.broker, chosen.out_topic, chosen.window_ms))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
