"""What goes wrong beside kill -9: lost disks, workers that come, go and freeze, and records that nobody can read."""

import random
import shutil
import signal
import threading
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
from schemas.topics import DEAD_LETTERS, EXPOSURES, FEEDBACK, MAX_EVENT_BYTES, SAMPLES, TRANSITIONS

PAGES = 1_500


def check_workers_that_come_and_go(broker: str, folder: Path, seed: int, session_timeout_s: float) -> None:
    """Second workers join under load, each with a disk of its own; one worker freezes, one loses its disk, one is told to leave."""
    create_topics(StreamSettings(broker=broker))
    events = pipeline.log_of(PAGES, seed)
    expected = pipeline.undisturbed(events)

    def worker(service: str, number: int) -> pipeline.Worker:
        disk = folder / f"{service}-{number}"
        disk.mkdir()
        return pipeline.Worker(service, broker, disk, f"faults-{seed}", disk, session_timeout_s)

    services = ("joiner", "experience")
    workers = {(service, 0): worker(service, 0) for service in services}
    feeding = threading.Thread(target=pipeline.produce, args=(broker, events, 5 * session_timeout_s + 6))
    try:
        time.sleep(session_timeout_s)
        feeding.start()
        workers |= {(service, 1): worker(service, 1) for service in services}
        time.sleep(session_timeout_s + 2)
        for service, number in random.Random(seed).sample([("joiner", 0), ("experience", 1)], 2):
            frozen, other = workers[service, number], workers[service, 1 - number]
            frozen.process.send_signal(signal.SIGSTOP)
            time.sleep(1.7 * session_timeout_s)
            other.kill()
            shutil.rmtree(folder / f"{service}-{1 - number}" / service, ignore_errors=True)
            frozen.process.send_signal(signal.SIGCONT)
            other.start()
        feeding.join()
        leaving = workers["joiner", 1]
        leaving.process.terminate()
        assert leaving.process.wait(20) == 0
        pipeline.check(broker, expected, timeout_s=60)
    finally:
        for process in workers.values():
            process.kill()
    assert "Traceback" not in (folder / "joiner-1" / "joiner.log").read_text()


@pytest.mark.slow
def test_workers_that_join_freeze_lose_their_disk_and_leave_change_nothing(tmp_path: Path) -> None:
    with running("embedded", tmp_path / "broker") as broker:
        check_workers_that_come_and_go(broker.address, tmp_path, seed=4, session_timeout_s=3.0)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_real_kafka_and_workers_that_join_freeze_lose_their_disk_and_leave(kafka_broker: str, tmp_path: Path) -> None:
    check_workers_that_come_and_go(kafka_broker, tmp_path, seed=5, session_timeout_s=6.0)


POISON = {
    EXPOSURES: (None, b"", b"{" + b"x" * (10 << 20)),
    FEEDBACK: (None, b"\xff garbage", b"y" * (10 << 20)),
    SAMPLES: (None, b"no Arrow", b"z" * (10 << 20)),
}


@pytest.mark.slow
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
            rows = pipeline.read(broker.address, TRANSITIONS, 1, timeout_s=40)  # nothing follows the page: silence lets it go
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
