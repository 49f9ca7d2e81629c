"""Train/serve equality: what serving computes for random states beside what the trainer computes for the same states, as messages."""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
import numpy as np

from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError
from schemas.exposure import FeatureValue, StateValue
from schemas.features import (
    BinarySequenceFeature,
    DenseFeature,
    FeatureSpec,
    IdFeature,
    MultiIdFeature,
    SequenceFeature,
    VectorFeature,
)
from schemas.message_reader import MessageReader
from schemas.state_columns import rows_input
from serving.actor import read_candidate
from serving.messages import FeaturesResponse
from trainer.zscore import ZscoreConstants

TOLERANCE = 1e-6
COMPARED_STATES = 10_000
TIMEOUT_S = 30.0
_LETTERS = np.array([*string.ascii_letters, *string.digits, "-", "é", "中", '"', "\\", " ", ","])

_decode_answer = msgspec.json.Decoder(FeaturesResponse).decode
State = dict[str, StateValue]
Ask = Callable[[Sequence[State]], FeaturesResponse]


class Comparison(NamedTuple):
    """The largest distance of each tensor, over all states; infinite where shapes differ, or what is missing.

    `model_version` is the one served.
    """

    model_version: str
    states: int
    distances: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether no number is further off than the tolerance."""
        return all(distance <= TOLERANCE for distance in self.distances.values())


def asked_over_http(address: str) -> Ask:
    """`POST /v1/features` of a running API. Raises ConnectionError where none answers, ConfigError where it has another specification."""

    def ask(states: Sequence[State]) -> FeaturesResponse:
        request = Request(f"{address}/v1/features", msgspec.json.encode({"states": states}))
        try:
            with urlopen(request, timeout=TIMEOUT_S) as answer:
                return _decode_answer(answer.read())
        except HTTPError as error:
            with error:
                raise ConfigError(f"serving at {address} refuses states of this specification: {error.read().decode()[:200]}") from error
        except OSError as error:
            raise ConnectionError(f"nothing answers at {address}") from error

    return ask


def random_states(spec: FeatureSpec, count: int, rng: np.random.Generator) -> list[State]:
    """States with every kind of value that the specification takes: small and large numbers, odd characters, empty, long, missing."""
    features = list(spec.read())
    makes = {feature.key: feature for feature in features}
    ids = _ids(rng)
    states: list[State] = []
    for _ in range(count):
        present = rng.random(len(makes)) < 0.9
        state: State = {}
        for (key, feature), is_there in zip(makes.items(), present, strict=True):
            if is_there:
                _put(state, key, _value(feature, ids, rng))
        states.append(state)
    return states


def _put(state: State, key: str, value: FeatureValue) -> None:
    *objects, last = key.split(".")
    within: dict[str, Any] = state
    for name in objects:
        within = within.setdefault(name, {})
    within[last] = value


def _value(feature: Any, ids: list[str], rng: np.random.Generator) -> FeatureValue:
    match feature:
        case DenseFeature():
            return float(rng.normal() * 10.0 ** rng.integers(-3, 7))
        case IdFeature():
            return ids[rng.integers(len(ids))]
        case MultiIdFeature() | SequenceFeature():
            return [ids[place] for place in rng.integers(len(ids), size=rng.integers(0, feature.length + 3))]
        case BinarySequenceFeature():
            return "".join(map(str, rng.integers(0, feature.digits, len(feature.windows))))
        case VectorFeature():
            return [float(number) for number in rng.normal(size=feature.size)]
    raise AssertionError(feature)


def _ids(rng: np.random.Generator) -> list[str]:
    odd = ["".join(rng.choice(_LETTERS, int(rng.integers(0, 12)))) for _ in range(1000)]
    return [*odd, *(f"i-{number}" for number in range(1000))]


def compare(policy: PolicySettings, ask: Ask, states: int, seed: int, at_once: int = 500) -> Comparison:
    """Ask serving about random states, and the trainer's reader about the messages that would log them.

    The normaliser is that of the version that serving answers with, as its candidate holds it. Of dynamic tables the keys are compared,
    not the rows, which are learned on meanwhile. Raises ConfigError where the model store does not have that version.
    """
    rng = np.random.default_rng(seed)
    reader = MessageReader(policy.features)
    rows = {rows_input(feature.name) for feature in policy.features.dynamic}
    distances: dict[str, float] = {entry.name: 0.0 for entry in policy.features.inputs() if entry.name not in rows}
    version = ""
    for _ in range(0, states, at_once):
        asked = random_states(policy.features, at_once, rng)
        answer = ask(asked)
        if answer.spec_hash != policy.spec_hash:
            raise ConfigError(f"serving has specification {answer.spec_hash}, these settings have {policy.spec_hash}")
        version = answer.model_version
        columns = reader.read([msgspec.json.encode({"state": state, "action": []}) for state in asked]).states
        expected = columns.inputs()
        if version and policy.features.normalised:
            distances.setdefault("normalised", 0.0)
            expected = {**expected, "normalised": _normalise(policy, version)(columns.dense)}
        served = {**answer.inputs, "normalised": answer.normalised}
        for name, largest in distances.items():
            distances[name] = max(largest, _distance(served.get(name, []), expected[name]))
    return Comparison(version, states, distances)


def _normalise(policy: PolicySettings, model_version: str) -> ZscoreConstants:
    normaliser = read_candidate(policy.model_dir / policy.policy / "candidates" / model_version).normaliser
    if normaliser is None:
        raise ConfigError(f"{model_version} does not say how it normalises: an earlier Headrace made it")
    return ZscoreConstants(np.array(normaliser.mean), np.array(normaliser.std), normaliser.clip)


def _distance(served: Any, expected: Any) -> float:
    served = np.array(served, np.float64)  # null becomes NaN
    if served.shape != expected.shape or (np.isnan(served) != np.isnan(expected)).any():
        return float("inf")
    return float(np.nan_to_num(np.abs(served - expected), posinf=np.inf).max(initial=0.0))  # missing in both is no distance
