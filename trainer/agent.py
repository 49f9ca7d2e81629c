"""The trainer's agent: transitions in; checkpoints, and candidates for the version controller, out."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import faust
from faust.types import TP

from headrace import __version__
from headrace.app import add_metrics_page, create_app, records_of
from headrace.embedding_files import embedding_folder
from headrace.metrics import StageMetrics
from headrace.policy_settings import PolicySettings
from headrace.producer import StreamProducer
from headrace.settings import StreamSettings
from headrace.stage import stop_at_once
from headrace.stall import STALL_LOOKS, StallWatch
from headrace.step import Count, Record
from headrace.topic_ids import topic_ids
from schemas.codec import WrongBatchError, decode_batch, encode_json
from schemas.dead_letter import DeadLetter
from schemas.topics import DEAD_LETTERS, TRANSITIONS
from trainer.embedding_deltas import EmbeddingDeltas
from trainer.settings import TrainerSettings
from trainer.worker import Worker

log = logging.getLogger(__name__)

TIMER_S = 1.0


class Training:
    """Drives the worker: one thing at a time, off the event loop, so that Faust's pages and heartbeats go on."""

    def __init__(
        self, app: faust.App, worker: Worker, producer: StreamProducer, topic_ids: Callable[[Collection[str]], Mapping[str, str]]
    ) -> None:
        self.worker = worker
        self.metrics = StageMetrics("trainer", self._looks)
        self._app = app
        self._producer = producer
        self._topic_ids = topic_ids
        policy = worker.policy
        self._deltas = EmbeddingDeltas(embedding_folder(policy.model_dir, policy.policy, policy.spec_hash), worker.embeddings)
        self._deltas_due_s = 0.0
        self._watch = StallWatch()
        self._lock = asyncio.Lock()
        self._assigned: frozenset[int] = frozenset()
        self._lag_s: dict[int, float] = {}

    async def on_revoked(self) -> None:
        """Finish the message in hand; nothing more is learned until the next assignment."""
        self._assigned = frozenset()
        async with self._lock:
            pass

    async def on_assigned(self, committed: Mapping[TP, int | None]) -> dict[TP, int]:
        """Read on from the checkpoint, which is never behind the commits that it allowed."""
        try:
            for topic_id in (await asyncio.to_thread(self._topic_ids, [TRANSITIONS])).values() if committed else ():
                self.worker.belongs_to(topic_id)
        except Exception as error:
            stop_at_once(error)
        self._assigned = frozenset(tp.partition for tp in committed)
        self._lag_s = dict.fromkeys(self._assigned, 0.0)
        return {tp: self.worker.offsets[tp.partition] for tp in committed if tp.partition in self.worker.offsets}

    async def on_batch(self, event: Any) -> None:
        """Learn from one delivered batch of record batches."""
        tp = event.message.tp
        async with self._lock:
            if event.message.generation_id != self._app.consumer.generation:
                return  # it waited while the group rebalanced: it is read again
            try:
                for record in event.value:
                    if tp.partition in self._assigned and record.offset >= self.worker.offsets.get(tp.partition, 0):
                        await self._learn(tp.partition, record)
                self._lag_s[tp.partition] = max(0.0, time.time() - event.value[-1].arrival_ms / 1000)
            except Exception as error:
                stop_at_once(error)

    async def _learn(self, partition: int, record: Record) -> None:
        try:
            batch, _ = decode_batch(record.value, TRANSITIONS)
        except WrongBatchError as error:
            letters = [self.worker.refuse(partition, record.offset, len(record.value), str(error), _now_ms())]
        else:
            letters = (await asyncio.to_thread(self.worker.learn, partition, record.offset + 1, batch, _now_ms())).dead_letters
        await self._publish(partition, letters)

    async def _publish(self, partition: int, letters: list[DeadLetter]) -> None:
        if letters:
            await self._producer.send(partition, [(DEAD_LETTERS, letter.stage.encode(), encode_json(letter)) for letter in letters])

    async def on_timer(self) -> None:
        """Write what is due. Offsets are committed only once they are in a checkpoint."""
        async with self._lock:
            try:
                if self.worker.embeddings.tables and time.monotonic() >= self._deltas_due_s:
                    await asyncio.to_thread(self._deltas.write)
                    self._deltas_due_s = time.monotonic() + self.worker.settings.embedding_publish_interval_s
                if self.worker.candidate_due(_now_ms()):
                    path = await asyncio.to_thread(self.worker.write_candidate, _now_ms())
                    if path is not None:
                        log.info("candidate %s", path.name)
                if self.worker.checkpoint_due(_now_ms()):
                    await asyncio.to_thread(self.worker.checkpoint, _now_ms())
                    for partition, offset in self.worker.offsets.items():
                        if partition in self._assigned:
                            self._app.consumer.commit_at(TP(TRANSITIONS, partition), offset)
            except Exception as error:
                stop_at_once(error)

    async def on_watch(self) -> None:
        """End the process where nothing is heard of the group, or of a partition: nothing learned, nor that nothing waits."""
        consumer = self._app.consumer
        signs = {
            f"{TRANSITIONS} {partition}": (self.worker.offsets.get(partition), consumer.caught_up_at_s(TP(TRANSITIONS, partition)))
            for partition in self._assigned
        }
        fault = self._watch.fault("trainer", signs, consumer.heard_s())
        if fault is not None:
            stop_at_once(fault)

    def _looks(self) -> dict[int, tuple[Counter[Count], dict[str, float]]]:
        looks: dict[int, tuple[Counter[Count], dict[str, float]]] = {
            partition: (Counter(), {"lag_seconds": lag_s}) for partition, lag_s in self._lag_s.items()
        }
        first = min(self._lag_s, default=0)  # one learner for all partitions: its figures appear once
        looks[first] = (self.worker.counts, {**self.worker.gauges(), "lag_seconds": self._lag_s.get(first, 0.0)})
        return looks


def _now_ms() -> int:
    return int(time.time() * 1000)


def create(stream_settings: StreamSettings, settings: TrainerSettings, policy: PolicySettings, web_port: int) -> faust.App:
    """The trainer's application."""
    app = create_app("trainer", stream_settings, web_port)
    producer = StreamProducer(stream_settings.broker)
    worker = Worker(settings, policy, stream_settings.state_dir, __version__, settings.seed)
    training = Training(app, worker, producer, partial(topic_ids, stream_settings.broker))
    app.transport.owner, app.transport.records = training, records_of
    add_metrics_page(app, training.metrics)

    @app.agent(app.topic(TRANSITIONS))
    async def on_transitions(stream: Any) -> None:
        async for event in stream.events():
            await training.on_batch(event)

    @app.timer(interval=TIMER_S)
    async def on_timer() -> None:
        await training.on_timer()

    @app.timer(interval=stream_settings.stall_timeout_s / STALL_LOOKS)
    async def on_watch() -> None:
        await training.on_watch()

    @app.on_before_shutdown.connect
    async def _stop(*_: Any, **__: Any) -> None:
        await producer.stop()

    return app
