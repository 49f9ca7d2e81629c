"""What was read of states, before hashing: numbers, the numbers of ids, lists; and how the encoder's columns are made of it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.features import FeatureSpec
from schemas.id_hash import PADDING, Ints, crcs_of_column, crossed, keys_of_column, rows_of
from schemas.state_columns import StateColumns

FLOAT32_MAX = float(np.finfo(np.float32).max)
Floats = npt.NDArray[np.float64]


class UnboundedError(ValueError):
    """A number that is not finite, or too large for a float32."""


@dataclass(frozen=True)
class IdLists:
    """B lists of ids: the numbers of all their ids one list after the other, and how many each list has."""

    numbers: Ints
    lengths: Ints

    def padded(self, length: int, buckets: int) -> Ints:
        """Rows of a table [B, length]: the newest of each list, behind the padding."""
        numbers, lengths = self.numbers, self.lengths
        if len(lengths) and lengths.min() == lengths.max() == length:
            return rows_of(numbers, buckets).reshape(-1, length)
        if (lengths > length).any():
            ages = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(numbers))  # 1 for the newest of a list
            numbers, lengths = numbers[ages <= length], np.minimum(lengths, length)
        columns = np.full((len(lengths), length), PADDING, np.int64)
        columns[np.arange(length) >= length - lengths[:, None]] = rows_of(numbers, buckets)
        return columns


def lists_of_one(numbers: Ints) -> IdLists:
    """Ids, one a state, as lists."""
    return IdLists(numbers, np.ones(len(numbers), np.int64))


@dataclass(frozen=True)
class RawColumns:
    """B states. dense [B, all dense features] float64, NaN where one is missing; vectors [B, size].

    ids and codes: numbers [B, features], MISSING for none. lists: in the order of `FeatureSpec.listed`.
    """

    dense: Floats
    ids: Ints
    codes: Ints
    lists: list[IdLists]
    vectors: list[Floats]


class TextLists(NamedTuple):
    """B lists of strings: all of them one list after the other, and how many each list has; whether they become keys."""

    values: pa.StringArray
    lengths: Ints
    are_keys: bool = False


class OpenColumns(NamedTuple):
    """B states as their messages have them; ids are strings still. `ids` holds those of the first state, then of the second, and so on.

    `keyed_ids` are the places among the ids of a state of those with dynamic tables.
    """

    dense: Floats
    ids: pa.StringArray
    ids_per_state: int
    keyed_ids: list[int]
    codes: list[Ints]
    lists: list[TextLists]
    vectors: list[Floats]

    def raw(self) -> RawColumns:
        """With numbers for the ids: every distinct id of a column is hashed once."""
        lists = [IdLists((keys_of_column if are_keys else crcs_of_column)(values), lengths) for values, lengths, are_keys in self.lists]
        for place in self.keyed_ids:
            of_states = self.ids.take(pa.array(np.arange(place, len(self.ids), self.ids_per_state)))
            lists.append(lists_of_one(keys_of_column(of_states)))
        ids = crcs_of_column(self.ids).reshape(len(self.dense), self.ids_per_state)
        codes = np.stack(self.codes, axis=1) if self.codes else np.empty((len(self.dense), 0), np.int64)
        return RawColumns(self.dense, ids, codes, lists, self.vectors)


class ColumnMaker:
    """RawColumns -> StateColumns for one specification: the part that trainer and serving share whatever they read states from."""

    def __init__(self, spec: FeatureSpec) -> None:
        self._spec = spec
        self._is_hashed = np.array([not feature.is_dynamic for feature in spec.ids], np.bool_)
        self._id_buckets = np.array([feature.buckets for feature in spec.ids], np.int64)[self._is_hashed]
        self._log = np.array([feature.normalisation == "log_zscore" for feature in spec.dense], np.bool_)
        self._may_miss = np.array([math.isnan(feature.default) for feature in spec.dense], np.bool_)
        self._is_normalised = np.array([feature.normalisation != "none" for feature in spec.dense], np.bool_)
        crossable = {feature.name: place for place, feature in enumerate((*spec.ids, *spec.binary_sequences))}
        self._crosses = [(feature.buckets, [crossable[name] for name in feature.of]) for feature in spec.crosses]

    def columns(self, raw: RawColumns) -> StateColumns:
        """Raises UnboundedError where a number is not finite, or too large for a float32. NaN passes where a number may be missing."""
        dense = _bounded(raw.dense, self._may_miss)
        if self._log.any():
            logged = dense[:, self._log]
            dense = dense.copy()
            dense[:, self._log] = np.sign(logged) * np.log1p(np.abs(logged))
        sequences = {
            feature.name: ids.padded(feature.length, 0 if feature.is_dynamic else feature.buckets)
            for feature, ids in zip(self._spec.listed, raw.lists, strict=True)
        }
        if self._is_normalised.all():
            return StateColumns(dense.astype(np.float32), self._rows(raw), sequences, self._plain(dense[:, :0], raw))
        normalised, passed = dense[:, self._is_normalised], dense[:, ~self._is_normalised]
        return StateColumns(normalised.astype(np.float32), self._rows(raw), sequences, self._plain(passed, raw))

    def _rows(self, raw: RawColumns) -> Ints:
        rows = rows_of(raw.ids if self._is_hashed.all() else raw.ids[:, self._is_hashed], self._id_buckets)
        if not self._spec.binary_sequences and not self._crosses:
            return rows
        numbers = np.hstack([raw.ids, raw.codes])
        crosses = [rows_of(crossed([numbers[:, place] for place in places]), buckets) for buckets, places in self._crosses]
        # a code's row is the next one: MISSING is row 0
        return np.hstack([rows, raw.codes + 1, *(cross[:, None] for cross in crosses)])

    def _plain(self, passed: Floats, raw: RawColumns) -> npt.NDArray[np.float32]:
        vectors = [
            _unit(_bounded(vector)) if feature.normalisation == "l2" else _bounded(vector)
            for feature, vector in zip(self._spec.vectors, raw.vectors, strict=True)
        ]
        return np.hstack([passed, *vectors]).astype(np.float32) if vectors else passed.astype(np.float32)


def _bounded(numbers: Floats, may_miss: npt.NDArray[np.bool_] | bool = False) -> Floats:
    is_bounded = np.abs(numbers) <= FLOAT32_MAX  # False for NaN
    if not is_bounded.all() and not (is_bounded | np.isnan(numbers) & may_miss).all():
        raise UnboundedError
    return numbers


def _unit(vectors: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit
