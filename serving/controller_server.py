"""Runs the version controller as this process."""

import signal
import threading

from headrace.policy_settings import PolicySettings
from headrace.settings import StreamSettings
from serving.announcer import KafkaAnnouncer
from serving.controller import Controller, ControllerMetrics, serve_metrics
from serving.controller_settings import ControllerSettings
from serving.versions import ModelStore


def run(settings: ControllerSettings, policy: PolicySettings, stream: StreamSettings) -> None:
    """Judge and announce until SIGINT or SIGTERM. Raises ConfigError or StoreError where it cannot start; no broker is needed to."""
    store = ModelStore(policy.model_dir, policy.policy, policy.spec_hash, settings.keep_history)
    store.open()
    metrics = ControllerMetrics()
    serve_metrics(settings, metrics)
    stop = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: stop.set())
    Controller(settings, policy, store, KafkaAnnouncer(stream.broker, settings.announce_timeout_s), metrics).run(stop)
