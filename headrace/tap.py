"""`headrace tap TOPIC`: any topic as JSON lines, record batches row by row."""

import base64
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from headrace.settings import ConfigError, StreamSettings
from schemas.codec import UNREADABLE, WrongBatchError, decode_batch
from schemas.event_format import EventFormat
from schemas.topics import TOPICS, Topic

POLL_S = 0.2


def topic_named(name: str) -> Topic:
    """The topic of the table. Raises ConfigError for another name."""
    for topic in TOPICS:
        if topic.name == name:
            return topic
    raise ConfigError(f"topic {name!r}: choose one of {', '.join(topic.name for topic in TOPICS)}")


def tap(
    settings: StreamSettings,
    formats: Mapping[str, EventFormat],
    name: str,
    from_start: bool,
    limit: int | None,
    idle_s: float | None,
) -> Iterator[str]:
    """Yield the topic's messages as JSON lines: until `limit` of them, or until nothing came for `idle_s` seconds.

    `formats` are those of the topics whose messages are not JSON.
    """
    topic = topic_named(name)
    consumer = Consumer(
        {
            "bootstrap.servers": settings.broker,
            "group.id": "headrace-tap",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest" if from_start else "latest",
            "fetch.message.max.bytes": 16 << 20,
            "log_level": 0,
        }
    )
    try:
        found = consumer.list_topics(name, timeout=10).topics[name]
        if found.error is not None:
            raise ConfigError(f"topic {name}: {found.error.str()}; create the topics with `headrace topics`")
        start = 0 if from_start else -1
        consumer.assign([TopicPartition(name, partition, start) for partition in found.partitions])
        yield from _lines(consumer, topic, formats[name].to_json if name in formats else bytes, limit, idle_s)
    except KafkaException as error:
        raise ConfigError(f"cannot read {name} at {settings.broker}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _lines(consumer: Consumer, topic: Topic, to_json: Callable[[bytes], bytes], limit: int | None, idle_s: float | None) -> Iterator[str]:
    printed, last_s = 0, time.monotonic()
    while idle_s is None or time.monotonic() - last_s < idle_s:
        message = consumer.poll(POLL_S)
        if message is None:
            continue
        if (error := message.error()) is not None:
            raise KafkaException(error)
        last_s = time.monotonic()
        for line in _rows(topic, to_json, message.partition() or 0, message.offset() or 0, message.value() or b""):
            yield json.dumps(line, ensure_ascii=False)
            printed += 1
            if printed == limit:
                return


def _rows(topic: Topic, to_json: Callable[[bytes], bytes], partition: int, offset: int, value: bytes) -> Iterator[dict[str, Any]]:
    where = {"partition": partition, "offset": offset}
    try:
        if topic.format == "json":
            yield where | {"value": msgspec.json.decode(to_json(value))}
            return
        batch, watermark_ms = decode_batch(value, topic.name)
    except (*UNREADABLE, WrongBatchError) as error:
        yield where | {"error": str(error), "bytes": base64.b64encode(value[:1024]).decode()}
        return
    for number, row in enumerate(batch.to_pylist()):
        yield where | {"row": number, "watermark_ms": watermark_ms, "value": {key: _readable(cell) for key, cell in row.items()}}


def _readable(cell: Any) -> Any:
    """A cell as JSON: unopened messages opened, numbers that JSON does not have as text."""
    if isinstance(cell, bytes):
        try:
            return msgspec.json.decode(cell)
        except UNREADABLE:
            return base64.b64encode(cell).decode()
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell
