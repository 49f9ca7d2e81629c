"""Runs the API: one uvicorn worker that stops gracefully. Scale out with replicas; each holds its own copy of the version."""

import math
import signal
from collections.abc import Mapping
from types import MappingProxyType

import uvicorn

from headrace.embedding_files import embedding_folder
from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError, StreamSettings
from schemas.event_format import EventFormat
from serving.app import create_app
from serving.embeddings import ServedEmbeddings
from serving.exploration import Exploration
from serving.follow import PolicyFollower
from serving.metrics import ServingMetrics
from serving.port import listen
from serving.publisher import KafkaProducer
from serving.settings import ServingSettings
from serving.swap import ServedVersion
from serving.user_state.features import StoredFeatures
from serving.user_state.reader import ReadsUserState, UserStateReader
from serving.user_state.redis_reader import RedisUserStateReader
from serving.user_state.settings import UserStateSettings
from serving.user_state.step import STAGE, redis_name


def run(
    settings: ServingSettings,
    policy: PolicySettings,
    stream: StreamSettings,
    formats: Mapping[str, EventFormat] = MappingProxyType({}),
    user_state: UserStateSettings | None = None,
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
    reader = _user_state(user_state, policy, stream, metrics) if user_state is not None and user_state.serve else None
    folder = embedding_folder(policy.model_dir, policy.policy, policy.spec_hash)
    embeddings = ServedEmbeddings(policy.features, folder, settings.embedding_poll_interval_s, metrics)
    versions = ServedVersion(policy, settings.warm_up_requests, metrics, embeddings)

    def on_delivery(topic: str, error: str) -> None:
        metrics.deliveries.labels(topic, error or "delivered").inc()

    with listen(settings.host, settings.port) as listener:
        producer = KafkaProducer(stream.broker, settings, on_delivery)
        follower = PolicyFollower(stream.broker, policy.policy, versions.offer, metrics.swap_failures.labels("malformed").inc)
        app = create_app(settings, policy, versions, producer, metrics, follower, formats=formats, user_state=reader)
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


def _user_state(settings: UserStateSettings, policy: PolicySettings, stream: StreamSettings, metrics: ServingMetrics) -> ReadsUserState:
    try:
        features = StoredFeatures(policy.features, settings.kinds, settings.recent_items, settings.horizon_ms)
    except ValueError as error:
        raise ConfigError(f"setting policy.features: {error}") from error
    if not features.keys:
        kinds = ", ".join(settings.kinds)
        raise ConfigError(f"setting user_state.serve: no feature of [policy.features] is made of the kinds {kinds} (docs/features.md)")

    def count(outcome: str) -> None:
        metrics.user_state_reads.labels(outcome).inc()

    if settings.redis:
        name = redis_name(stream.group_prefix)
        return RedisUserStateReader(settings.redis, name, stream.partitions, features, settings.redis_timeout_ms, count)
    return UserStateReader(stream.state_dir / STAGE, stream.partitions, features, settings.refresh_ms, count)
