"""Brokers for the tests that need one: the embedded one always, a real Kafka where Docker or KAFKA_HOME is there."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis_server import RedisServer

from headrace import broker

# How long an example takes says something of what else this machine does, and nothing of the code.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with broker.running("embedded", tmp_path_factory.mktemp("broker")) as running:
        yield running.address


@pytest.fixture
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker of the test's own: another test's events in the topics would be read, too."""
    with _kafka(tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the Redis protocol of the test's own."""
    server = RedisServer(tmp_path)
    yield server
    server.close()


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def any_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """A broker's address, and the shortest session that it allows, in s. All tests of a module share the two."""
    if request.param == "kafka":
        with _kafka(tmp_path_factory.mktemp("kafka")) as address:
            yield address, 6.0
    else:
        with broker.running("embedded", tmp_path_factory.mktemp("broker")) as running:
            yield running.address, 1.5


@contextmanager
def _kafka(folder: Path) -> Iterator[str]:
    if os.environ.get("KAFKA_HOME") and shutil.which("java"):
        with broker.running("kafka", folder) as running:
            yield running.address
    elif _docker_answers():
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer("confluentinc/cp-kafka:7.8.0") as container:
            yield container.get_bootstrap_server()
    else:
        pytest.skip("no real Kafka here: set KAFKA_HOME to a distribution (and install java 17), or start a Docker engine")


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, check=False, timeout=20)
    return asked.returncode == 0
