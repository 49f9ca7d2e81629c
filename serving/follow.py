"""Follows the compacted `policies` topic: every announcement of our policy, from the beginning, in every replica."""

import logging
import threading
from collections.abc import Callable

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from schemas.codec import UNREADABLE
from schemas.policy import PolicyVersion
from schemas.topics import POLICIES
from serving.swap import decode_policy_version

log = logging.getLogger(__name__)

_POLL_S = 0.5
_METADATA_TIMEOUT_S = 2.0


class PolicyFollower:
    """A consumer in a thread of its own. It joins no group and commits nothing: a replica that starts reads all of the topic."""

    def __init__(self, broker: str, policy: str, on_version: Callable[[PolicyVersion], None], on_malformed: Callable[[], None]) -> None:
        self._policy = policy
        self._on_version = on_version
        self._on_malformed = on_malformed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="policies", daemon=True)
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker,
                "group.id": "headrace-serving",  # the client wants one; nothing joins it
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",  # a topic that was made anew is read from its beginning
                "reconnect.backoff.max.ms": 2000,
                "log_level": 2,
                "error_cb": lambda error: log.debug("topic %s: %s", POLICIES, error),  # the producer tells that the broker is away
            },
            logger=log,
        )

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following; returns within a few seconds."""
        self._stopped.set()
        self._thread.join()
        self._consumer.close()

    def _follow(self) -> None:
        while not self._stopped.is_set() and not self._assign():
            self._stopped.wait(_POLL_S)
        while not self._stopped.is_set():
            try:
                message = self._consumer.poll(_POLL_S)
            except KafkaException as error:
                log.warning("topic %s: %s", POLICIES, error)
                continue
            if message is not None:
                self._take(message)

    def _assign(self) -> bool:
        """Assign every partition of the topic from its beginning; False while there is no such topic, or no broker."""
        try:
            topic = self._consumer.list_topics(POLICIES, timeout=_METADATA_TIMEOUT_S).topics.get(POLICIES)
        except KafkaException as error:
            log.debug("topic %s: %s", POLICIES, error)
            return False
        if topic is None or topic.error is not None or not topic.partitions:
            return False
        self._consumer.assign([TopicPartition(POLICIES, partition, OFFSET_BEGINNING) for partition in topic.partitions])
        return True

    def _take(self, message: Message) -> None:
        failure, value = message.error(), message.value()
        if failure is not None:
            log.warning("topic %s: %s", POLICIES, failure.str())
        elif value is not None and message.key() == self._policy.encode():
            try:
                self._on_version(decode_policy_version(value))
            except UNREADABLE as error:
                self._on_malformed()
                log.error(
                    "topic %s, partition %s, offset %s: not an announcement: %s", POLICIES, message.partition(), message.offset(), error
                )
