"""What travels over HTTP. Bodies are decoded into these in one pass; unknown fields, wrong types and NaN are refused there."""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from schemas.exposure import Exposure, FeatureValue, Id, StateValue
from schemas.feedback import Feedback

Scene = Annotated[str, Meta(max_length=256)]


class ActRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Asks for an action. A request without `request_id` is given one; the same id gets the same exploration noise."""

    request_id: Id | None = None
    user_id: Id
    scene: Scene = ""
    state: dict[str, StateValue]


class RankCandidate(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One item that could be shown: the ranker's predictions by objective, and what should be logged with it."""

    item_id: Id
    scores: dict[str, float]
    features: dict[str, FeatureValue] = {}


class RankRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Asks for the best `page_size` of the candidates, in order."""

    request_id: Id | None = None
    user_id: Id
    scene: Scene = ""
    state: dict[str, StateValue]
    candidates: Annotated[list[RankCandidate], Meta(min_length=1, max_length=10_000)]
    page_size: Annotated[int, Meta(ge=1, le=10_000)] = 10


class ActResponse(Struct, frozen=True, kw_only=True):
    """The action, and what must be logged with it: send these fields on in the exposure, `stored_state` as part of its state."""

    request_id: str
    user_id: str
    policy: str
    model_version: str
    action: list[float]
    propensity: float
    baseline_action: list[float]
    spec_hash: str
    stored_state: dict[str, FeatureValue] = {}


class RankedItem(Struct, frozen=True):
    """One item of the page."""

    item_id: str
    position: int
    score: float


class RankResponse(ActResponse, frozen=True, kw_only=True):
    """The action and the page. `logged` is false where the exposure could not be queued for the broker: do not send feedback on it."""

    items: list[RankedItem]
    logged: bool


class EventsRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Exposures and feedback of clients that have no access to the broker; the objects are those of the topics."""

    exposures: list[Exposure] = []
    feedback: list[Feedback] = []


class FeaturesRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Asks what the served version makes of states."""

    states: Annotated[list[dict[str, StateValue]], Meta(min_length=1, max_length=10_000)]


class FeaturesResponse(Struct, frozen=True, kw_only=True):
    """The graph's inputs by name (null: missing), and `normalised`, what it makes of the input `dense`: empty before the first version."""

    spec_hash: str
    model_version: str
    inputs: dict[str, list[list[float | None]]]
    normalised: list[list[float]]


class UnopenedEvents(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """EventsRequest as it is decoded: every event is checked by itself and travels on as the bytes that came."""

    exposures: list[Raw] = []
    feedback: list[Raw] = []


class Accepted(Struct, frozen=True, kw_only=True):
    """How many events were handed to the producer."""

    exposures: int
    feedback: int


class RejectedEvent(Struct, frozen=True):
    """An event that was refused: `index` counts from 0 within its list."""

    kind: Literal["exposures", "feedback"]
    index: int
    error: str


class EventsResponse(Struct, frozen=True, kw_only=True):
    """What became of the events."""

    accepted: Accepted
    rejected: list[RejectedEvent]


class Problem(Struct, frozen=True):
    """The body of every error."""

    detail: str


ACT_EXAMPLE = {
    "request_id": "r-7",
    "user_id": "u-42",
    "scene": "home",
    "state": {"hour": 13.0, "city": "hz", "recent_items": ["i-3", "i-9"]},
}
RANK_EXAMPLE = {
    **ACT_EXAMPLE,
    "candidates": [
        {"item_id": "i-3", "scores": {"click": 0.21, "pay": 0.02}, "features": {"price": 9.9}},
        {"item_id": "i-5", "scores": {"click": 0.18, "pay": 0.05}},
    ],
    "page_size": 2,
}
ACT_RESPONSE_EXAMPLE = {
    "request_id": "r-7",
    "user_id": "u-42",
    "policy": "fusion",
    "model_version": "fusion-000012",
    "action": [1.1],
    "propensity": 3.4,
    "baseline_action": [1.0],
    "spec_hash": "9bd1c9230512ed4a",
    "stored_state": {},
}
RANK_RESPONSE_EXAMPLE = {
    **ACT_RESPONSE_EXAMPLE,
    "items": [{"item_id": "i-5", "position": 0, "score": 0.0067}, {"item_id": "i-3", "position": 1, "score": 0.0028}],
    "logged": True,
}
FEATURES_RESPONSE_EXAMPLE = {
    "spec_hash": "9bd1c9230512ed4a",
    "model_version": "fusion-000012",
    "inputs": {"dense": [[13.0]], "ids": [[771]], "seq_recent_items": [[0, 0, 1522, 3611]]},
    "normalised": [[0.12]],
}
EVENTS_RESPONSE_EXAMPLE = {
    "accepted": {"exposures": 1, "feedback": 0},
    "rejected": [{"kind": "feedback", "index": 0, "error": "Object missing required field `event_id`"}],
}
