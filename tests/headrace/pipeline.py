"""A brokered pipeline for tests: events into the topics, workers as processes, transitions out."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.broker import free_port
from headrace.memory_rows import InMemory, MemoryRows
from headrace.runner import Event, run
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch, decode_feedback
from schemas.exposure import ExposedItem, Exposure, encode_exposure
from schemas.feedback import LEAVE, Feedback, encode_feedback
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES, TRANSITIONS

PARTITIONS = 4
START_MS = 1_700_000_000_000
WINDOW_MS = 10_000
GAP_MS = 20_000
LAST_USER = "the-end-"
QUIET_S = 2.0
"""After so long without rows none is on its way."""
KEYS = {SAMPLES: ("request_id", "item_id"), TRANSITIONS: ("transition_id",)}
Row = dict[str, Any]
Key = tuple[Any, ...]
Found = TypeVar("Found")
SETTINGS = {
    "HEADRACE_JOINER_JOIN_WINDOW_MS": str(WINDOW_MS),
    "HEADRACE_JOINER_IDLE_S": "60",
    "HEADRACE_EXPERIENCE_SESSION_GAP_MS": str(GAP_MS),
    "HEADRACE_STREAM_HEARTBEAT_INTERVAL_S": "0.5",
}

EARLY_SETTINGS = {
    "HEADRACE_EXPERIENCE_LABELS": "early",
    "HEADRACE_JOINER_EMISSION_MODE": "fast",
    "HEADRACE_JOINER_FAST_WAIT_MS": "500",
}
"""Some of the feedback has come after half a second, most has not."""


def log_of(pages: int, seed: int, users: int = 40, leaving: float = 0.05) -> list[tuple[int, Event]]:
    """(partition, event) pairs in event-time order: sessions of the users, then one page a partition that lets all windows close."""
    rng = random.Random(seed)
    events: list[tuple[int, Event]] = []
    for page in range(pages):
        user = rng.randrange(users)
        ts_ms = START_MS + page * 250 + rng.randrange(200)
        request_id = f"r{seed}-{page}"
        items = [f"i{item}" for item in rng.sample(range(100), rng.randrange(1, 5))]
        events.append(_exposure(user % PARTITIONS, request_id, f"u{user}", ts_ms, items))
        for item in items:
            if rng.random() < 0.3:
                delay_ms = rng.choice((50, 1_000, WINDOW_MS, WINDOW_MS + 1))
                events.append(_feedback(user % PARTITIONS, request_id, f"u{user}", ts_ms + delay_ms, item, rng.choice(("click", "pay"))))
        if rng.random() < leaving:
            events.append(_feedback(user % PARTITIONS, request_id, f"u{user}", ts_ms + 2_000, "", LEAVE))
    end_ms = START_MS + pages * 250 + 10 * (WINDOW_MS + GAP_MS)
    for partition in range(PARTITIONS):
        user_id, request_id = f"{LAST_USER}{partition}", f"end{seed}-{partition}"
        events.append(_exposure(partition, request_id, user_id, end_ms, ["i0"]))
        events.append(_feedback(partition, request_id, user_id, end_ms, "i0", "click"))
    return sorted(events, key=lambda pair: (pair[1].ts_ms, pair[1].topic != EXPOSURES))


def _exposure(partition: int, request_id: str, user_id: str, ts_ms: int, items: Sequence[str]) -> tuple[int, Event]:
    shown = [ExposedItem(item_id=item, position=place) for place, item in enumerate(items)]
    page = Exposure(request_id=request_id, user_id=user_id, ts_ms=ts_ms, state={"hour": 1.0}, action=[1.0], items=shown)
    return partition, Event(ts_ms, EXPOSURES, encode_exposure(page))


def _feedback(partition: int, request_id: str, user_id: str, ts_ms: int, item: str, kind: str) -> tuple[int, Event]:
    event = Feedback(event_id=f"{request_id}-{item}-{kind}", request_id=request_id, user_id=user_id, item_id=item, ts_ms=ts_ms, kind=kind)
    return partition, Event(ts_ms, FEEDBACK, encode_feedback(event))


def produce(broker: str, events: Sequence[tuple[int, Event]], seconds: float = 0.0) -> None:
    """Send the events in order, spread over `seconds`."""
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 5, "log_level": 0})
    pause_every = max(1, len(events) // 50)
    for place, (partition, event) in enumerate(events):
        producer.produce(event.topic, event.value, partition=partition)
        if seconds and place % pause_every == 0:
            producer.flush()
            time.sleep(seconds / 50)
    assert producer.flush(20) == 0


class Worker:
    """One worker process, which can be killed and started again on the same state."""

    def __init__(self, service: str, broker: str, state_dir: Path, group: str, log_dir: Path, session_timeout_s: float) -> None:
        self._command = [sys.executable, "-m", "headrace", "worker", service, "--web-port", str(free_port())]
        self._environment = {
            **os.environ,
            **SETTINGS,
            "HEADRACE_STREAM_BROKER": broker,
            "HEADRACE_STREAM_STATE_DIR": str(state_dir),
            "HEADRACE_STREAM_GROUP_PREFIX": group,
            "HEADRACE_STREAM_SESSION_TIMEOUT_S": str(session_timeout_s),
        }
        self.service, self.state_dir = service, state_dir
        self._log = log_dir / f"{service}.log"
        self.start()

    @property
    def opened(self) -> int:
        """How many partitions it has opened since it was started."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().count(b": opened at ")

    def start(self) -> None:
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=out, env=self._environment)

    def move(self, web_port: int) -> None:
        """Start again with its pages at another port."""
        self._command[-1] = str(web_port)
        self.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def workers(broker: str, folder: Path, group: str, session_timeout_s: float) -> Iterator[list[Worker]]:
    running = [Worker(service, broker, folder / "state", group, folder, session_timeout_s) for service in ("joiner", "experience")]
    try:
        yield running
    finally:
        for worker in running:
            worker.kill()


def undisturbed(events: Sequence[tuple[int, Event]]) -> dict[str, dict[Key, Row]]:
    """By topic, what the in-process runner makes of the events."""
    join = InMemory(partial(PartitionJoin, JoinerSettings(join_window_ms=WINDOW_MS), 0))
    sessions = PartitionSessions(ExperienceSettings(session_gap_ms=GAP_MS), 0, MemoryRows())
    emitted, _ = run(join, sessions, [event for _, event in events], START_MS + 10**9)
    return {
        topic: first_by_key(topic, [row for message in messages for row in rows_of(message.value, topic)])
        for topic, messages in ((SAMPLES, emitted.samples), (TRANSITIONS, emitted.transitions))
    }


def first_by_key(topic: str, rows: Sequence[Row]) -> dict[Key, Row]:
    """What a consumer keeps that drops what it has seen: of each sample or transition the one that came first."""
    return {key(topic, row): row for row in reversed(rows)}


def key(topic: str, row: Row) -> Key:
    """What tells samples, or transitions, apart."""
    return tuple(row[name] for name in KEYS[topic])


def read(broker: str, topic: str, expected: int, timeout_s: float) -> list[Row]:
    """Rows of a topic, duplicates included, once `expected` different ones of the log's users are there."""
    found: set[Key] = set()

    def all_are_there(new: list[Row]) -> bool:
        found.update(first_by_key(topic, new))
        return len(found) >= expected

    return read_until(broker, topic, all_are_there, timeout_s)


def read_until(broker: str, topic: str, is_enough: Callable[[list[Row]], bool], timeout_s: float) -> list[Row]:
    """Rows of a topic up to those of which `is_enough`, which gets them as they come, says so."""
    return _consumed(broker, topic, lambda message: rows_of(message.value() or b"", topic), is_enough, timeout_s)


def _consumed(
    broker: str, topic: str, opened: Callable[[Message], list[Found]], is_enough: Callable[[list[Found]], bool], timeout_s: float
) -> list[Found]:
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "test", "auto.offset.reset": "earliest", "log_level": 0})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    found: list[Found] = []
    new: list[Found] = []
    deadline_s = time.monotonic() + timeout_s
    try:
        while not is_enough(new) and time.monotonic() < deadline_s:
            new = []
            for message in consumer.consume(100, 0.5):
                assert message.error() is None, message.error()
                new += opened(message)
            found += new
    finally:
        consumer.close()
    return found


def check_lineage(broker: str, events: Sequence[tuple[int, Event]], pages: int) -> None:
    """The offsets on each transition are those of the feedback on its page that came within the window."""
    reactions = sum(event.topic == FEEDBACK for _, event in events)
    lies_at: dict[tuple[int, int], Feedback] = {}
    of_page: dict[str, dict[int, Feedback]] = {}

    def all_are_read(new: list[tuple[int, int, bytes]]) -> bool:
        for partition, offset, value in new:
            lies_at[partition, offset] = reaction = decode_feedback(value)
            of_page.setdefault(reaction.request_id, {})[offset] = reaction
        return len(lies_at) >= reactions

    _consumed(broker, FEEDBACK, lambda message: [(message.partition(), message.offset(), message.value())], all_are_read, 60)
    assert len(lies_at) == reactions
    checked: set[str] = set()

    def all_are_checked(new: list[Row]) -> bool:
        for row in new:
            counts = {at for at, reaction in of_page.get(row["request_id"], {}).items() if reaction.ts_ms - row["ts_ms"] <= WINDOW_MS}
            assert row["feedback_offsets"] == sorted(counts), row
            assert {lies_at[row["source_partition"], at].request_id for at in counts} <= {row["request_id"]}
            checked.add(row["request_id"])
        return len(checked) >= pages

    _consumed(broker, TRANSITIONS, lambda message: decode_batch(message.value(), TRANSITIONS)[0].to_pylist(), all_are_checked, 60)
    assert len(checked) >= pages


def check(broker: str, expected: dict[str, dict[Key, Row]], timeout_s: float) -> None:
    """Whoever keeps the first of each has the samples and transitions of the undisturbed run, neither more nor less."""
    for topic, rows in expected.items():
        found = first_by_key(topic, read(broker, topic, len(rows), timeout_s))
        assert found.keys() == rows.keys(), topic
        assert found == rows, topic


def check_amended(broker: str, expected: dict[Key, Row], timeout_s: float) -> None:
    """Whoever keeps the highest revision of each transition has those of the undisturbed run, of which most had left early."""
    newest: dict[Key, Row] = {}
    quiet_since_s = time.monotonic()

    def is_settled(new: list[Row]) -> bool:
        nonlocal quiet_since_s
        for row in new:
            before = newest.setdefault(key(TRANSITIONS, row), row)
            if row["revision"] > before["revision"]:
                newest[key(TRANSITIONS, row)] = row
        if new:
            quiet_since_s = time.monotonic()
        return time.monotonic() > quiet_since_s + QUIET_S and _without_revision(newest) == _without_revision(expected)

    rows = read_until(broker, TRANSITIONS, is_settled, timeout_s)
    assert newest.keys() == expected.keys()
    assert _without_revision(newest) == _without_revision(expected)
    early = {row["transition_id"] for row in rows if row["revision"] == 0}
    amended = {row["transition_id"] for row in rows if row["revision"] == 1}
    assert len(early) > len(expected) / 2
    assert early & amended


def _without_revision(rows: dict[Key, Row]) -> dict[Key, Row]:
    return {name: {**row, "revision": None} for name, row in rows.items()}


def rows_of(message: bytes, topic: str = TRANSITIONS) -> list[Row]:
    """The rows of a message, without what depends on where and when its events lay."""
    batch, _ = decode_batch(message, topic)
    placed = {"source_partition", "source_offset", "samples_offset", "feedback_offsets", "feedback_arrival_ms"}
    rows = [{name: cell for name, cell in row.items() if name not in placed} for row in batch.to_pylist()]
    return [row for row in rows if not row["user_id"].startswith(LAST_USER)]
