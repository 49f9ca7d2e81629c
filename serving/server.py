"""Runs the API: one uvicorn worker that stops gracefully. Scale out with replicas; each holds its own copy of the version."""

import math
import signal
from collections.abc import Mapping
from types import MappingProxyType

import uvicorn

from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError, StreamSettings
from schemas.event_format import EventFormat
from serving.app import create_app
from serving.exploration import Exploration
from serving.follow import PolicyFollower
from serving.metrics import ServingMetrics
from serving.port import listen
from serving.publisher import KafkaProducer
from serving.settings import ServingSettings
from serving.swap import ServedVersion


def run(
    settings: ServingSettings, policy: PolicySettings, stream: StreamSettings, formats: Mapping[str, EventFormat] = MappingProxyType({})
) -> None:
    """Serve until SIGINT or SIGTERM: then finish the open requests, send what is queued, and return.

    `formats` are those of the topics whose messages are not JSON. Raises ConfigError where the address cannot be had, or the noise has
    no density. No broker is needed to start: /readyz says that it is missing.
    """
    try:
        Exploration(policy.action, settings.explore_sigma)
    except ValueError as error:
        raise ConfigError(f"setting serving.{error}") from error
    metrics = ServingMetrics()
    versions = ServedVersion(policy, settings.warm_up_requests, metrics)

    def on_delivery(topic: str, error: str) -> None:
        metrics.deliveries.labels(topic, error or "delivered").inc()

    with listen(settings.host, settings.port) as listener:
        producer = KafkaProducer(stream.broker, settings, on_delivery)
        follower = PolicyFollower(stream.broker, policy.policy, versions.offer, metrics.swap_failures.labels("malformed").inc)
        app = create_app(settings, policy, versions, producer, metrics, follower, formats=formats)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s),
            server_header=False,
        )
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: None)  # uvicorn takes them over, and raises them once more after a graceful stop
        uvicorn.Server(config).run(sockets=[listener])
