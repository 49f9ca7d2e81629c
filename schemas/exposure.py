"""An exposure: one page of items that was shown to a user, with everything the policy knew when it chose the action."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

Id = Annotated[str, Meta(min_length=1, max_length=256)]
TimestampMs = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
"""Milliseconds since the Unix epoch, up to the year 9999."""
ModelVersion = Annotated[str, Meta(max_length=256)]
"""Empty where no version was served. Bounded as ids are: in a batch each row of a page holds it."""
Bucket = Annotated[str, Meta(max_length=64)]
Position = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Propensity = Annotated[float, Meta(gt=0.0)]
"""Of an action: its probability density under the policy that chose it."""
SpecHash = Annotated[str, Meta(max_length=64)]
"""Of the action and feature specification that a page was served with; empty where nothing is known of it."""
FeatureValue = float | str | list[str | float]
"""A number, an id or code, a list of ids (newest last), or a vector of numbers: the feature specification says which it is."""
StateValue = FeatureValue | dict[str, Any]
"""What a state holds by key: such a value, or an object of them, into which features reach by paths (state_path.py)."""

BASELINE = "baseline"
"""The `policy` of traffic that no policy touched: it teaches the encoder and V, never an actor."""


class ExposedItem(Struct, forbid_unknown_fields=True, frozen=True):
    """One item of a page: where it stood and the ranker's predictions for it, by objective."""

    item_id: Id
    position: Position
    scores: dict[str, float] = {}
    features: dict[str, FeatureValue] = {}


class Exposure(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One shown page, keyed by `user_id`.

    `action` has the length and order of the action specification; `propensity` is the probability density of that action
    under the policy that chose it (1.0 where the choice was deterministic). `state` holds the features exactly as served, `spec_hash`
    names the specification that they were served with: a trainer of another one refuses the page. `bucket` is the user's place in the
    traffic split, where there is one.
    """

    version: Literal[1] = 1
    request_id: Id
    user_id: Id
    ts_ms: TimestampMs
    scene: str = ""
    policy: Id = BASELINE
    model_version: ModelVersion = ""
    state: Mapping[str, StateValue]
    action: list[float]
    propensity: Propensity = 1.0
    spec_hash: SpecHash = ""
    bucket: Bucket = ""
    items: Annotated[list[ExposedItem], Meta(min_length=1, max_length=10_000)]


class ItemKey(Struct, forbid_unknown_fields=True, gc=False):
    """What the joiner opens of an item; the rest stays as bytes. Holds no cycles: the collector need not look."""

    item_id: Id
    position: Position
    scores: Raw = Raw(b"{}")
    features: Raw = Raw(b"{}")


class ExposureKey(Struct, forbid_unknown_fields=True, gc=False):
    """What the joiner opens of an exposure: the join keys and the arm. Same fields as `Exposure`, the heavy ones unopened."""

    request_id: Id
    user_id: Id
    ts_ms: TimestampMs
    state: Raw
    action: Raw
    items: Annotated[list[ItemKey], Meta(min_length=1, max_length=10_000)]
    version: Literal[1] = 1
    scene: Raw = Raw(b'""')
    policy: Id = BASELINE
    model_version: ModelVersion = ""
    propensity: Raw = Raw(b"1.0")
    spec_hash: Raw = Raw(b'""')
    bucket: Raw = Raw(b'""')


class ServedState(Struct):
    """What the trainer opens of an exposure: the state, the action, how likely that action was, and what it was served with."""

    state: dict[str, StateValue]
    action: list[float]
    propensity: Propensity = 1.0
    spec_hash: SpecHash = ""


class ServedArm(Struct, gc=False):
    """What the experience collector opens of an exposure: the experiment's bucket, and how likely the action was."""

    propensity: Propensity = 1.0
    bucket: Bucket = ""


EXAMPLE = Exposure(
    request_id="r-7",
    user_id="u-42",
    ts_ms=1_700_000_000_000,
    scene="home",
    policy="fusion",
    model_version="fusion-000012",
    state={"hour": 13.0, "city": "hz", "recent_items": ["i-3", "i-9"]},
    action=[1.1],
    propensity=0.8,
    bucket="17",
    items=[ExposedItem(item_id="i-3", position=0, scores={"click": 0.21, "pay": 0.02})],
)

encode_exposure = msgspec.json.Encoder().encode
