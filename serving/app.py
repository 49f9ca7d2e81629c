"""Puts the API together: routes, error bodies, life cycle."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Protocol

from anyio import to_thread
from fastapi import FastAPI, Request, Response

from headrace import __version__
from headrace.policy_settings import PolicySettings
from schemas.event_format import EventFormat
from serving import openapi
from serving.api import Api, RefusedError, json_response
from serving.messages import Problem
from serving.metrics import ServingMetrics
from serving.observe import Observed
from serving.publisher import Producer
from serving.settings import ServingSettings
from serving.swap import ServedVersion
from serving.user_state.reader import ReadsUserState

log = logging.getLogger(__name__)

ROUTES = ("/v1/act", "/v1/rank", "/v1/features", "/v1/events", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")
_DESCRIPTION = 'Actions, ranked pages and event intake. Every error has the body {"detail": "…"}.'


class Follower(Protocol):
    """Whatever follows something from a thread of its own: new versions, or the user state."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def create_app(
    settings: ServingSettings,
    policy: PolicySettings,
    versions: ServedVersion,
    producer: Producer,
    metrics: ServingMetrics,
    follower: Follower | None = None,
    now_ms: Callable[[], int] = wall_clock_ms,
    formats: Mapping[str, EventFormat] = MappingProxyType({}),
    user_state: ReadsUserState | None = None,
) -> FastAPI:
    """The application. It starts and stops the producer, the versions' load thread and the follower with its own life.

    `formats` are those of the topics whose messages are not JSON, `user_state` what is remembered of users, if anything is.
    """
    api = Api(settings, policy, versions, producer, metrics, now_ms, formats, user_state)

    readers: list[Follower] = [reader for reader in (user_state, follower) if reader is not None]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        producer.start()
        versions.start()
        for reader in readers:
            reader.start()
        yield
        for reader in readers:
            await to_thread.run_sync(reader.stop)
        await to_thread.run_sync(versions.stop)
        left = await to_thread.run_sync(producer.stop, settings.shutdown_timeout_s)
        if left:
            log.error("stopped with %d events that the broker did not take: %s", left, producer.trouble() or "it is too slow")

    app = FastAPI(title="Headrace serving", version=__version__, description=_DESCRIPTION, lifespan=lifespan, redoc_url=None)
    app.post("/v1/act", openapi_extra=openapi.ACT, response_class=Response)(api.act)
    app.post("/v1/rank", openapi_extra=openapi.RANK, response_class=Response)(api.rank)
    app.post("/v1/features", openapi_extra=openapi.FEATURES, response_class=Response)(api.features)
    app.post("/v1/events", openapi_extra=openapi.EVENTS, response_class=Response, status_code=202)(api.events)
    app.get("/healthz", response_class=Response)(api.health)
    app.get("/readyz", response_class=Response)(api.ready)
    app.get("/metrics", response_class=Response)(api.prometheus)
    app.exception_handler(RefusedError)(_refuse)
    app.exception_handler(Exception)(_fault)
    app.add_middleware(Observed, metrics=metrics, routes=ROUTES)
    openapi.describe(app)
    return app


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response


async def _fault(_: Request, error: Exception) -> Response:
    """A fault of ours: the traceback is in the log (the server writes it), the client gets no internals."""
    return json_response(Problem(f"internal error: {type(error).__name__}"), 500)
