"""Mean reward of a page, with a confidence interval that knows that the pages of one session are not independent."""

import math
from typing import Self

import msgspec

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


class Moments(msgspec.Struct, array_like=True):
    """Sums over m clusters (sessions) with n pages and reward R each: all that the ratio estimator needs.

    mean  r = sum R / sum n
    SE(r)   = sqrt( m / (m - 1) * sum (R - r n)^2 ) / sum n
            with sum (R - r n)^2 = sum R^2 - 2 r sum nR + r^2 sum n^2

    The delta method for a ratio of two sums over independent clusters: W. G. Cochran, Sampling Techniques (1977), eq. 6.13;
    A. Deng, U. Knoblich, J. Lu, Applying the Delta Method in Metric Analytics (KDD 2018), section 4 (randomise by user, analyse by page).
    Taking each page as independent instead would understate the error wherever sessions differ.
    """

    clusters: int = 0
    n: int = 0
    reward: float = 0.0
    n_squared: int = 0
    reward_squared: float = 0.0
    n_reward: float = 0.0

    def add(self, pages: int, reward: float) -> None:
        """One more session."""
        self.clusters += 1
        self.n += pages
        self.reward += reward
        self.n_squared += pages * pages
        self.reward_squared += reward * reward
        self.n_reward += pages * reward

    def __add__(self, other: Self) -> "Moments":
        return Moments(*(mine + theirs for mine, theirs in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)))

    @property
    def mean(self) -> float | None:
        """Reward per page; None without pages."""
        return self.reward / self.n if self.n else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None with fewer than two sessions, which say nothing about how sessions differ."""
        if self.clusters < 2:
            return None
        mean = self.reward / self.n
        squares = self.reward_squared - 2 * mean * self.n_reward + mean * mean * self.n_squared
        return math.sqrt(self.clusters / (self.clusters - 1) * max(squares, 0.0)) / self.n

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The mean's 95 % confidence interval by the normal approximation, which wants some thirty sessions."""
        error = self.standard_error
        if error is None:
            return None
        mean = self.reward / self.n
        return mean - Z95 * error, mean + Z95 * error
