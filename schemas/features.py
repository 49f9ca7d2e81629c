"""The feature specification: it turns served states into the encoder's input columns, in the trainer and in serving alike."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Literal, Self
from zlib import crc32

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.exposure import FeatureValue

PADDING = 0
"""Row 0 of every embedding table: no id."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class WrongStateError(ValueError):
    """A state whose feature has the wrong type or is not a finite number; the message names the feature."""


class DenseFeature(BaseModel):
    """A number; `default` where a state does not have it. A default of nan: it is missing, no value stands for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1)
    default: float = 0.0


class IdFeature(BaseModel):
    """A category, hashed into `buckets` rows of an embedding table of `dim` columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1)
    buckets: int = Field(1024, ge=2)
    dim: int = Field(8, ge=1)


class SequenceFeature(BaseModel):
    """The newest `length` ids of a list, hashed like an id; shorter lists are padded in front."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1)
    length: int = Field(20, ge=1)
    buckets: int = Field(4096, ge=2)
    dim: int = Field(16, ge=1)


@dataclass(frozen=True)
class StateColumns:
    """B states as columns: dense [B, N] float32 (NaN: missing), ids [B, I] int64, and one int64 [B, T] a sequence."""

    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    sequences: dict[str, npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "StateColumns":
        """Some of the rows."""
        return StateColumns(self.dense[rows], self.ids[rows], {name: ids[rows] for name, ids in self.sequences.items()})


class FeatureSpec(BaseModel):
    """The features of a state, in the order in which the encoder reads them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: tuple[DenseFeature, ...] = ()
    ids: tuple[IdFeature, ...] = ()
    sequences: tuple[SequenceFeature, ...] = ()
    hash: Literal["crc32"] = "crc32"

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [*(f.name for f in self.dense), *(f.name for f in self.ids), *(f.name for f in self.sequences)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"features named twice: {', '.join(twice)}")
        if not names:
            raise ValueError("a feature specification needs at least one feature")
        return self

    def columns(self, states: Sequence[Mapping[str, FeatureValue]]) -> StateColumns:
        """The columns of `states`. Raises WrongStateError at the first feature with a value of the wrong type."""
        try:
            return StateColumns(
                _numbers(self.dense, states),
                _buckets(self.ids, states),
                {feature.name: _sequence(feature, states) for feature in self.sequences},
            )
        except (TypeError, OverflowError, _UnboundedError):
            for state in states:
                self._check(state)
            raise

    def _check(self, state: Mapping[str, FeatureValue]) -> None:
        """Name what is wrong with a state: looked at one by one only where a batch has a wrong one."""
        for number in self.dense:
            value = state.get(number.name, 0.0 if math.isnan(number.default) else number.default)
            if not isinstance(value, float | int) or not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
                raise WrongStateError(f"feature {number.name}: expected a finite number, got {value!r:.80}")
        for category in self.ids:
            _check_id(category.name, state.get(category.name, ""))
        for sequence in self.sequences:
            ids = state.get(sequence.name, [])
            if not isinstance(ids, list):
                raise WrongStateError(f"feature {sequence.name}: expected a list of strings, got {ids!r:.80}")
            for value in ids[-sequence.length :]:
                _check_id(sequence.name, value)


def _check_id(name: str, value: FeatureValue) -> None:
    if not isinstance(value, str):
        raise WrongStateError(f"feature {name}: expected a string, got {value!r:.80}")


class _UnboundedError(ValueError):
    """A number that is not finite, or too large for a float32."""


class _IdHashes(dict[str, int]):
    """crc32 by id, EMPTY for no id: the ids of a stream come again and again. Forgets everything when full (some 15 MB)."""

    EMPTY = -1
    ENTRIES = 1 << 17
    LONGEST = 64
    """Characters of an id that is worth remembering."""

    def __missing__(self, value: str) -> int:
        if not isinstance(value, str):
            raise TypeError(value)
        crc = crc32(value.encode()) if value else self.EMPTY
        if len(self) >= self.ENTRIES:
            self.clear()
        if len(value) <= self.LONGEST:
            self[value] = crc
        return crc


_crc_of = _IdHashes().__getitem__


def _cells(
    features: Sequence[DenseFeature | IdFeature], defaults: Sequence[FeatureValue], states: Sequence[Mapping[str, FeatureValue]]
) -> list[Any]:
    """The values of `features` of every state, one state after the other. Most states have all: one call a state then."""
    named = [(feature.name, default) for feature, default in zip(features, defaults, strict=True)]
    if len(named) < 2:  # an itemgetter of one name gives no tuple
        return [state.get(name, default) for state in states for name, default in named]
    values_of = itemgetter(*(name for name, _ in named))
    cells: list[Any] = []
    for state in states:
        try:
            cells += values_of(state)
        except KeyError:
            cells += [state.get(name, default) for name, default in named]
    return cells


def _numbers(features: Sequence[DenseFeature], states: Sequence[Mapping[str, FeatureValue]]) -> npt.NDArray[np.float32]:
    # an array of doubles takes no strings; numpy would parse them
    cells: list[Any] = _cells(features, [feature.default for feature in features], states)
    flat = array("d", cells)
    dense = np.asarray(flat).reshape(len(states), len(features))
    is_bounded = np.abs(dense) <= _FLOAT32_MAX  # False for NaN
    if not is_bounded.all():
        may_miss = np.array([math.isnan(feature.default) for feature in features])
        if not (is_bounded | np.isnan(dense) & may_miss).all():
            raise _UnboundedError
    return dense.astype(np.float32)


def _buckets(features: Sequence[IdFeature], states: Sequence[Mapping[str, FeatureValue]]) -> npt.NDArray[np.int64]:
    crcs = _crcs(_cells(features, [""] * len(features), states), len(states) * len(features))
    return _bucket(crcs.reshape(len(states), len(features)), np.array([feature.buckets for feature in features], np.int64))


def _sequence(feature: SequenceFeature, states: Sequence[Mapping[str, FeatureValue]]) -> npt.NDArray[np.int64]:
    lists: list[Any] = [state.get(feature.name, []) for state in states]
    if not all(isinstance(ids, list) for ids in lists):
        raise TypeError(feature.name)
    newest = [ids[-feature.length :] for ids in lists]
    lengths = np.fromiter(map(len, newest), np.int64, len(newest))
    columns = np.zeros((len(states), feature.length), np.int64)
    is_held = np.arange(feature.length) >= feature.length - lengths[:, None]
    columns[is_held] = _bucket(_crcs(chain.from_iterable(newest), int(lengths.sum())), feature.buckets)
    return columns


def _crcs(ids: Iterable[Any], count: int) -> npt.NDArray[np.int64]:
    return np.fromiter(map(_crc_of, ids), np.int64, count)


def _bucket(crcs: npt.NDArray[np.int64], buckets: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.where(crcs == _IdHashes.EMPTY, PADDING, 1 + crcs % (buckets - 1))
