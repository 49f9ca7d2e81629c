"""The OpenAPI document of the routes, made from the structs that decode and encode the bodies: there is no second description."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from msgspec import Struct

from schemas import exposure, feedback
from serving import messages

_REFERENCE = "#/components/schemas/{name}"
_STRUCTS = (
    messages.ActRequest,
    messages.ActResponse,
    messages.RankRequest,
    messages.RankResponse,
    messages.FeaturesRequest,
    messages.FeaturesResponse,
    messages.EventsRequest,
    messages.EventsResponse,
    messages.Problem,
)
_PROBLEMS = {
    400: "the body is not JSON",
    413: "the body, or a list in it, is too large",
    422: "the JSON is not what the route takes: a missing or unknown field, a wrong type, a feature of the wrong type, a missing score",
    503: "the broker does not take events now; the header Retry-After says when to come back",
}


def _content(struct: type[Struct], example: Any) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=struct.__name__)}, "example": example}}


def _route(
    request: type[Struct], request_example: Any, response: type[Struct], response_example: Any, success: int, statuses: tuple[int, ...]
) -> dict[str, Any]:
    problems = {
        str(status): {"description": _PROBLEMS[status], "content": _content(messages.Problem, {"detail": _PROBLEMS[status]})}
        for status in statuses
    }
    return {
        "requestBody": {"required": True, "content": _content(request, request_example)},
        "responses": {str(success): {"description": "Successful response", "content": _content(response, response_example)}, **problems},
    }


ACT = _route(messages.ActRequest, messages.ACT_EXAMPLE, messages.ActResponse, messages.ACT_RESPONSE_EXAMPLE, 200, (400, 413, 422))
RANK = _route(messages.RankRequest, messages.RANK_EXAMPLE, messages.RankResponse, messages.RANK_RESPONSE_EXAMPLE, 200, (400, 413, 422))
FEATURES = _route(
    messages.FeaturesRequest,
    {"states": [messages.ACT_EXAMPLE["state"]]},
    messages.FeaturesResponse,
    messages.FEATURES_RESPONSE_EXAMPLE,
    200,
    (400, 413, 422),
)
EVENTS = _route(
    messages.EventsRequest,
    {"exposures": [msgspec.to_builtins(exposure.EXAMPLE)], "feedback": [msgspec.to_builtins(feedback.EXAMPLE)]},
    messages.EventsResponse,
    messages.EVENTS_RESPONSE_EXAMPLE,
    202,
    (400, 413, 503),
)
EVENTS["responses"]["422"] = {
    "description": "no event was accepted",
    "content": _content(messages.EventsResponse, messages.EVENTS_RESPONSE_EXAMPLE),
}


def describe(app: FastAPI) -> None:
    """Give the application its document, computed once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, components = msgspec.json.schema_components(_STRUCTS, ref_template=_REFERENCE)
            schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
