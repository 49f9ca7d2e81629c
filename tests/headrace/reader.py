"""A Faust application on the batch transport, in the test's own process: what it was given, and a gate to hold it up at."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faust
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from faust.types import TP
from mode import CrashingSupervisor

from headrace.transport import BatchTopic, Owner, batches

PARTITIONS = 4


class Reader:
    """Reads topics as one member of a group. `seen` has the offsets of every batch whose turn came, in that order."""

    def __init__(self, broker: str, group: str, topics: Sequence[str], folder: Path, session_s: float, owner: Owner | None = None) -> None:
        self.seen: list[tuple[TP, list[int]]] = []
        self.records: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail_at: int | None = None
        self.app = faust.App(
            group,
            broker=f"headrace://{broker}",
            Topic=BatchTopic,
            store="memory://",
            datadir=str(folder / uuid.uuid4().hex),
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_wait_empty=False,
            stream_buffer_maxsize=4,
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=session_s,
            broker_rebalance_timeout=session_s,
            broker_heartbeat_interval=session_s / 6,
            broker_commit_interval=0.1,
        )
        self.app.transport.owner = owner
        for topic in topics:
            self.app.agent(self.app.topic(topic), supervisor_strategy=CrashingSupervisor, name=f"read-{topic}")(self._read)

    async def _read(self, stream: Any) -> None:
        async for tp, records in batches(stream):
            self.seen.append((tp, [record.offset for record in records]))
            self.records += records
            await self.gate.wait()
            if self.fail_at in self.seen[-1][1]:
                raise ValueError(f"offset {self.fail_at} is too much")

    async def __aenter__(self) -> "Reader":
        await self.app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self.app.stop()

    def offsets(self, tp: TP) -> list[int]:
        """All offsets of a partition in the order in which they came."""
        return [offset for seen_tp, offsets in self.seen if seen_tp == tp for offset in offsets]

    def numbers(self) -> dict[str, set[int]]:
        """The partition numbers that it has now, by topic."""
        numbers: dict[str, set[int]] = {}
        for tp in self.app.consumer.assignment():
            numbers.setdefault(tp.topic, set()).add(tp.partition)
        return numbers


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 40.0) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.02)


def new_topic(broker: str, partitions: int = PARTITIONS) -> str:
    """A topic that no other test has."""
    topic = f"t-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": broker, "log_level": 0})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()
    return topic


def fill(broker: str, topic: str, first: int, last: int, partitions: int = PARTITIONS, **settings: Any) -> None:
    """Produce the numbers from `first` up to `last`, not included, to every partition: a number is its offset."""
    producer = Producer({"bootstrap.servers": broker, "log_level": 0, **settings})
    for number in range(first, last):
        for partition in range(partitions):
            producer.produce(topic, b"%d" % number, key=b"k%d" % number, partition=partition)
    assert producer.flush(20) == 0


def committed(broker: str, group: str, topic: str, partitions: int = PARTITIONS) -> list[int]:
    """The committed offsets of a topic's partitions; -1001 where there is none."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": group, "log_level": 0})
    try:
        return [tp.offset for tp in consumer.committed([TopicPartition(topic, partition) for partition in range(partitions)], 10)]
    finally:
        consumer.close()
