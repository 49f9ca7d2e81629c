"""The sink as a process on a broker: killed at random moments, its files hold each sample once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter as Multiset
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer
from sink_samples import HOUR_MS, START_MS, Page, Row, read, read_plainly, samples

from headrace.broker import create_topics, free_port, running
from headrace.metrics import parse
from headrace.settings import ConfigError, StreamSettings
from headrace.tap import tap
from joiner.sink.dataset import read_journals
from joiner.sink.settings import StorageOptions
from joiner.sink.target import open_target
from schemas.codec import encode_batch
from schemas.topics import DEAD_LETTERS, SAMPLES

PARTITIONS = 4
PAGES = 6_000
DEADLINE_S = 90.0
BEING_WRITTEN = "_headrace/*/*.parquet.tmp"


class SinkProcess:
    """`headrace worker sink`, which can be killed and started again."""

    def __init__(self, broker: str, folder: Path, settings: Mapping[str, str]) -> None:
        self.web_port = free_port()
        self.log = folder / "sink.log"
        self._command = [sys.executable, "-m", "headrace", "worker", "sink", "--web-port", str(self.web_port)]
        self._environment = {
            **os.environ,
            "HEADRACE_STREAM_BROKER": broker,
            "HEADRACE_STREAM_STATE_DIR": str(folder / "state"),
            "HEADRACE_STREAM_HEARTBEAT_INTERVAL_S": "0.5",
            **{f"HEADRACE_{name}": value for name, value in settings.items()},
        }
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=out, env=self._environment)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/metrics", timeout=5) as page:
            text: str = page.read().decode()
            return text


@contextmanager
def sink(broker: str, folder: Path, **settings: str) -> Iterator[SinkProcess]:
    process = SinkProcess(broker, folder, settings)
    try:
        yield process
    finally:
        process.kill()


def produce(broker: str, seed: int, seconds: float) -> Multiset[Row]:
    """Batches of pages, a tenth of them sent again in other cuts, as by a joiner that crashed. Gives their rows, each once."""
    rng = random.Random(seed)
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 5, "log_level": 0})
    sent: dict[int, list[Page]] = {partition: [] for partition in range(PARTITIONS)}
    rows: Multiset[Row] = Multiset()
    pages = [Page(number, START_MS + number * 1_000 + rng.randrange(500), ("a", "b")[: rng.randrange(1, 3)]) for number in range(PAGES)]
    for first in range(0, PAGES, 20):
        batch, partition = pages[first : first + 20], rng.randrange(PARTITIONS)
        producer.produce(SAMPLES, encode_batch(samples(batch, partition=partition), 0), partition=partition)
        sent[partition] += batch
        rows.update(row for page in batch for row in page.rows)
        if rng.random() < 0.1:
            again = sent[partition][-rng.randrange(1, 50) :]
            producer.produce(SAMPLES, encode_batch(samples(again, partition=partition), 0), partition=partition)
        producer.poll(0)
        time.sleep(seconds * 20 / PAGES)
    producer.produce(SAMPLES, b"no record batch", partition=0)
    assert producer.flush(20) == 0
    return rows


def wait_for_rows(uri: Path, expected: int, process: SinkProcess) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        assert process.process.poll() is None, process.log.read_text()
        try:
            if read(uri).total() >= expected:
                return
        except ConfigError as error:
            assert "holds no samples" in str(error)
        time.sleep(0.2)
    raise AssertionError(f"{read(uri).total()} of {expected} rows after {DEADLINE_S} s: {process.log.read_text()}")


def kill_in_the_middle_of_a_flush(process: SinkProcess, uri: Path) -> int:
    """Kill it when it has begun to write a file. Gives how many were being written then, by the journals."""
    before, deadline_s = set(uri.glob(BEING_WRITTEN)), time.monotonic() + DEADLINE_S
    while not set(uri.glob(BEING_WRITTEN)) - before:
        assert time.monotonic() < deadline_s and process.process.poll() is None, process.log.read_text()
    process.kill()
    journals = [journal for _, journal in read_journals(open_target(str(uri), StorageOptions())).values()]
    return sum(len(journal.unfinished()) for journal in journals)


def check_pipeline(broker: str, folder: Path, kills: int, session_timeout_s: float = 3.0) -> None:
    uri, unfinished = folder / "samples", 0
    create_topics(StreamSettings(broker=broker))
    chosen = {"SINK_URI": str(uri), "SINK_FLUSH_S": "0.3", "SINK_COMPACT_AFTER_S": "1", "SINK_KEEP_REPLACED_S": "1"}
    chosen["STREAM_SESSION_TIMEOUT_S"] = str(session_timeout_s)
    with sink(broker, folder, **chosen) as process, ThreadPoolExecutor(1) as producing:
        produced = producing.submit(produce, broker, seed=kills, seconds=5.0 * kills)
        for _ in range(kills):
            unfinished += kill_in_the_middle_of_a_flush(process, uri)
            process.start()
        rows = produced.result()
        wait_for_rows(uri, rows.total(), process)
        assert read(uri) == rows
        assert (unfinished > 0) == (kills > 0)

        wait_until_merged(uri, process)
        assert read(uri) == rows
        page = parse(process.metrics())
        assert page.total("headrace_rows_out_total", stage="sink") == rows.total()
        assert page.total("headrace_ignored_total", stage="sink", reason="duplicate") > 0
        assert page.total("headrace_rejected_total", stage="sink", reason="malformed") == 1
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(30) == 0
    letters = list(tap(StreamSettings(broker=broker), {}, DEAD_LETTERS, True, None, 1.0))
    assert {json.loads(letter)["value"]["reason"] for letter in letters} == {"malformed"}
    assert read_plainly(uri) == rows


@pytest.mark.parametrize("kills", [0, 6])
@pytest.mark.slow
def test_a_sink_killed_under_load_writes_each_sample_once(tmp_path: Path, kills: int) -> None:
    with running("embedded", tmp_path / "broker") as broker:
        check_pipeline(broker.address, tmp_path, kills)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_sink_on_a_real_kafka_writes_each_sample_once(kafka_broker: str, tmp_path: Path) -> None:
    # 6 s is the least that Kafka's default group.min.session.timeout.ms allows
    check_pipeline(kafka_broker, tmp_path, kills=3, session_timeout_s=6.0)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"SINK_URI": "gopher://host/x"}, "setting sink.uri = 'gopher://host/x': scheme 'gopher' is not known"),
        ({"SINK_URI": f"file://{__file__}/x"}, f"sink.uri = file://{__file__}/x is, or lies below, a file: name a folder"),
        ({"SINK_TOPIC": "exposures"}, "setting sink.topic = 'exposures': choose one of samples"),
    ],
)
def test_a_sink_that_cannot_start_says_why_in_one_line(embedded_broker: str, tmp_path: Path, chosen: dict[str, str], says: str) -> None:
    create_topics(StreamSettings(broker=embedded_broker))
    with sink(embedded_broker, tmp_path, **chosen) as process:
        assert process.process.wait(30) == 2
    (line,) = process.log.read_text().splitlines()
    assert line.startswith(f"headrace: {says}")


def wait_until_merged(uri: Path, process: SinkProcess) -> None:
    """The log spans two hours: one file of each partition in each of them is left."""
    assert PAGES * 1_000 < 2 * HOUR_MS
    deadline_s = time.monotonic() + DEADLINE_S
    while len(list(uri.glob("date=*/**/*.parquet"))) > 2 * PARTITIONS:
        assert time.monotonic() < deadline_s and process.process.poll() is None, process.log.read_text()
        time.sleep(0.2)
