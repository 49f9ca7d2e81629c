"""A stage on a broker: what comes out of a relay that is stopped, fails, is paused, or loses its broker for a while."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from reader import PARTITIONS, fill

from headrace.broker import LocalBroker, create_topics, free_port, running
from headrace.metrics import parse
from headrace.settings import StreamSettings
from schemas.topics import EXPOSURES, SAMPLES


class Relay:
    """A relay worker as a process."""

    def __init__(self, broker: str, folder: Path, **environment: str) -> None:
        self.port = free_port()
        self.log = folder / "relay.log"
        self._command = [sys.executable, str(Path(__file__).with_name("relay_worker.py")), broker, str(folder), "g", str(self.port)]
        self._environment = {**os.environ, **TIMES, **environment}
        self.start()

    def start(self, **environment: str) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=out, env={**self._environment, **environment})

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as page:
            return str(page.read().decode())

    def gauge(self, name: str) -> float:
        """The sum of a gauge over the partitions; 0 while the worker starts."""
        try:
            return parse(self.page("/metrics")).total(f"headrace_{name}", stage="relay")
        except OSError:
            return 0.0


TIMES = {"HEADRACE_STREAM_SESSION_TIMEOUT_S": "2", "HEADRACE_STREAM_HEARTBEAT_INTERVAL_S": "0.3"}


@contextmanager
def relay_on(broker: LocalBroker, folder: Path, **environment: str) -> Iterator[Relay]:
    create_topics(StreamSettings(broker=broker.address))
    folder.mkdir(exist_ok=True)
    relay = Relay(broker.address, folder, **environment)
    try:
        yield relay
    finally:
        relay.process.kill()
        relay.process.wait()


def wait(condition: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def relayed(broker: str) -> dict[int, list[bytes]]:
    """What the relays have sent so far, by partition."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "test", "auto.offset.reset": "earliest", "log_level": 0})
    consumer.assign([TopicPartition(SAMPLES, partition, 0) for partition in range(PARTITIONS)])
    values: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    while messages := consumer.consume(1000, 1.5):
        for message in messages:
            values[message.partition()].append(message.value())
    consumer.close()
    return values


def exactly(count: int) -> list[bytes]:
    """A partition's relayed records, each numbered by how many came before it."""
    return [b"%d %d" % (number, number) for number in range(count)]


@pytest.mark.slow
def test_a_relay_that_stops_gracefully_fails_over_a_record_and_is_paused_sends_everything_once(tmp_path: Path) -> None:
    with running("embedded", tmp_path / "broker") as broker, relay_on(broker, tmp_path / "relay", RELAY_POISON="250") as relay:
        fill(broker.address, EXPOSURES, 0, 100)
        wait(lambda: relay.gauge("relayed") == 100 * PARTITIONS, "the first hundred")

        monitor, assignment = json.loads(relay.page("/"))["Sensor0"], json.loads(relay.page("/assignment/"))
        assert assignment["actives"] == {EXPOSURES: list(range(PARTITIONS))}
        assert monitor["messages_received_by_topic"][EXPOSURES] >= PARTITIONS
        assert monitor["events_total"] == monitor["messages_received_total"]
        assert monitor["topic_read_offsets"][EXPOSURES] == {str(number): 99 for number in range(PARTITIONS)}

        relay.process.terminate()
        assert relay.process.wait(15) == 0
        fill(broker.address, EXPOSURES, 100, 200)
        relay.start()
        wait(lambda: relay.gauge("relayed") == 200 * PARTITIONS, "the second hundred")

        fill(broker.address, EXPOSURES, 200, 300)
        assert relay.process.wait(15) == 70
        assert "ValueError: offset 250 is too much" in relay.log.read_text()
        relay.start()  # and dies over it again
        assert relay.process.wait(30) == 70
        relay.start(RELAY_POISON="none", RELAY_SATED="260")
        wait(lambda: relay.gauge("paused") == PARTITIONS, "all partitions sated")
        fill(broker.address, EXPOSURES, 300, 400)
        wait(lambda: relay.gauge("relayed") == 400 * PARTITIONS, "the rest")

        assert relayed(broker.address) == {number: exactly(400) for number in range(PARTITIONS)}


@pytest.mark.slow
def test_a_broker_that_is_away_for_longer_than_the_session_costs_time_and_nothing_else(tmp_path: Path) -> None:
    with running("embedded", tmp_path / "broker") as broker, relay_on(broker, tmp_path / "relay") as relay:
        fill(broker.address, EXPOSURES, 0, 100)
        wait(lambda: relay.gauge("relayed") == 100 * PARTITIONS, "the first hundred")
        os.kill(broker.pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(broker.pid, signal.SIGCONT)
        fill(broker.address, EXPOSURES, 100, 200)
        wait(lambda: relay.gauge("relayed") == 200 * PARTITIONS, "the second hundred")

        assert relay.process.poll() is None
        assert relayed(broker.address) == {number: exactly(200) for number in range(PARTITIONS)}


@pytest.mark.slow
def test_a_worker_whose_broker_does_not_come_back_ends(tmp_path: Path) -> None:
    patience = {"HEADRACE_STREAM_STALL_TIMEOUT_S": "6"}
    with running("embedded", tmp_path / "broker") as broker, relay_on(broker, tmp_path / "relay", **patience) as relay:
        fill(broker.address, EXPOSURES, 0, 10)
        wait(lambda: relay.gauge("relayed") == 10 * PARTITIONS, "the first ten")
        time.sleep(8)  # nothing comes: that is no stall
        assert relay.process.poll() is None
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            assert relay.process.wait(20) == 70
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        assert "the consumer stalled, or no broker answers it" in relay.log.read_text()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_kafka_that_is_killed_and_comes_back_on_its_data_costs_time_and_nothing_else(tmp_path: Path) -> None:
    if not (os.environ.get("KAFKA_HOME") and shutil.which("java")):
        pytest.skip("no real Kafka here that can be killed: set KAFKA_HOME to a distribution, and install java 17")
    times = {"HEADRACE_STREAM_SESSION_TIMEOUT_S": "6", "HEADRACE_STREAM_HEARTBEAT_INTERVAL_S": "1"}
    port = free_port()
    with running("kafka", tmp_path / "broker", port) as broker, relay_on(broker, tmp_path / "relay", **times) as relay:
        fill(broker.address, EXPOSURES, 0, 100)
        wait(lambda: relay.gauge("relayed") == 100 * PARTITIONS, "the first hundred")
        os.killpg(broker.pid, signal.SIGKILL)
        time.sleep(8)  # longer than the session
        (properties,) = (tmp_path / "broker").glob("*/server.properties")
        start = f"{os.environ['KAFKA_HOME']}/bin/kafka-server-start.sh"
        again = LocalBroker("kafka", [start, str(properties)], port, tmp_path / "again.log", {"LOG_DIR": str(properties.parent)})
        try:
            again.wait_ready()
            fill(broker.address, EXPOSURES, 100, 200)

            def is_relayed() -> bool:
                if relay.process.poll() is not None:  # a batch was in hand: what a supervisor does
                    relay.start()
                return relay.gauge("relayed") == 200 * PARTITIONS

            wait(is_relayed, "the second hundred", timeout_s=60)
            values = relayed(broker.address)
            assert {number: list(dict.fromkeys(each)) for number, each in values.items()} == dict.fromkeys(range(PARTITIONS), exactly(200))
        finally:
            again.stop()
