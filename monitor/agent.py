"""The monitor's agents: everything between the services in; a report, metrics and alerts out."""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

import faust
from aiokafka.errors import KafkaError

from headrace.app import add_stage, create_app
from headrace.producer import StreamProducer
from headrace.settings import StreamSettings
from monitor.metrics import MonitorMetrics
from monitor.report import build_report
from monitor.rules import RejectedShare
from monitor.settings import MonitorSettings
from monitor.tally import PartitionTally
from monitor.webhook import Webhook
from monitor.window import merged
from schemas.alert import Alert
from schemas.codec import encode_json
from schemas.topics import ALERTS, DEAD_LETTERS, POLICIES, SAMPLES, TRANSITIONS

log = logging.getLogger(__name__)

RULES_INTERVAL_S = 1.0


def create(stream_settings: StreamSettings, settings: MonitorSettings, web_port: int) -> faust.App:
    """The monitor's application."""
    app = create_app("monitor", stream_settings, web_port)

    def tally(partition: int, stored: Iterable[tuple[bytes, bytes]]) -> PartitionTally:
        return PartitionTally(settings, partition, stored)

    stage = add_stage(app, "monitor", stream_settings, tally, [SAMPLES, TRANSITIONS, POLICIES, DEAD_LETTERS])

    def tallies() -> list[PartitionTally]:
        return [partition.step for partition in stage.partitions.values() if isinstance(partition.step, PartitionTally)]

    webhook = Webhook(settings)
    rule = RejectedShare(settings)
    producer = StreamProducer(stream_settings.broker)
    stage.metrics.registry.register(MonitorMetrics(settings, tallies, rule, webhook))

    unsent: list[Alert] = []

    @app.timer(interval=RULES_INTERVAL_S)
    async def judge_rules() -> None:
        for alert in rule.observe(merged([step.window.buckets for step in tallies()]), int(time.time() * 1000)):
            webhook.post(alert)
            unsent.append(alert)
        try:
            while unsent:
                await producer.send(0, [(ALERTS, unsent[0].rule.encode(), encode_json(unsent[0]))])
                del unsent[0]
        except KafkaError as error:
            log.warning("alerts wait for the broker: %r", error)

    @app.page("/report")
    async def report(web: Any, _request: Any) -> Any:
        return web.json(build_report(tallies()))

    @app.on_before_shutdown.connect
    async def _stop(*_: Any, **__: Any) -> None:
        await asyncio.to_thread(webhook.close)
        await producer.stop()

    return app
