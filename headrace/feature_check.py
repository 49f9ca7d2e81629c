"""`headrace features check`: what a log's states hold of each feature of a specification, and what that means for the model."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.runner import CHUNK_EVENTS
from schemas.codec import UNREADABLE, decode_served_state
from schemas.features import (
    BinarySequenceFeature,
    CrossFeature,
    DenseFeature,
    FeatureSpec,
    IdFeature,
    ListedFeature,
    MultiIdFeature,
    SequenceFeature,
    VectorFeature,
    WrongStateError,
)
from schemas.id_hash import crcs, rows_of
from schemas.state_path import State, is_there, value_at
from schemas.state_reader import StateReader

Floats = npt.NDArray[np.float64]

HISTOGRAM_BINS = 40
RANKS = 10_000
"""Of the most frequent ids, in the picture's curve."""
SKEWED = 5.0
"""Skewness from which a few values rule a Z-score: that of an exponential distribution is 2."""
CROWDED = 0.5
"""Share of ids that share their row with others from which a table is called too small."""


class FeatureCheck:
    """Gathers states and measures every feature. Memory: each number, and each distinct id."""

    def __init__(self, spec: FeatureSpec) -> None:
        self._spec = spec
        self._states = 0
        self._unreadable = 0
        self._keys: Counter[str] = Counter()
        self._numbers: dict[str, list[Floats]] = {}
        """By feature: its numbers, or the lengths of its lists or vectors."""
        self._values: dict[str, Counter[str]] = {}
        """By feature: how often each id was there."""
        self._present: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()
        self._example: dict[str, str] = {}
        self._crossed: dict[str, set[int]] = {feature.name: set() for feature in spec.crosses}
        self._of_one = {feature.name: StateReader(_alone(feature)) for feature in spec.read()}
        self._reader = StateReader(spec)

    def add(self, messages: Iterable[bytes]) -> None:
        """Look into more exposures."""
        messages = iter(messages)
        while chunk := list(islice(messages, CHUNK_EVENTS)):
            states = list(self._opened(chunk))
            self._states += len(states)
            self._keys.update(key for state in states for key in state)
            for feature in self._spec.read():
                self._look(feature, [state for state in states if is_there(state, feature.key)])
            self._cross(states)

    def _opened(self, messages: Sequence[bytes]) -> Iterator[State]:
        for message in messages:
            try:
                yield decode_served_state(message).state
            except UNREADABLE:
                self._unreadable += 1

    def _look(self, feature: Any, states: list[State]) -> None:
        self._present[feature.name] += len(states)
        reader = self._of_one[feature.name]
        try:
            reader.columns(states)
        except WrongStateError:
            states = [state for state in states if self._is_right(feature.name, reader, state)]
        values: list[Any] = [value_at(state, feature.key) for state in states]
        match feature:
            case DenseFeature():
                self._keep(feature.name, values)
            case IdFeature() | BinarySequenceFeature():
                self._values.setdefault(feature.name, Counter()).update(values)
            case MultiIdFeature() | SequenceFeature():
                self._keep(feature.name, map(len, values))
                self._values.setdefault(feature.name, Counter()).update(item for items in values for item in items if isinstance(item, str))
            case VectorFeature():
                self._keep(feature.name, (float(np.linalg.norm(vector)) for vector in values))

    def _is_right(self, name: str, reader: StateReader, state: State) -> bool:
        why = _why_wrong(reader, state)
        if why is not None:
            self._wrong[name] += 1
            self._example.setdefault(name, why)
        return why is None

    def _keep(self, name: str, numbers: Iterable[float]) -> None:
        self._numbers.setdefault(name, []).append(np.fromiter(numbers, np.float64))

    def _cross(self, states: list[State]) -> None:
        if not self._crossed:
            return
        try:
            rows = self._reader.columns(states).ids
        except WrongStateError:  # which ones, is said of the feature itself
            rows = self._reader.columns([state for state in states if _why_wrong(self._reader, state) is None]).ids
        first = len(self._spec.tables) - len(self._spec.crosses)
        for place, feature in enumerate(self._spec.crosses, first):
            self._crossed[feature.name].update(np.unique(rows[:, place]).tolist())

    def report(self) -> dict[str, Any]:
        """Every figure of every feature; `problems` are what a model would suffer from."""
        features = [self._measured(feature) for feature in self._spec.features()]
        read = {feature.key.partition(".")[0] for feature in self._spec.read()}
        return {
            "states": self._states,
            "unreadable": self._unreadable,
            "features": features,
            "not_read": {key: count / self._states for key, count in self._keys.most_common() if key not in read},
        }

    def _measured(self, feature: Any) -> dict[str, Any]:
        kind = _KINDS[type(feature)]
        if isinstance(feature, CrossFeature):
            used = len(self._crossed[feature.name] - {0})
            return {"name": feature.name, "kind": kind, "rows_used": used, "rows": feature.buckets, "problems": []}
        made: dict[str, Any] = {
            "name": feature.name,
            "kind": kind,
            "key": feature.key,
            "coverage": self._present[feature.name] / self._states if self._states else 0.0,
            "wrong": self._wrong[feature.name],
        }
        chunks = self._numbers.get(feature.name, [])
        numbers = np.concatenate(chunks) if chunks else np.empty(0)
        values = self._values.get(feature.name, Counter())
        match feature:
            case DenseFeature():
                made |= _of_numbers(numbers)
            case VectorFeature():
                made |= {f"length_{name}": value for name, value in _of_numbers(numbers).items()}
            case BinarySequenceFeature():
                made |= _of_values(values) | {"codes": feature.rows - 1}
            case IdFeature():
                made |= _of_values(values) | {"shared_rows": _shared_rows(values, feature)}
            case MultiIdFeature() | SequenceFeature():
                made |= _of_values(values) | {"shared_rows": _shared_rows(values, feature)}
                made |= {"ids_p50": _quantile(numbers, 50), "ids_p95": _quantile(numbers, 95)}
                made |= {"cut": float((numbers > feature.length).mean()) if len(numbers) else None}
        return made | {"problems": list(_problems(made, feature, self._example.get(feature.name, "")))}


def _why_wrong(reader: StateReader, state: State) -> str | None:
    try:
        reader.columns([state])
    except WrongStateError as error:
        return str(error)
    return None


def _alone(feature: Any) -> FeatureSpec:
    return FeatureSpec.model_validate({_KINDS[type(feature)]: [feature]})


_KINDS: dict[type, str] = {
    DenseFeature: "dense",
    IdFeature: "ids",
    MultiIdFeature: "multi_ids",
    SequenceFeature: "sequences",
    BinarySequenceFeature: "binary_sequences",
    CrossFeature: "crosses",
    VectorFeature: "vectors",
}


def _quantile(numbers: Floats, percent: float) -> float | None:
    return float(np.percentile(numbers, percent)) if len(numbers) else None


def _of_numbers(numbers: Floats) -> dict[str, Any]:
    """Range, moments, and the histogram between the 0.5 and the 99.5 percentile; what lies beyond is in the outermost bins."""
    if not len(numbers):
        return {"min": None, "p01": None, "p50": None, "p99": None, "max": None, "mean": None, "std": None, "skewness": None, "zeros": None}
    mean, std = float(numbers.mean()), float(numbers.std())
    low, high = (float(edge) for edge in np.percentile(numbers, (0.5, 99.5)))
    high = high if high > low else low + 1.0
    counts, _ = np.histogram(np.clip(numbers, low, high), HISTOGRAM_BINS, (low, high))
    return {
        "min": float(numbers.min()),
        **{f"p{percent:02d}": _quantile(numbers, percent) for percent in (1, 50, 99)},
        "max": float(numbers.max()),
        "mean": mean,
        "std": std,
        "skewness": float((((numbers - mean) / std) ** 3).mean()) if std > 0 else 0.0,
        "zeros": float((numbers == 0.0).mean()),
        "histogram": {"low": low, "high": high, "counts": counts.tolist()},
    }


def _of_values(values: Counter[str]) -> dict[str, Any]:
    """Cardinality, and how uneven ids are: the share of the most frequent one, of the most frequent hundredth, and by rank."""
    counts = np.array(sorted(values.values(), reverse=True), np.float64)
    total = counts.sum()
    if not total:
        return {"distinct": 0, "top": None, "top_share": None, "top_hundredth_share": None, "shares_by_rank": []}
    return {
        "distinct": len(counts),
        "top": max(values, key=values.__getitem__),
        "top_share": float(counts[0] / total),
        "top_hundredth_share": float(counts[: max(1, len(counts) // 100)].sum() / total),
        "shares_by_rank": (counts[:RANKS] / total).tolist(),
    }


def _shared_rows(values: Counter[str], feature: ListedFeature) -> float | None:
    """Share of the distinct ids that have their row of the table with another one."""
    ids = [value for value in values if value]
    if not ids:
        return None
    if feature.is_dynamic:
        return 0.0
    _, places, users = np.unique(rows_of(crcs(ids, len(ids)), feature.buckets), return_inverse=True, return_counts=True)
    return float((users[places] > 1).mean())


def _problems(made: dict[str, Any], feature: Any, example: str) -> Iterator[str]:
    if made["wrong"]:
        yield f"{made['wrong']:,} states are refused: {example}"
    if not made["coverage"]:
        yield "no state has it"
    elif made.get("std") == 0.0:
        yield "it is always the same number"
    elif made.get("distinct") == 1:
        yield "it is always the same id"
    if abs(made.get("skewness") or 0.0) > SKEWED and feature.normalisation == "zscore":
        yield 'a few values rule its Z-score: consider normalisation = "log_zscore"'
    if (made.get("shared_rows") or 0.0) > CROWDED:
        yield f"{made['shared_rows']:.0%} of its ids share a row: consider more buckets than {feature.buckets:,}"


def has_faults(report: dict[str, Any]) -> bool:
    """Whether a feature is refused somewhere, or there nowhere."""
    return any(feature.get("wrong") or feature.get("coverage") == 0 for feature in report["features"])
