"""Records that nobody can read, in every topic that a worker reads."""

import time
from collections import Counter
from pathlib import Path

import msgspec
import pipeline
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.broker import create_topics, running
from headrace.settings import StreamSettings
from schemas.dead_letter import DeadLetter
from schemas.topics import DEAD_LETTERS, EXPOSURES, FEEDBACK, MAX_EVENT_BYTES, SAMPLES

POISON = {
    EXPOSURES: (None, b"", b"{" + b"x" * (10 << 20)),
    FEEDBACK: (None, b"\xff garbage", b"y" * (10 << 20)),
    SAMPLES: (None, b"no Arrow", b"z" * (10 << 20)),
}


def test_what_nobody_can_read_becomes_dead_letters_and_the_stream_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JOIN_WINDOW_MS", "500"), ("IDLE_S", "1")):
        monkeypatch.setitem(pipeline.SETTINGS, f"HEADRACE_JOINER_{name}", value)
    monkeypatch.setitem(pipeline.SETTINGS, "HEADRACE_EXPERIENCE_SESSION_GAP_MS", "500")
    monkeypatch.setenv("HEADRACE_EXPERIENCE_IDLE_S", "1")
    partition, page = pipeline.log_of(1, seed=6)[0]
    with running("embedded", tmp_path / "broker") as broker:
        create_topics(StreamSettings(broker=broker.address))
        producer = Producer({"bootstrap.servers": broker.address, "message.max.bytes": MAX_EVENT_BYTES, "log_level": 0})
        for topic, values in POISON.items():
            for value in values:
                producer.produce(topic, value, partition=partition)
        producer.produce(page.topic, page.value, partition=partition)
        assert producer.flush(20) == 0

        with pipeline.workers(broker.address, tmp_path, "poison", 6.0):
            rows = pipeline.read_transitions(broker.address, 1, timeout_s=40)  # nothing follows the page: silence lets it go
            refused = dead_letters(broker.address, 9)

    assert [row["transition_id"] for row in rows] == ["r6-0"]
    assert Counter((letter.source_topic, letter.reason) for letter in refused) == {
        (EXPOSURES, "malformed"): 2, (EXPOSURES, "too_large"): 1, (FEEDBACK, "malformed"): 2, (FEEDBACK, "too_large"): 1,
        (SAMPLES, "malformed"): 3,
    }  # fmt: skip


def dead_letters(broker: str, expected: int) -> list[DeadLetter]:
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "test", "auto.offset.reset": "earliest", "log_level": 0})
    consumer.assign([TopicPartition(DEAD_LETTERS, partition, 0) for partition in range(pipeline.PARTITIONS)])
    letters: list[DeadLetter] = []
    deadline_s = time.monotonic() + 20
    while len(letters) < expected and time.monotonic() < deadline_s:
        letters += [msgspec.json.decode(message.value() or b"", type=DeadLetter) for message in consumer.consume(100, 0.5)]
    consumer.close()
    return letters
