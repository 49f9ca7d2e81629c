"""Sends a stage's messages to the partition that it works on, and waits until the broker has them."""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from schemas.topics import MAX_EVENT_BYTES


class StreamProducer:
    """An aiokafka producer with acks=all; batches are large already, so it does not linger."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def send(self, partition: int, messages: Sequence[tuple[str, bytes | None, bytes]]) -> None:
        """Send (topic, key, value) messages and return when all are acknowledged. Raises KafkaError where one is not."""
        producer = self._producer or await self._connect()
        acknowledgements = [await producer.send(topic, value, key=key, partition=partition) for topic, key, value in messages]
        await asyncio.gather(*acknowledgements)

    async def _connect(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._broker,
                    acks="all",
                    max_request_size=MAX_EVENT_BYTES,
                    max_batch_size=1 << 20,
                    request_timeout_ms=20_000,
                )
                await producer.start()
                self._producer = producer
            return self._producer

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()
