"""The version controller: judges what the trainer writes, promotes what is good, and announces what is current.

One `step` is: recover the store, judge the new candidates, announce. The store changes first and the announcement follows, because only
the store can be read back: a controller killed at any point finds, at its next start, a current version that nobody may have heard of,
and announces it (again). Announcements are idempotent: serving ignores one that is not newer than what it serves.
"""

import logging
import threading
import time

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError
from schemas.policy import PolicyVersion
from serving.actor import ActorError, load_actor, read_candidate
from serving.announcer import AnnounceError, Announcer
from serving.controller_settings import ControllerSettings
from serving.decision import ActorFault
from serving.gate import Requirements, Verdict, judge, judge_papers
from serving.port import explain
from serving.probe import probe
from serving.versions import ModelStore, StoreError

log = logging.getLogger(__name__)


class ControllerMetrics:
    """What the controller's /metrics shows."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.judged = Counter("headrace_controller_judged", "Candidates judged, by verdict", ["verdict"], registry=registry)
        self.announced = Counter(
            "headrace_controller_announced", "Announcements that the broker took, by reason", ["reason"], registry=registry
        )
        self.failures = Counter(
            "headrace_controller_failures", "Steps that failed and are tried again, by what failed", ["what"], registry=registry
        )
        self.pruned = Counter("headrace_controller_pruned", "Old candidates deleted", registry=registry)
        self.judge_s = Histogram("headrace_controller_judge_seconds", "Loading, warming up and judging one candidate", registry=registry)
        self.current = Gauge("headrace_controller_current_version", "Number of the current version; -1 is the baseline", registry=registry)
        self.pinned = Gauge("headrace_controller_pinned", "1 while a person holds the version", registry=registry)


class Controller:
    """Runs the gate over the candidates of one policy. Only one controller a policy may run; people may use the store beside it."""

    def __init__(
        self,
        settings: ControllerSettings,
        policy: PolicySettings,
        store: ModelStore,
        announcer: Announcer,
        metrics: ControllerMetrics,
        seed: int = 0,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._store = store
        self._announcer = announcer
        self._metrics = metrics
        self._seed = seed
        self._required = Requirements(policy.action, policy.spec_hash, settings.min_transitions, settings.confidence_z)
        self._announced: tuple[str, int] | None = None
        self._announced_at_s = float("-inf")

    def step(self, now_ms: int, monotonic_s: float) -> None:
        """Judge what is new, announce what is current. Raises StoreError and AnnounceError; the next step does what is left."""
        self._store.recover()
        pinned = self._store.pinned()
        self._metrics.pinned.set(pinned)
        if not pinned:
            self._judge_new(now_ms)
        current = self._store.current()
        if current is not None:
            self._announce(current, monotonic_s)
        self._metrics.pruned.inc(len(self._store.prune(self._settings.keep_candidates, now_ms)))

    def _judge_new(self, now_ms: int) -> None:
        """Newest first: once one is promoted, the older ones are refused for being older."""
        for model_version in reversed(self._store.candidates()):
            if self._store.judgement(model_version) is not None:
                continue
            started_s = time.perf_counter()
            verdict = self._judge(model_version)
            self._metrics.judge_s.observe(time.perf_counter() - started_s)
            self._metrics.judged.labels("promoted" if verdict.promote else "refused").inc()
            if verdict.promote:
                self._store.promote(model_version, verdict.reasons, now_ms)
                log.info("promoted %s: %s", model_version, "; ".join(verdict.reasons))
            else:
                self._store.refuse(model_version, verdict.reasons, now_ms)
                log.warning("refused %s: %s", model_version, "; ".join(verdict.reasons))

    def _judge(self, model_version: str) -> Verdict:
        folder, standing = self._store.candidate_folder(model_version), self._store.standing()
        try:
            candidate = read_candidate(folder)
            if (candidate.policy, candidate.model_version) != (self._policy.policy, model_version):
                return Verdict(False, [f"candidate.json says that it is {candidate.model_version} of policy {candidate.policy}"])
            against = judge_papers(candidate, self._required, standing)
            if against:
                return Verdict(False, against)
            actor = load_actor(folder, self._policy, self._settings.warm_up_requests)
        except ActorError as error:
            return Verdict(False, [str(error)])
        try:
            probed = probe(actor, self._policy.features, self._settings.probe_rows, np.random.default_rng(self._seed))
        except ActorFault as fault:
            return Verdict(False, [f"fails on a generated state: {fault}"])
        return judge(candidate, probed, self._required, standing)

    def _announce(self, current: PolicyVersion, monotonic_s: float) -> None:
        identity = (current.model_version, current.announced_ms)
        if identity == self._announced and monotonic_s - self._announced_at_s < self._settings.reannounce_s:
            return
        self._announcer.announce(current)
        self._announced, self._announced_at_s = identity, monotonic_s
        self._metrics.announced.labels(current.reason).inc()
        self._metrics.current.set(int(current.model_version.rpartition("-")[2] or -1))

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set. What fails is logged and counted once a kind of failure in a row, and tried again."""
        failing = ""
        while not stop.is_set():
            try:
                self.step(time.time_ns() // 1_000_000, time.monotonic())
                failing = ""
            except (StoreError, AnnounceError) as error:
                self._metrics.failures.labels("store" if isinstance(error, StoreError) else "announce").inc()
                if str(error) != failing:
                    log.error("%s; trying again every %g s", error, self._settings.poll_interval_s)
                failing = str(error)
            stop.wait(self._settings.poll_interval_s)


def serve_metrics(settings: ControllerSettings, metrics: ControllerMetrics) -> int:
    """Serve the controller's /metrics from a thread; returns the port. Raises ConfigError where the port cannot be had."""
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    except OSError as error:
        raise ConfigError(
            explain(error, settings.metrics_host, settings.metrics_port, "controller.metrics_port", "controller.metrics_host")
        ) from error
    return int(server.server_port)
