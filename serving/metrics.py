"""Prometheus metrics of the serving API, in a registry of their own."""

import time
from collections import OrderedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_VERSIONS_SHOWN = 50
"""Labels by version are dropped from the oldest on: a day of promotions is thousands of versions."""


class ServingMetrics:
    """What /metrics shows. Methods are cheap enough for every request."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("headrace_serving_requests", "Requests by route and status", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "headrace_serving_latency_seconds",
            "From the request's head to the response's end",
            ["route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.exposures = Counter(
            "headrace_serving_exposures", "Exposures of ranked pages: queued, or not logged (queue full)", ["outcome"], registry=registry
        )
        self.deliveries = Counter(
            "headrace_serving_deliveries",
            "Events by topic that the broker took, or that were lost",
            ["topic", "outcome"],
            registry=registry,
        )
        self.events_accepted = Counter("headrace_serving_events_accepted", "Events taken by /v1/events", ["kind"], registry=registry)
        self.events_rejected = Counter(
            "headrace_serving_events_rejected", "Events refused by /v1/events", ["kind", "reason"], registry=registry
        )
        self.user_state_reads = Counter(
            "headrace_serving_user_state_reads",
            "Reads of the user state: hit, miss (a user who is not known), unavailable (no store of the partition on this machine)",
            ["outcome"],
            registry=registry,
        )
        self.decisions = Counter("headrace_serving_decisions", "Actions given, by arm", ["policy"], registry=registry)
        self.actor_faults = Counter(
            "headrace_serving_actor_faults", "Requests served as baseline because the actor gave no finite action", registry=registry
        )
        self.version = Gauge(
            "headrace_serving_version_info", "1 for the version that is served", ["policy", "model_version"], registry=registry
        )
        self.swaps = Counter("headrace_serving_swaps", "Versions swapped in", registry=registry)
        self.swap_failures = Counter(
            "headrace_serving_swap_failures", "Versions that could not be served, by reason", ["reason"], registry=registry
        )
        self.swap_time = Gauge(
            "headrace_serving_swap_timestamp_seconds", "When the version was swapped in", ["model_version"], registry=registry
        )
        self.embedding_rows = Gauge("headrace_serving_embedding_rows", "Rows of dynamic tables that serving has", registry=registry)
        self.embedding_time = Gauge(
            "headrace_serving_embedding_timestamp_seconds", "When the trainer wrote the newest rows that serving has", registry=registry
        )
        self.embedding_failures = Counter(
            "headrace_serving_embedding_failures", "Polls for new rows that failed and are tried again", registry=registry
        )
        self.load_s = Histogram("headrace_serving_load_seconds", "Loading, checking and warming up a version", registry=registry)
        self.first_response = Gauge(
            "headrace_serving_first_response_timestamp_seconds",
            "When the version first answered a request",
            ["model_version"],
            registry=registry,
        )
        self._shown: tuple[str, str] | None = None
        self._first_responses: OrderedDict[str, float] = OrderedDict()
        self._swaps_shown: OrderedDict[str, None] = OrderedDict()

    def serving(self, model_version: str, policy: str) -> None:
        """Make this the version that the info gauge names."""
        if self._shown is not None:
            self.version.remove(*self._shown)
        self._shown = (policy, model_version)
        self.version.labels(*self._shown).set(1)

    def swapped(self, model_version: str, policy: str, load_s: float) -> None:
        """A version was swapped in after `load_s` seconds of loading."""
        self.serving(model_version, policy)
        self.swaps.inc()
        self.load_s.observe(load_s)
        self.swap_time.labels(model_version).set(time.time())
        self._swaps_shown[model_version] = None
        self._swaps_shown.move_to_end(model_version)
        if len(self._swaps_shown) > _VERSIONS_SHOWN:
            self.swap_time.remove(self._swaps_shown.popitem(last=False)[0])

    def answered(self, policy: str, model_version: str) -> None:
        """A request was given an action by this arm and version."""
        self.decisions.labels(policy).inc()
        if model_version and model_version not in self._first_responses:
            self._first_responses[model_version] = time.time()
            self.first_response.labels(model_version).set(self._first_responses[model_version])
            if len(self._first_responses) > _VERSIONS_SHOWN:
                self.first_response.remove(self._first_responses.popitem(last=False)[0])
