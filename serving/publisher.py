"""Events on their way to the broker: a queue in memory that a C thread empties; requests never wait for it."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as ConfluentProducer

from schemas.topics import MAX_EVENT_BYTES
from serving.settings import ServingSettings

log = logging.getLogger(__name__)

_POLL_S = 0.2
_CHECK_INTERVAL_S = 1.0


class QueueFullError(RuntimeError):
    """The producer's queue is full: the broker is away, or slower than the events come."""


class Producer(Protocol):
    """What the API needs of a producer."""

    def start(self) -> None: ...

    def send(self, topic: str, key: str, value: bytes) -> None:
        """Queue one message; it does not wait. Raises QueueFullError."""
        ...

    def trouble(self) -> str:
        """Why messages do not arrive now; empty where they do."""
        ...

    def stop(self, timeout_s: float) -> int:
        """Send what is queued, and return how many messages are left."""
        ...


class KafkaProducer:
    """librdkafka's producer. `on_delivery` gets (topic, error or empty) of each message from a thread of ours.

    Keys go to the partition that the Java and Python clients choose too (murmur2_random). One request in flight keeps a user's
    events in order through retries; duplicates of a retry are found by id downstream.
    """

    def __init__(self, broker: str, settings: ServingSettings, on_delivery: Callable[[str, str], None]) -> None:
        self._broker = broker
        self._on_delivery = on_delivery
        self._trouble = f"the broker {broker} has not answered yet"
        self._told = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve_callbacks, name="producer-callbacks", daemon=True)
        self._producer = ConfluentProducer(
            {
                "bootstrap.servers": broker,
                "partitioner": "murmur2_random",
                "acks": "all",
                "linger.ms": settings.linger_ms,
                "compression.type": "lz4",
                "max.in.flight.requests.per.connection": 1,
                "message.max.bytes": MAX_EVENT_BYTES,
                "message.timeout.ms": int(settings.delivery_timeout_s * 1000),
                "queue.buffering.max.messages": settings.queue_messages,
                "queue.buffering.max.kbytes": settings.queue_bytes // 1024,
                "reconnect.backoff.max.ms": 2000,
                "log_level": 2,  # a broker that is away is one line of ours, not one of every attempt to connect
                "on_delivery": self._delivered,
                "error_cb": self._failed,
            },
            logger=log,
        )

    def start(self) -> None:
        self._thread.start()

    def send(self, topic: str, key: str, value: bytes) -> None:
        try:
            self._producer.produce(topic, value, key)
        except BufferError as error:
            raise QueueFullError(self._trouble or "the broker takes events more slowly than they come") from error

    def trouble(self) -> str:
        return self._trouble

    def stop(self, timeout_s: float) -> int:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        return int(self._producer.flush(timeout_s))

    def _serve_callbacks(self) -> None:
        next_check_s = 0.0
        while not self._stopped.is_set():
            if self._trouble and time.monotonic() >= next_check_s:
                self._check()
                next_check_s = time.monotonic() + _CHECK_INTERVAL_S
            self._producer.poll(_POLL_S)

    def _check(self) -> None:
        try:
            self._producer.list_topics(timeout=_CHECK_INTERVAL_S)
        except KafkaException as error:
            self._fail(error.args[0])
        else:
            self._trouble, self._told = "", False
            log.info("the broker %s answers", self._broker)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        self._on_delivery(message.topic() or "", error.name() if error else "")

    def _failed(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._fail(error)

    def _fail(self, error: KafkaError) -> None:
        self._trouble = f"the broker {self._broker} does not answer: {error.str()}"
        if not self._told:
            log.error("%s; events wait in memory", self._trouble)
            self._told = True
