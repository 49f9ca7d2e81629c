"""Rolling Z-score: mean and variance of drifting dense features, merged batch by batch.

A batch of rows x_1..x_n with weights w_i = 2 ** (-(n - i) / half_life) has total weight W, weighted mean m and sum of squared
deviations S; the old (W0, m0, S0) decays by d = 2 ** (-n / half_life). The merge is exact (Chan, Golub & LeVeque 1979, eq. 1.5):

    W' = d W0 + W        m' = m0 + (m - m0) W / W'        S' = d S0 + S + (m - m0)^2 d W0 W / W'

so the state does not depend on how the rows were cut into batches, but for rounding. Welford (1962) is the case n = 1.
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


class ZscoreState(TypedDict):
    """All that a normaliser remembers."""

    rows: int
    weight: float
    mean: list[float]
    squares: list[float]


@dataclass(frozen=True)
class ZscoreConstants:
    """What a model version needs: z = clip((x - mean) / std, -clip, clip). N features."""

    mean_N: Float64Array
    std_N: Float64Array
    clip: float

    def __call__(self, values_BN: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised features, computed in float64: float32 would lose large values with a small spread."""
        z_BN = (values_BN.astype(np.float64) - self.mean_N) / self.std_N
        return np.clip(z_BN, -self.clip, self.clip).astype(np.float32)


class Zscore:
    """Running statistics of N features, in float64."""

    def __init__(self, size: int, *, half_life_rows: float | None, warm_up_rows: int, clip: float, min_variance: float) -> None:
        self.half_life_rows = half_life_rows
        self.warm_up_rows = warm_up_rows
        self.clip = clip
        self.min_variance = min_variance
        self.rows = 0
        self.weight = 0.0
        self.mean_N = np.zeros(size)
        self.squares_N = np.zeros(size)

    def update(self, values_BN: npt.NDArray[np.float32]) -> None:
        """Learn from the rows of a batch, oldest first. They must be finite."""
        values_BN64 = values_BN.astype(np.float64)
        count = len(values_BN64)
        if count == 0:
            return
        if not np.isfinite(values_BN64).all():
            raise ValueError("normaliser: rows must be finite numbers")
        weights_B = np.ones(count) if self.half_life_rows is None else np.exp2(np.arange(1 - count, 1) / self.half_life_rows)
        decay = 1.0 if self.half_life_rows is None else 2.0 ** (-count / self.half_life_rows)
        batch_weight = float(weights_B.sum())
        batch_mean_N = weights_B @ values_BN64 / batch_weight
        batch_squares_N = weights_B @ np.square(values_BN64 - batch_mean_N)
        old_weight = decay * self.weight
        total = old_weight + batch_weight
        shift_N = batch_mean_N - self.mean_N
        self.squares_N = decay * self.squares_N + batch_squares_N + np.square(shift_N) * (old_weight * batch_weight / total)
        self.mean_N = self.mean_N + shift_N * (batch_weight / total)
        self.weight = total
        self.rows += count

    @property
    def is_warm(self) -> bool:
        """Whether enough rows were seen to normalise by them."""
        return self.rows >= self.warm_up_rows

    def constants(self) -> ZscoreConstants:
        """The normalisation as it is now; until warm: the identity, clipped."""
        if not self.is_warm:
            return ZscoreConstants(np.zeros_like(self.mean_N), np.ones_like(self.mean_N), self.clip)
        variance_N = np.maximum(self.squares_N / self.weight, self.min_variance)
        return ZscoreConstants(self.mean_N.copy(), np.sqrt(variance_N), self.clip)

    def state_dict(self) -> ZscoreState:
        """Everything remembered, exactly: floats survive JSON bit for bit."""
        return {"rows": self.rows, "weight": self.weight, "mean": self.mean_N.tolist(), "squares": self.squares_N.tolist()}

    def load_state_dict(self, state: ZscoreState) -> None:
        """Go on from an earlier `state_dict`."""
        assert len(state["mean"]) == len(self.mean_N), (len(state["mean"]), len(self.mean_N))
        self.rows, self.weight = state["rows"], state["weight"]
        self.mean_N, self.squares_N = np.array(state["mean"], np.float64), np.array(state["squares"], np.float64)
