"""The floor's join as a Bytewax dataflow with what Bytewax comes with: its Kafka operators, keyed state, recovery.

The key is the partition, not the request: a Bytewax clock belongs to a key, so that with a key a request no later event would ever
tell a window that its time is over. What is open is held in the floor's `Partition`; every epoch (10 s by default) stores a snapshot of
it and the source's offsets. bytewax_tuned.py is the same join with what is faster and keeps nothing.
"""

import logging
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main

from benchmarks.floor import CONSUMER, PRODUCER, Partition, arguments
from headrace.worker import configure_logging
from schemas.topics import EXPOSURES, FEEDBACK

log = logging.getLogger(__name__)
RECOVERY_FOLDER = Path("recovery")
"""Below the folder that the process was started in."""

Event = tuple[bool, dict[str, Any]]
"""Whether it is an exposure, and the decoded message."""


class Join(StatefulBatchLogic[Event, bytes, bytes]):
    """The open items of one partition."""

    def __init__(self, window_ms: int, snapshot: bytes | None) -> None:
        self._partition: Partition = Partition(window_ms) if snapshot is None else pickle.loads(snapshot)

    def on_batch(self, values: list[Event]) -> tuple[Iterable[bytes], bool]:
        self._partition.on_events(values)
        return self._partition.close(), StatefulBatchLogic.RETAIN

    def snapshot(self) -> bytes:
        return pickle.dumps(self._partition, pickle.HIGHEST_PROTOCOL)


def decode(message: KafkaSourceMessage[bytes | None, bytes | None]) -> tuple[str, Event]:
    """The event of a message, under its partition as the key."""
    return str(message.partition), (message.topic == EXPOSURES, orjson.loads(message.value or b""))


def to_message(keyed: tuple[str, bytes]) -> KafkaSinkMessage[None, bytes]:
    """A sample as Bytewax's sink wants it."""
    return KafkaSinkMessage(None, keyed[1])


class FirstBatch:
    """Says once, in the log, that records have come."""

    def __init__(self) -> None:
        self._is_said = False

    def __call__(self, message: KafkaSourceMessage[bytes | None, bytes | None]) -> tuple[str, Event]:
        if not self._is_said:
            log.info("first batch")
            self._is_said = True
        return decode(message)


def dataflow(broker: str, out_topic: str, window_ms: int) -> Dataflow:
    """Kafka to Kafka."""
    flow = Dataflow("join")
    consumer = {name: str(value) for name, value in CONSUMER.items()}
    producer = {name: str(value) for name, value in PRODUCER.items()}
    read = kop.input("read", flow, brokers=[broker], topics=[EXPOSURES, FEEDBACK], add_config=consumer)
    events = op.map("decode", read.oks, FirstBatch())
    samples = op.stateful_batch("join", events, lambda snapshot: Join(window_ms, snapshot))
    kop.output("write", op.map("message", samples, to_message), brokers=[broker], topic=out_topic, add_config=producer)
    return flow


def main() -> None:
    """`python -m benchmarks.bytewax_join BROKER GROUP TOPIC WINDOW_MS`; Bytewax has no consumer groups."""
    chosen = arguments()
    configure_logging("INFO")
    RECOVERY_FOLDER.mkdir()
    init_db_dir(RECOVERY_FOLDER, 1)  # type: ignore[no-untyped-call]
    recovery = RecoveryConfig(RECOVERY_FOLDER)  # type: ignore[no-untyped-call]
    run_main(dataflow(chosen.broker, chosen.out_topic, chosen.window_ms), recovery_config=recovery)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
