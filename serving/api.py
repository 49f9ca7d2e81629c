"""The HTTP API: decode, decide, log, answer. Everything that a request waits for happens here, on the event loop, in microseconds."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import msgspec
from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from headrace.policy_settings import PolicySettings
from schemas.codec import UNREADABLE
from schemas.drift import DenseReference
from schemas.event_format import EventFormat
from schemas.exposure import BASELINE, ExposedItem, Exposure, FeatureValue, StateValue
from schemas.features import WrongStateError
from schemas.topics import EXPOSURES
from serving.decision import ActorFault, Decider, Decision
from serving.drift import DenseWindow, DriftMetrics
from serving.events import Kind, check
from serving.exploration import Exploration
from serving.fusion import WrongScoresError, rank
from serving.messages import (
    Accepted,
    ActRequest,
    ActResponse,
    EventsResponse,
    FeaturesRequest,
    FeaturesResponse,
    Problem,
    RankedItem,
    RankRequest,
    RankResponse,
    RejectedEvent,
    UnopenedEvents,
)
from serving.metrics import ServingMetrics
from serving.publisher import Producer, QueueFullError
from serving.settings import ServingSettings
from serving.swap import ServedVersion

log = logging.getLogger(__name__)

_DRAIN_FACTOR = 8
"""A body that is too large is read on and thrown away up to so many times the limit: closing at once loses the 413 on its way."""

_encode = msgspec.json.Encoder().encode
_decode_act = msgspec.json.Decoder(ActRequest).decode
_decode_rank = msgspec.json.Decoder(RankRequest).decode
_decode_features = msgspec.json.Decoder(FeaturesRequest).decode
_decode_events = msgspec.json.Decoder(UnopenedEvents).decode

T = TypeVar("T")


class RemembersUsers(Protocol):
    """What is remembered of users, as features."""

    def of(self, user_id: str, now_ms: int) -> dict[str, FeatureValue]: ...

    def trouble(self) -> str: ...


class RefusedError(Exception):
    """A request that gets an error response."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.response = json_response(Problem(detail), status, headers)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with this struct as its JSON."""
    return Response(_encode(body), status, headers, "application/json")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The request's body. Raises RefusedError (413) for a larger one, before it is held in memory."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= max_bytes:
                chunks.append(chunk)
            elif size > _DRAIN_FACTOR * max_bytes:
                break
    except ClientDisconnect as error:
        raise RefusedError(400, "the client went away before the end of its body") from error
    if size > max_bytes:
        raise RefusedError(413, f"the body is larger than {max_bytes} bytes (serving.max_body_bytes)")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def opened(decode: Callable[[bytes], T], body: bytes) -> T:
    """The body as a struct. Raises RefusedError: 422 for JSON of the wrong shape, 400 for no JSON."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise RefusedError(422, str(error)) from error
    except UNREADABLE as error:
        raise RefusedError(400, str(error)) from error


class Api:
    """The handlers and what they work with. `now_ms` is the wall clock, `user_state` what is remembered of users."""

    def __init__(
        self,
        settings: ServingSettings,
        policy: PolicySettings,
        versions: ServedVersion,
        producer: Producer,
        metrics: ServingMetrics,
        now_ms: Callable[[], int],
        formats: Mapping[str, EventFormat],
        user_state: RemembersUsers | None,
    ) -> None:
        self._settings = settings
        self._action = policy.action
        self._spec_hash = policy.spec_hash
        self._versions = versions
        self._producer = producer
        self._metrics = metrics
        self._now_ms = now_ms
        self._user_state = user_state
        self._write = {topic: event.from_json for topic, event in formats.items()}
        exploration = Exploration(policy.action, settings.explore_sigma)
        dense = [feature.name for feature in policy.features.normalised]
        window = DenseWindow(settings.drift_window_requests, len(dense))
        metrics.registry.register(DriftMetrics(window, dense, self._reference))
        self._decider = Decider(
            policy.policy, policy.action, policy.features, exploration, settings.baseline_share, settings.split_salt, settings.seed, window
        )
        self._queued = metrics.exposures.labels("queued")
        self._unlogged = metrics.exposures.labels("not_logged")

    def _reference(self) -> DenseReference | None:
        actor = self._versions.served.actor
        return actor.candidate.dense_reference if actor else None

    def _decide(self, request_id: str, request: ActRequest | RankRequest, state: dict[str, StateValue]) -> Decision:
        try:
            decision = self._decider.decide(request_id, request.user_id, state, self._versions.served.actor)
        except WrongStateError as error:
            raise RefusedError(422, str(error)) from error
        if decision.fault:
            self._metrics.actor_faults.inc()
            log.error("request %s is served as %s: %s", request_id, BASELINE, decision.fault)
        return decision

    async def act(self, request: Request) -> Response:
        """An action for this user and state. Nothing is logged: send the exposure, with the answer's fields, to /v1/events or the topic."""
        asked = opened(_decode_act, await read_body(request, self._settings.max_body_bytes))
        request_id = asked.request_id or uuid4().hex
        now_ms = self._now_ms()
        stored = self._user_state.of(asked.user_id, now_ms) if self._user_state else {}
        decision = self._decide(request_id, asked, {**stored, **asked.state})
        return json_response(ActResponse(**self._answer(request_id, asked, decision, stored)))

    def _answer(
        self, request_id: str, asked: ActRequest | RankRequest, decision: Decision, stored: dict[str, FeatureValue]
    ) -> dict[str, Any]:
        """The fields of every answer, and the count of it."""
        self._metrics.answered(decision.policy, decision.model_version)
        return {
            "request_id": request_id,
            "user_id": asked.user_id,
            "policy": decision.policy,
            "model_version": decision.model_version,
            "action": decision.action,
            "propensity": decision.propensity,
            "baseline_action": self._decider.baseline_action,
            "spec_hash": self._spec_hash,
            "stored_state": stored,
        }

    async def rank(self, request: Request) -> Response:
        """The best candidates under this user's action. The page is logged as an exposure; `logged` says whether it could be."""
        asked = opened(_decode_rank, await read_body(request, self._settings.max_body_bytes))
        self._check_limits(asked)
        request_id = asked.request_id or uuid4().hex
        now_ms = self._now_ms()
        stored = self._user_state.of(asked.user_id, now_ms) if self._user_state else {}
        state: dict[str, StateValue] = {**stored, **asked.state}  # what the request says itself is newer
        decision = self._decide(request_id, asked, state)
        item_ids = [candidate.item_id for candidate in asked.candidates]
        if len(set(item_ids)) != len(item_ids):
            twice = next(item_id for index, item_id in enumerate(item_ids) if item_id in item_ids[:index])
            raise RefusedError(422, f"candidate {twice} is given twice")
        try:
            page = rank(item_ids, [candidate.scores for candidate in asked.candidates], decision.action, self._action, asked.page_size)
        except WrongScoresError as error:
            raise RefusedError(422, str(error)) from error
        logged = self._log(request_id, asked, state, now_ms, decision, [index for index, _ in page])
        items = [RankedItem(item_ids[index], position, score) for position, (index, score) in enumerate(page)]
        return json_response(RankResponse(**self._answer(request_id, asked, decision, stored), items=items, logged=logged))

    def _check_limits(self, asked: RankRequest) -> None:
        if len(asked.candidates) > self._settings.max_candidates:
            raise RefusedError(413, f"{len(asked.candidates)} candidates; at most {self._settings.max_candidates} (serving.max_candidates)")
        if asked.page_size > self._settings.max_page_size:
            raise RefusedError(422, f"page_size {asked.page_size}; at most {self._settings.max_page_size} (serving.max_page_size)")

    def _log(
        self, request_id: str, asked: RankRequest, state: dict[str, StateValue], now_ms: int, decision: Decision, page: list[int]
    ) -> bool:
        """Queue the exposure. A full queue, or a topic that cannot hold it, costs no user the page: it is served, marked and counted."""
        shown = [asked.candidates[index] for index in page]
        exposure = Exposure(
            request_id=request_id,
            user_id=asked.user_id,
            ts_ms=now_ms,
            scene=asked.scene,
            policy=decision.policy,
            model_version=decision.model_version,
            state=state,
            action=decision.action,
            propensity=decision.propensity,
            spec_hash=self._spec_hash,
            bucket=decision.bucket,
            items=[
                ExposedItem(candidate.item_id, position, candidate.scores, candidate.features) for position, candidate in enumerate(shown)
            ],
        )
        try:
            self._producer.send(EXPOSURES, asked.user_id, self._write.get(EXPOSURES, bytes)(_encode(exposure)))
        except (QueueFullError, *UNREADABLE) as error:
            if not isinstance(error, QueueFullError):  # the producer says that itself, once
                log.error("page %s is served and not logged: %s", request_id, error)
            self._unlogged.inc()
            return False
        self._queued.inc()
        return True

    async def features(self, request: Request) -> Response:
        """What the served version makes of these states, as they are: for a comparison with the trainer's (`headrace doctor`)."""
        asked = opened(_decode_features, await read_body(request, self._settings.max_body_bytes))
        actor = self._versions.served.actor
        try:
            columns = self._decider.columns(asked.states)
            normalised = actor.normalised(columns) if actor else None
        except (WrongStateError, ActorFault) as error:
            raise RefusedError(422, str(error)) from error
        return json_response(
            FeaturesResponse(
                spec_hash=self._spec_hash,
                model_version=actor.model_version if actor else "",
                inputs={name: column.tolist() for name, column in columns.inputs().items()},
                normalised=[] if normalised is None else normalised.tolist(),
            )
        )

    async def events(self, request: Request) -> Response:
        """Exposures and feedback for the topics. Each event is checked by itself; a retry of accepted ones does no harm downstream."""
        handed_in = opened(_decode_events, await read_body(request, self._settings.max_body_bytes))
        lists: dict[Kind, list[msgspec.Raw]] = {"exposures": handed_in.exposures, "feedback": handed_in.feedback}
        count = sum(map(len, lists.values()))
        if count > self._settings.max_events:
            raise RefusedError(413, f"{count} events; at most {self._settings.max_events} in one request (serving.max_events)")
        if not count:
            raise RefusedError(422, "no events: give `exposures`, `feedback` or both")
        rejected: list[RejectedEvent] = []
        accepted = dict.fromkeys(lists, 0)
        for kind, events in lists.items():
            checked = check(kind, events, self._settings.max_event_bytes, self._write.get(kind, bytes))
            rejected += checked.rejected
            for reason in checked.reasons:
                self._metrics.events_rejected.labels(kind, reason).inc()
            accepted[kind] = self._send_all(kind, checked.good)
        outcome = EventsResponse(accepted=Accepted(**accepted), rejected=rejected)
        return json_response(outcome, 202 if any(accepted.values()) else 422)

    def _send_all(self, kind: Kind, good: list[tuple[str, bytes]]) -> int:
        for sent, (user_id, value) in enumerate(good):
            try:
                self._producer.send(kind, user_id, value)
            except QueueFullError as error:
                self._metrics.events_accepted.labels(kind).inc(sent)
                raise RefusedError(503, f"the queue is full, send all of them again later: {error}", self._retry_after()) from error
        self._metrics.events_accepted.labels(kind).inc(len(good))
        return len(good)

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self._settings.retry_after_s)}

    async def health(self) -> Response:
        """200 while the process answers."""
        return json_response({"status": "ok"})

    async def ready(self) -> Response:
        """200 where the version is settled, broker and user state answer, else 503 with the reason. Act and rank answer in either case."""
        trouble = self._producer.trouble() or self._versions.trouble() or (self._user_state.trouble() if self._user_state else "")
        if trouble:
            return json_response(Problem(trouble), 503, self._retry_after())
        return json_response({"status": "ready", "model_version": self._versions.served.model_version})

    async def prometheus(self) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)
