"""Which member of its consumer group a worker is: the one with this state folder and address, however often it is started again.

With a name of its own that outlives the process (Kafka's `group.instance.id`) a worker that is killed and started again within the
session time-out has its partitions back at once, and the group does not even notice. Without one the group waits for the dead member
until its session ends: 4.9 s on Apache Kafka with the default session of 6 s, against 0.03 s.
"""

import fcntl
import os
import uuid
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headrace.settings import ConfigError

EMBEDDED_CLUSTER_ID = "headrace"
"""How the embedded broker calls itself. With named members it would rebalance a group of two for ever (version 0.6.0)."""
TIMEOUT_S = 10.0

_claimed: list[int] = []
"""Open files whose locks last as long as this process."""


def knows_named_members(broker: str) -> bool:
    """Whether the broker is any but the embedded one. Raises ConfigError where none answers."""
    try:
        metadata = AdminClient({"bootstrap.servers": broker, "log_level": 0}).list_topics(timeout=TIMEOUT_S)
    except KafkaException as error:
        raise ConfigError(f"no broker answers at {broker}: {error.args[0].str()}") from error
    return metadata.cluster_id != EMBEDDED_CLUSTER_ID


def claim(folder: Path) -> str:
    """The name that belongs to a state folder. Raises ConfigError where another process has it, or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / "instance", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write state in {folder}: {error.strerror}; set stream.state_dir to a folder of your own") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise ConfigError(
            f"state in {folder} is in use by another worker: give each worker its own stream.state_dir, or stop the other one"
        ) from error
    _claimed.append(file)
    name = os.read(file, 100).decode()
    if not name:
        name = uuid.uuid4().hex
        os.write(file, name.encode())
    return name


def member_name(instance: str, web_host: str, web_port: int) -> str:
    """The name in the group of the worker with this state folder (`claim`) at this address.

    A named member that comes back gets the assignment that it had, and Faust's assignments hold the address of their worker: one at
    another address would be refused its own partitions for ever. It is another member instead, and waits for the old one's session.
    """
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{instance}@{web_host}:{web_port}").hex
