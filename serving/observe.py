"""Counts and times every request. Plain ASGI: Starlette's middleware class costs more than a decision does."""

import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import ServingMetrics


class Observed:
    """The application, with `requests` by route and status and `latency` by route. Unknown paths share one label."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics, routes: Iterable[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._latency = {route: metrics.latency.labels(route) for route in (*routes, "other")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._latency else "other"
        started_s = time.perf_counter()
        status = 500  # a crash before the response's head

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            self._latency[route].observe(time.perf_counter() - started_s)
            self._metrics.requests.labels(route, status).inc()
