"""How simulated users reach Headrace: requests to the API that are repeated while it is away, and events by either way."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import aiohttp
import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.outbox import Event, Outbox
from headrace.simulate_settings import SimulateSettings
from schemas.topics import EXPOSURES, FEEDBACK, MAX_EVENT_BYTES

log = logging.getLogger(__name__)

Way = Literal["topic", "api"]
MAX_BACKOFF_S = 2.0
PRODUCE_INTERVAL_S = 0.02
SENT_AT_ONCE = 500
"""Events of one request to /v1/events, or of one turn of the producer, at most."""

_encode = msgspec.json.Encoder().encode


class _Collected(msgspec.Struct):
    """What is read of an answer of /v1/events."""

    rejected: list[dict[str, Any]]


_decode_collected = msgspec.json.Decoder(_Collected).decode


class Api:
    """The serving API, which may be away for a while: `post` repeats. Failures are counted in `errors`."""

    def __init__(self, http: aiohttp.ClientSession, backoff_s: float, errors: Counter[str]) -> None:
        self._http, self._backoff_s, self._errors = http, backoff_s, errors

    async def post(self, path: str, body: bytes, given_up: Callable[[], bool]) -> bytes | None:
        """The answer. None where the API refuses the request (4xx), or does not answer and `given_up` says to leave it."""
        backoff_s = self._backoff_s
        while True:
            try:
                async with self._http.post(path, data=body, headers={"Content-Type": "application/json"}) as response:
                    answer = await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                log.info("%s: %s", path, error or type(error).__name__)
            else:
                if response.status < 400:
                    return answer
                if response.status < 500 and response.status != 429:
                    self._errors["refused"] += 1
                    log.warning("%s answered %d: %.300s", path, response.status, answer.decode(errors="replace"))
                    return None
            self._errors["unavailable"] += 1
            if given_up():
                return None
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


class EventSender:
    """Sends events when they are due, straight to their topic or in batches through /v1/events, until `close`."""

    def __init__(self, settings: SimulateSettings, broker: str, api: Api, errors: Counter[str]) -> None:
        self._settings, self._api, self._errors = settings, api, errors
        self._outboxes: dict[Way, Outbox] = {"topic": Outbox(), "api": Outbox()}
        self._closing = False
        self._deadline_s = float("inf")
        self._producer = Producer(
            {
                "bootstrap.servers": broker,
                "partitioner": "murmur2_random",  # as the Java clients, so that a user's events meet on one partition
                "acks": "all",
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.max.bytes": MAX_EVENT_BYTES,
                "on_delivery": self._delivered,
                "error_cb": lambda error: log.warning("broker: %s", error.str()),
            },
            logger=log,
        )

    def send(self, way: Way, event: Event, due_ms: float) -> None:
        """Send an event at `due_ms` (Unix time), or when the sender closes."""
        self._outboxes[way].add(event, due_ms)

    def close(self) -> None:
        """Send what is left now: both senders end when it is done, or after the shutdown time-out."""
        self._closing = True
        self._deadline_s = time.monotonic() + self._settings.shutdown_timeout_s

    async def produce(self) -> None:
        """Take events to the topics until closed, then wait for the broker to have them."""
        outbox = self._outboxes["topic"]
        while not self._closing or outbox:
            for event in self._due(outbox):
                try:
                    self._producer.produce(event.topic, event.value, event.key)
                except (BufferError, KafkaException) as error:
                    self._errors["delivery"] += 1
                    log.warning("an event of %s was not taken: %s", event.topic, error)
            self._producer.poll(0)
            await asyncio.sleep(PRODUCE_INTERVAL_S)
        left = await asyncio.to_thread(self._producer.flush, self._settings.shutdown_timeout_s)
        self._errors["delivery"] += left

    async def collect(self) -> None:
        """Take events to /v1/events until closed."""
        outbox = self._outboxes["api"]
        while not self._closing or outbox:
            if events := self._due(outbox):
                await self._post(events)
            if not self._closing:
                await asyncio.sleep(self._settings.collect_interval_ms / 1000)

    def _due(self, outbox: Outbox) -> list[Event]:
        return outbox.due(float("inf") if self._closing else time.time() * 1000, SENT_AT_ONCE)

    async def _post(self, events: list[Event]) -> None:
        body = {
            "exposures": [msgspec.Raw(event.value) for event in events if event.topic == EXPOSURES],
            "feedback": [msgspec.Raw(event.value) for event in events if event.topic == FEEDBACK],
        }
        answer = await self._api.post("/v1/events", _encode(body), lambda: time.monotonic() > self._deadline_s)
        if answer is None:
            self._errors["delivery"] += len(events)
            return
        rejected = _decode_collected(answer).rejected
        self._errors["rejected"] += len(rejected)
        for refusal in rejected[:3]:
            log.warning("/v1/events refused %s", refusal)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors["delivery"] += 1
            log.warning("an event of %s was not delivered: %s", message.topic(), error.str())
