"""States -> the encoder's columns, where states are mappings: a request that is served, or a row of a log."""

import math
from array import array
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from schemas.exposure import FeatureValue, StateValue
from schemas.features import BinarySequenceFeature, DenseFeature, FeatureSpec, IdFeature, ListFeature, VectorFeature, WrongStateError
from schemas.id_hash import MISSING, Ints, crcs, keys
from schemas.raw_columns import FLOAT32_MAX, ColumnMaker, Floats, IdLists, RawColumns, UnboundedError, lists_of_one
from schemas.state_columns import StateColumns
from schemas.state_path import NoObjectError, State, flat, is_path, value_at


class StateReader:
    """Reads states by one specification."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._maker = ColumnMaker(spec)
        self._paths = frozenset(feature.key for feature in spec.read() if is_path(feature.key))
        self._numbers = _Cells(spec.dense, [feature.default for feature in spec.dense])
        self._ids = _Cells(spec.ids, [feature.default for feature in spec.ids])
        self._keyed_ids = [place for place, feature in enumerate(spec.ids) if feature.is_dynamic]
        self._codes = [Codes(feature) for feature in spec.binary_sequences]

    def columns(self, states: Sequence[State]) -> StateColumns:
        """The columns of `states`. Raises WrongStateError at the first feature with a value of the wrong type."""
        spec, count = self.spec, len(states)
        try:
            states = [flat(state, self._paths) for state in states] if self._paths else states
            # an array of doubles takes no strings; numpy would parse them
            dense = np.asarray(array("d", self._numbers(states))).reshape(count, len(spec.dense))
            texts = self._ids(states)
            ids = crcs(texts, len(texts)).reshape(count, len(spec.ids))
            codes = np.array([[codes[state.get(codes.feature.key, "")] for codes in self._codes] for state in states], np.int64)  # type: ignore[index]
            lists = [_lists(feature, states) for feature in spec.lists]
            lists += [lists_of_one(keys(texts[place :: len(spec.ids)], count)) for place in self._keyed_ids]
            vectors = [_vectors(feature, states) for feature in spec.vectors]
            return self._maker.columns(RawColumns(dense, ids, codes.reshape(count, len(self._codes)), lists, vectors))
        except (TypeError, OverflowError, UnboundedError):
            for state in states:
                self._check(state)
            raise

    def _check(self, state: State) -> None:
        """Name what is wrong with a state: looked at one by one only where a batch has a wrong one."""
        for feature in self.spec.read():
            try:
                value_at(state, feature.key)
            except NoObjectError as error:
                raise WrongStateError(f"feature {feature.name}: {error}") from error
        state = flat(state, self._paths)
        for number in self.spec.dense:
            value = state.get(number.key, number.default)
            is_missing = math.isnan(number.default) and isinstance(value, float) and math.isnan(value)
            if not is_missing and not _is_bounded(value):
                raise WrongStateError(f"feature {number.name}: expected a finite number, got {value!r:.80}")
        for category in self.spec.ids:
            _check_id(category.name, state.get(category.key, ""))
        for sequence in self.spec.lists:
            ids = state.get(sequence.key, [])
            if not isinstance(ids, list):
                raise WrongStateError(f"feature {sequence.name}: expected a list of strings, got {ids!r:.80}")
            for value in ids[-sequence.length :]:
                _check_id(sequence.name, value)
        for habit in self.spec.binary_sequences:
            _check_id(habit.name, state.get(habit.key, ""))
        for vector in self.spec.vectors:
            numbers = state.get(vector.key, [])
            if not isinstance(numbers, list) or not all(map(_is_bounded, numbers)):
                raise WrongStateError(f"feature {vector.name}: expected a list of finite numbers, got {numbers!r:.80}")


class Codes(dict[str, int]):
    """The number of each code of a binary sequence; MISSING for none. Raises WrongStateError for what is no code."""

    def __init__(self, feature: BinarySequenceFeature) -> None:
        super().__init__({"": MISSING})
        self.feature = feature
        self._allowed = frozenset("0123456789"[: feature.digits])

    def __missing__(self, code: Any) -> int:
        feature = self.feature
        if not isinstance(code, str):
            raise TypeError(code)
        if len(code) != len(feature.windows) or not self._allowed.issuperset(code):
            expected = f"{len(feature.windows)} digits below {feature.digits}, one a window"
            raise WrongStateError(f"feature {feature.name}: expected {expected}, got {code!r:.80}")
        number = self[code] = int(code, feature.digits)
        return number


class _Cells:
    """The values of some features of every state, one state after the other. Most states have all: one call a state then."""

    def __init__(self, features: Sequence[DenseFeature | IdFeature], defaults: Sequence[FeatureValue]) -> None:
        self._named = [(feature.key, default) for feature, default in zip(features, defaults, strict=True)]
        # an itemgetter of one name gives no tuple
        self._values_of = itemgetter(*(name for name, _ in self._named)) if len(self._named) > 1 else None

    def __call__(self, states: Sequence[State]) -> list[Any]:
        if self._values_of is None:
            return [state.get(name, default) for state in states for name, default in self._named]
        cells: list[Any] = []
        for state in states:
            try:
                cells += self._values_of(state)
            except KeyError:
                cells += [state.get(name, default) for name, default in self._named]
        return cells


def _lists(feature: ListFeature, states: Sequence[State]) -> IdLists:
    lists: list[Any] = [state.get(feature.key, feature.default) for state in states]
    if not all(isinstance(ids, list | tuple) for ids in lists):
        raise TypeError(feature.name)
    newest = [ids[-feature.length :] for ids in lists]
    lengths: Ints = np.fromiter(map(len, newest), np.int64, len(newest))
    number = keys if feature.is_dynamic else crcs
    return IdLists(number(chain.from_iterable(newest), int(lengths.sum())), lengths)


def _vectors(feature: VectorFeature, states: Sequence[State]) -> Floats:
    vectors = np.zeros((len(states), feature.size))
    for row, state in enumerate(states):
        numbers: Any = state.get(feature.key)
        if numbers is not None:
            vectors[row] = _vector(feature, numbers)
    return vectors


def _vector(feature: VectorFeature, numbers: Any) -> Any:
    if not isinstance(numbers, list):
        raise TypeError(feature.name)
    if len(numbers) != feature.size:
        raise WrongStateError(f"feature {feature.name}: expected {feature.size} numbers, got {len(numbers)}")
    return array("d", numbers)


def _is_bounded(value: Any) -> bool:
    return isinstance(value, float | int) and -FLOAT32_MAX <= value <= FLOAT32_MAX


def _check_id(name: str, value: StateValue) -> None:
    if not isinstance(value, str):
        raise WrongStateError(f"feature {name}: expected a string, got {value!r:.80}")
