"""Which log a topic's offsets belong to: brokers give a topic a new id when it is created anew, were it under its old name."""

from collections.abc import Collection

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from headrace.settings import ConfigError

NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"
"""What brokers older than Kafka 2.8 answer: 16 zero bytes."""
TIMEOUT_S = 10.0


def topic_ids(broker: str, topics: Collection[str]) -> dict[str, str]:
    """The id of each topic; none for a broker that has no ids. Raises ConfigError where a topic is missing or no broker answers."""
    admin = AdminClient({"bootstrap.servers": broker, "log_level": 0})
    ids = {}
    for topic, future in admin.describe_topics(TopicCollection(sorted(topics)), request_timeout=TIMEOUT_S).items():
        try:
            ids[topic] = str(future.result().topic_id)
        except KafkaException as error:
            raise ConfigError(f"no description of topic {topic} from {broker}: {error.args[0].str()}") from error
    return {topic: topic_id for topic, topic_id in ids.items() if topic_id != NO_ID}
