"""Makes the Faust application of a service, and binds a stage to it."""

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import faust

from headrace.instance import claim, knows_named_members, member_name
from headrace.metrics import StageMetrics
from headrace.producer import StreamProducer
from headrace.settings import StreamSettings
from headrace.stage import TICK_S, Stage
from headrace.stall import STALL_LOOKS
from headrace.step import MakeStep, Record
from headrace.topic_ids import topic_ids
from headrace.transport import BatchTopic

WEB_PORTS = {"joiner": 6066, "experience": 6067, "trainer": 6068, "monitor": 6069, "controller": 6070, "sink": 6071, "user-state": 6072}
"""Where each worker's pages are, unless it is told otherwise."""


def create_app(name: str, settings: StreamSettings, web_port: int) -> faust.App:
    """A Faust application whose agents get batches; its consumer group is <prefix>-<name>.

    Raises ConfigError where another worker has its state folder, it cannot be written, or no broker answers.
    """
    instance = claim(settings.state_dir / name)
    return faust.App(
        f"{settings.group_prefix}-{name}",
        broker=[f"headrace://{host}" for host in settings.broker.split(",")],
        store="memory://",
        datadir=str(settings.state_dir / name / "faust"),
        Topic=BatchTopic,
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication_factor,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_host=settings.web_host,
        web_bind=settings.web_host,
        web_port=web_port,
        web_stats_enabled=True,
        stream_buffer_maxsize=16,
        stream_wait_empty=False,
        broker_max_poll_records=5000,
        consumer_max_fetch_size=settings.fetch_max_bytes,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=member_name(instance, settings.web_host, web_port) if knows_named_members(settings.broker) else None,
        broker_session_timeout=settings.session_timeout_s,
        broker_rebalance_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.heartbeat_interval_s,
        broker_request_timeout=max(20.0, settings.session_timeout_s + 5),
        broker_commit_interval=1.0,
    )


def add_stage(app: faust.App, name: str, settings: StreamSettings, make_step: MakeStep, topics: Collection[str]) -> Stage:
    """A stage whose partitions follow the application's assignment, with an agent a topic that hands it the batches."""
    producer = StreamProducer(settings.broker)
    stage = Stage(name, settings.state_dir, make_step, producer, lambda: app.consumer, partial(topic_ids, settings.broker))
    app.transport.owner, app.transport.records = stage, records_of

    async def _on_batches(stream: Any) -> None:
        async for event in stream.events():
            await stage.on_batch(event)

    for topic in topics:
        app.agent(app.topic(topic), name=f"{name}.{topic}")(_on_batches)

    @app.timer(interval=TICK_S, name=f"{name}.tick")
    async def _tick() -> None:
        await stage.on_tick()

    @app.timer(interval=settings.stall_timeout_s / STALL_LOOKS, name=f"{name}.watch")
    async def _watch() -> None:
        await stage.on_watch()

    add_metrics_page(app, stage.metrics)

    @app.on_before_shutdown.connect
    async def _stop(*_: Any, **__: Any) -> None:
        await stage.stop()
        await producer.stop()

    return stage


def records_of(parsed: Iterable[Any]) -> list[Record]:
    """The records of a batch. A NamedTuple's own constructor is Python: this one takes half the time."""
    make = tuple.__new__
    return [make(Record, (record.offset, record.timestamp, record.value or b"")) for record in parsed]


def add_metrics_page(app: faust.App, metrics: StageMetrics) -> None:
    """`/metrics` beside Faust's own pages."""

    @app.page("/metrics")
    async def _metrics(web: Any, _request: Any) -> Any:
        return web.bytes(metrics.render(), content_type="text/plain")
