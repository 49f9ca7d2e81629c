"""A version of a policy: the candidate that a trainer writes, and the announcement that the version controller makes of it."""

from typing import Any, Literal

from msgspec import Struct

from schemas.drift import DenseReference

ARRIVAL_BIN_MS = 100


class Lineage(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a version was made from: enough to make it again."""

    offsets: dict[str, int]
    """Next offset of each `transitions` partition: everything below it was learned from."""
    seed: int
    code_version: str
    transitions_learned: int
    learned_from: dict[str, int] = {}
    """Transitions learned from, by the model version that served them."""


class Normaliser(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The Z-score's constants as a version was trained with them."""

    mean: list[float]
    std: list[float]
    clip: float


class Candidate(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`candidate.json` beside `actor.onnx`: what the gate judges.

    `arrivals_ms` counts the feedback that this version is the first to have learned from, in bins of 100 ms of its arrival at
    the broker ({bin start: feedback count}): freshness is measured from it. `golden` is one input row of each tensor and the
    action that the trainer computed for it (null: missing): whoever loads the model must get the same. `features` is the feature
    specification that it was made with, `normaliser` what its graph does to the columns `dense`: z = clip((x - mean) / std), 0 where x is
    missing. `dense_reference` is what these columns looked like in training: drift is measured from it.
    """

    version: Literal[1] = 1
    policy: str
    model_version: str
    created_ms: int
    spec_hash: str
    features: dict[str, Any] = {}
    normaliser: Normaliser | None = None
    metrics: dict[str, float]
    lineage: Lineage
    arrivals_ms: dict[str, int] = {}
    golden_inputs: dict[str, list[list[float | None]]] = {}
    golden_action: list[float] = []
    dense_reference: DenseReference | None = None


class PolicyVersion(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A promoted version, keyed by `policy` in a compacted topic: the newest record of a policy is what serving must serve.

    `reason` says how it came to be served: `promoted` by the gate, `rolled_back` to, or `pinned` by a person. An empty
    `model_version` means: serve the baseline action.
    """

    version: Literal[1] = 1
    policy: str
    model_version: str
    uri: str
    spec_hash: str
    reason: Literal["promoted", "rolled_back", "pinned"]
    announced_ms: int
    metrics: dict[str, float]
    lineage: Lineage
    arrivals_ms: dict[str, int] = {}


EXAMPLE_LINEAGE = Lineage(
    offsets={"0": 120, "1": 98}, seed=7, code_version="0.1.0", transitions_learned=5400, learned_from={"": 5000, "fusion-000011": 400}
)
CANDIDATE_EXAMPLE = Candidate(
    policy="fusion",
    model_version="fusion-000012",
    created_ms=1_700_000_030_000,
    spec_hash="4b1c0d",
    features={"dense": [{"name": "hour"}]},
    normaliser=Normaliser(mean=[13.1], std=[5.2], clip=5.0),
    metrics={"v_mean": 3.1, "a_mean": 0.1, "policy_advantage_mean": 0.1, "random_advantage_mean": -0.4},
    lineage=EXAMPLE_LINEAGE,
    arrivals_ms={"1700000001500": 3},
    golden_inputs={"dense": [[0.5, 1.0]]},
    golden_action=[1.07],
)
EXAMPLE = PolicyVersion(
    policy="fusion",
    model_version="fusion-000012",
    uri="file:///var/headrace/models/fusion/fusion-000012",
    spec_hash="4b1c0d",
    reason="promoted",
    announced_ms=1_700_000_031_000,
    metrics=CANDIDATE_EXAMPLE.metrics,
    lineage=EXAMPLE_LINEAGE,
    arrivals_ms=CANDIDATE_EXAMPLE.arrivals_ms,
)
