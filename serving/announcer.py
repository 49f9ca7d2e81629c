"""Announcements of the version controller on the compacted topic `policies`."""

import logging
from typing import Protocol

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.policy import PolicyVersion
from schemas.topics import POLICIES

log = logging.getLogger(__name__)


class AnnounceError(RuntimeError):
    """The broker did not take an announcement."""


class Announcer(Protocol):
    """Tells everybody what is current. Returns when it is durable; raises AnnounceError where it is not."""

    def announce(self, version: PolicyVersion) -> None: ...


class KafkaAnnouncer:
    """Sends an announcement, keyed by policy, and waits until the broker has it."""

    def __init__(self, broker: str, timeout_s: float) -> None:
        self._broker = broker
        self._timeout_s = timeout_s
        self._producer = Producer(
            {
                "bootstrap.servers": broker,
                "partitioner": "murmur2_random",
                "acks": "all",
                "linger.ms": 0,
                "message.timeout.ms": int(timeout_s * 1000),
                "reconnect.backoff.max.ms": 2000,
                "log_level": 2,  # what fails is raised
            },
            logger=log,
        )

    def announce(self, version: PolicyVersion) -> None:
        outcome: list[KafkaError | None] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            outcome.append(error)

        try:
            self._producer.produce(POLICIES, msgspec.json.encode(version), version.policy.encode(), on_delivery=delivered)
        except (BufferError, KafkaException) as error:
            raise AnnounceError(f"{self._broker}: {error}") from error
        self._producer.flush(self._timeout_s + 1.0)  # past the message's own time-out, so that its outcome is known
        if not outcome:
            raise AnnounceError(f"the broker {self._broker} did not answer within {self._timeout_s:g} s")
        if outcome[0] is not None:
            raise AnnounceError(f"the broker {self._broker} did not take the announcement: {outcome[0].str()}")
