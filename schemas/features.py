"""The feature specification: it turns served states into the encoder's input columns, in the trainer and in serving alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self
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
    """A number; `default` where a state does not have it."""

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
    """B states as columns: dense [B, N] float32, ids [B, I] int64, and one int64 [B, T] a sequence."""

    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    sequences: dict[str, npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.dense)


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
        dense = np.empty((len(states), len(self.dense)), np.float32)
        ids = np.zeros((len(states), len(self.ids)), np.int64)
        sequences = {feature.name: np.zeros((len(states), feature.length), np.int64) for feature in self.sequences}
        for row, state in enumerate(states):
            for column, number in enumerate(self.dense):
                dense[row, column] = _number(number, state.get(number.name, number.default))
            for column, category in enumerate(self.ids):
                ids[row, column] = _bucket(category.name, category.buckets, state.get(category.name, ""))
            for sequence in self.sequences:
                newest = _list(sequence, state.get(sequence.name, []))[-sequence.length :]
                if newest:
                    sequences[sequence.name][row, -len(newest) :] = [_bucket(sequence.name, sequence.buckets, value) for value in newest]
        return StateColumns(dense, ids, sequences)


def _number(feature: DenseFeature, value: FeatureValue) -> float:
    if not isinstance(value, float | int) or not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        raise WrongStateError(f"feature {feature.name}: expected a finite number, got {value!r:.80}")
    return value


def _bucket(name: str, buckets: int, value: FeatureValue) -> int:
    if not isinstance(value, str):
        raise WrongStateError(f"feature {name}: expected a string, got {value!r:.80}")
    return 1 + crc32(value.encode()) % (buckets - 1) if value else PADDING


def _list(feature: SequenceFeature, value: FeatureValue) -> list[str]:
    if not isinstance(value, list):
        raise WrongStateError(f"feature {feature.name}: expected a list of strings, got {value!r:.80}")
    return value
