"""Exploration: Gaussian noise around the actor's action, truncated to the action's bounds, with its exact density.

Each dimension is independent: a_k ~ N(mu_k, sigma_k^2) conditioned on low_k <= a_k <= high_k, with
sigma_k = sigma * (high_k - low_k) / 2. The propensity is the product of the K densities

    f(a_k) = phi((a_k - mu_k) / sigma_k) / (sigma_k * (Phi((high_k - mu_k) / sigma_k) - Phi((low_k - mu_k) / sigma_k)))

It is drawn through the inverse of the distribution function, so that one uniform number a dimension is always enough. The
mean lies inside the bounds, hence the denominator is never close to zero.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from schemas.action import ActionSpec

_STANDARD = NormalDist()
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_MAX_LOG_DENSITY = 600.0
"""Densities between exp(-600) and exp(600) are ordinary float64 numbers with room to spare (the limit is about 709)."""


def log_density(value: float, mean: float, sigma: float, low: float, high: float) -> float:
    """Log density of one dimension at `value` (inside the bounds), in units of 1 / action."""
    inside = _STANDARD.cdf((high - mean) / sigma) - _STANDARD.cdf((low - mean) / sigma)
    return -0.5 * ((value - mean) / sigma) ** 2 - _LOG_SQRT_2PI - math.log(sigma * inside)


class Exploration:
    """Noise for the actions of one specification. `sigma` is relative to half of each dimension's range; 0 switches it off."""

    def __init__(self, action: ActionSpec, sigma: float) -> None:
        if not (math.isfinite(sigma) and sigma >= 0.0):
            raise ValueError(f"explore_sigma must be zero or more, got {sigma}")
        self._sigmas = [0.5 * sigma * (dimension.high - dimension.low) for dimension in action.dimensions]
        self._bounds = [(dimension.low, dimension.high) for dimension in action.dimensions]
        self._explores = sigma > 0.0
        if self._explores:
            peak = sum(-math.log(own_sigma) for own_sigma in self._sigmas)
            if abs(peak) > _MAX_LOG_DENSITY:
                raise ValueError(
                    f"explore_sigma {sigma}: the density of {action.size} dimensions would be about exp({peak:.0f}); no number holds it"
                )

    def sample(self, mean: Sequence[float], generator: np.random.Generator) -> tuple[list[float], float]:
        """An action around `mean` (one number a dimension, inside the bounds) and its density; (mean, 1.0) without noise."""
        if not self._explores:
            return list(mean), 1.0
        action = []
        log_propensity = 0.0
        for uniform, centre, sigma, (low, high) in zip(generator.random(len(mean)).tolist(), mean, self._sigmas, self._bounds, strict=True):
            below, up_to = _STANDARD.cdf((low - centre) / sigma), _STANDARD.cdf((high - centre) / sigma)
            quantile = below + uniform * (up_to - below)
            # inv_cdf is defined inside (0, 1) only; the clipping also takes back what rounding puts past a bound
            value = centre + sigma * _STANDARD.inv_cdf(min(max(quantile, 1e-300), 1.0 - 1e-16))
            value = min(max(value, low), high)
            action.append(value)
            log_propensity += log_density(value, centre, sigma, low, high)
        return action, math.exp(log_propensity)

    def density(self, action: Sequence[float], mean: Sequence[float]) -> float:
        """The density of any action around `mean`: 0 outside the bounds."""
        if not self._explores:
            return 1.0
        total = 0.0
        for value, centre, sigma, (low, high) in zip(action, mean, self._sigmas, self._bounds, strict=True):
            if not low <= value <= high:
                return 0.0
            total += log_density(value, centre, sigma, low, high)
        return math.exp(total)
