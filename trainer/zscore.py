"""Rolling Z-score: mean and variance of drifting dense features, merged batch by batch.

For each feature, the n values that a batch has of it have mean m and sum of squared deviations S. What was known before, weight W0,
mean m0 and squares S0, decays by d = 2 ** (-n / half_life). The merge is exact (Chan, Golub & LeVeque 1979, eq. 1.5):

    W' = d W0 + n        m' = m0 + (m - m0) n / W'        S' = d S0 + S + (m - m0)^2 d W0 n / W'

So a value counts 2 ** (-later / half_life), with `later` the values that came in later batches: the order within a batch has no effect, and
without forgetting (d = 1) neither has how the rows were cut into batches, but for rounding. Welford (1962) is the case n = 1.

A value that is missing (NaN) changes nothing, and is 0 once normalised: the mean.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Dense = npt.NDArray[np.float32] | Float64Array

BLOCK_ROWS = 512
"""Rows that are worked on at a time: 90 features of them, in float64, stay in the processor's cache."""


class ZscoreState(TypedDict):
    """All that a normaliser remembers; one number a feature."""

    seen: list[int]
    weight: list[float]
    mean: list[float]
    squares: list[float]


@dataclass(frozen=True)
class ZscoreConstants:
    """What a model version needs: z = clip((x - mean) / std, -clip, clip), 0 where x is missing. N features."""

    mean_N: Float64Array
    std_N: Float64Array
    clip: float

    def __call__(self, values_BN: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised features, computed in float64: float32 would lose large values with a small spread."""
        z_BN = values_BN.astype(np.float64)
        z_BN -= self.mean_N
        z_BN /= self.std_N
        np.clip(z_BN, -self.clip, self.clip, out=z_BN)
        z_BN[np.isnan(z_BN)] = 0.0
        return z_BN.astype(np.float32)


class _Moments(NamedTuple):
    """Of each feature of some rows: how many values, their mean, their sum of squared deviations."""

    weight_N: Float64Array
    mean_N: Float64Array
    squares_N: Float64Array


class Zscore:
    """Running statistics of N features, in float64."""

    def __init__(self, size: int, *, half_life_rows: float | None, warm_up_rows: int, clip: float, min_variance: float) -> None:
        self.half_life_rows = half_life_rows
        self.warm_up_rows = warm_up_rows
        self.clip = clip
        self.min_variance = min_variance
        self.seen_N = np.zeros(size, np.int64)
        self._moments = _Moments(np.zeros(size), np.zeros(size), np.zeros(size))

    def update(self, values_BN: Dense) -> None:
        """Learn from the rows of a batch. Raises ValueError, and learns nothing, where one is infinite."""
        batch: _Moments | None = None
        for start in range(0, len(values_BN), BLOCK_ROWS):
            block = _moments(values_BN[start : start + BLOCK_ROWS].astype(np.float64))
            batch = block if batch is None else _merged(batch, block)
        if batch is None:
            return
        old = self._moments
        if self.half_life_rows is not None:
            decay_N = np.exp2(batch.weight_N / -self.half_life_rows)
            old = _Moments(decay_N * old.weight_N, old.mean_N, decay_N * old.squares_N)
        self._moments = _merged(old, batch)
        self.seen_N += batch.weight_N.astype(np.int64)

    def constants(self) -> ZscoreConstants:
        """The normalisation as it is now; of a feature that is not warm: the identity, clipped."""
        weight_N, mean_N, squares_N = self._moments
        is_warm_N = self.seen_N >= max(1, self.warm_up_rows)
        variance_N = np.maximum(squares_N / np.where(is_warm_N, weight_N, 1.0), self.min_variance)
        return ZscoreConstants(np.where(is_warm_N, mean_N, 0.0), np.where(is_warm_N, np.sqrt(variance_N), 1.0), self.clip)

    def state_dict(self) -> ZscoreState:
        """Everything remembered, exactly: floats survive JSON bit for bit."""
        weight_N, mean_N, squares_N = self._moments
        return {"seen": self.seen_N.tolist(), "weight": weight_N.tolist(), "mean": mean_N.tolist(), "squares": squares_N.tolist()}

    def load_state_dict(self, state: ZscoreState) -> None:
        """Go on from an earlier `state_dict`."""
        assert len(state["mean"]) == len(self.seen_N), (len(state["mean"]), len(self.seen_N))
        self.seen_N = np.array(state["seen"], np.int64)
        self._moments = _Moments(*(np.array(state[name], np.float64) for name in ("weight", "mean", "squares")))


def _moments(values_BN: Float64Array) -> _Moments:
    """Two passes; `values_BN` is used up. The sums are matrix products with ones: half the time of numpy's own over so few rows."""
    count, size = values_BN.shape
    ones_B = np.ones(count)
    with np.errstate(invalid="ignore"):  # inf - inf: refused below
        weight_N, mean_N = np.full(size, float(count)), ones_B @ values_BN / count
    if not np.isfinite(mean_N).all():
        is_missing_BN = np.isnan(values_BN)
        weight_N = ones_B @ ~is_missing_BN
        values_BN[is_missing_BN] = 0.0
        mean_N = ones_B @ values_BN / np.maximum(weight_N, 1.0)
        if not np.isfinite(mean_N).all():
            raise ValueError("normaliser: values must be finite, or NaN where they are missing")
        np.copyto(values_BN, mean_N, where=is_missing_BN)
    values_BN -= mean_N
    values_BN *= values_BN
    return _Moments(weight_N, mean_N, ones_B @ values_BN)


def _merged(first: _Moments, second: _Moments) -> _Moments:
    """The moments of both together. A feature that neither has a value of stays as it is in the first."""
    weight_N = first.weight_N + second.weight_N
    share_N = second.weight_N / np.maximum(weight_N, np.finfo(np.float64).tiny)
    shift_N = second.mean_N - first.mean_N
    squares_N = first.squares_N + second.squares_N + shift_N * shift_N * first.weight_N * share_N
    return _Moments(weight_N, first.mean_N + shift_N * share_N, squares_N)
