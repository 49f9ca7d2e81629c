"""How long positives take, counted from pages that are closed, and what it says of labels that were looked at too early.

With p the share of rows that become positive, and F(e) the share of those positives that have come e ms after the exposure, a row
that leaves after e ms with the label it has by then is positive with probability p F(e). Each positive that comes later is sent
again. The weights below make up for the negatives that are not (yet) true; each is p(y) / b(y), the true share of a label over its
share in the stream:

- fake-negative weighted [1], for a stream in which late positives follow: positives 1 + p (1 - F), negatives
  (1 - p) (1 + p (1 - F)) / (1 - p + p (1 - F)). With F = 0 these are [1]'s 1 + p and (1 - p) (1 + p); with a wait they are the
  weights of ES-DFM [2], whose p_dp is p (1 - F) and whose p_rn is (1 - p) / (1 - p F).
- FSIW [3], for the early rows alone (late positives weigh nothing): positives 1 / F, negatives 1 - p (1 - F) / (1 - p F).

Here p and F are those of all the partition's rows (marginal); a loss that has a model of its own puts its prediction for p
(trainer/delayed_feedback.py). Fake-negative calibration [1] needs no weight: it corrects the prediction.

[1] Ktena et al., "Addressing Delayed Feedback for Continuous Training with Neural Networks in CTR prediction", RecSys 2019.
[2] Yang et al., "Capturing Delayed Feedback in Conversion Rate Prediction via Elapsed-Time Sampling" (ES-DFM), AAAI 2021,
    arXiv 2012.03245.
[3] Yasui et al., "A Feedback Shift Correction in Predicting Conversion Rates under Delayed Feedback", WWW 2020,
    arXiv 2002.02068.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from joiner.labels import NEVER, Floats, Ints

EDGES_MS = np.concatenate([[0], np.unique(np.geomspace(1, 30 * 86_400_000, 64).astype(np.int64))])
"""Bounds of the bins: 0 and about 60 more, each a third larger than the one before, up to the longest window."""
LEAST_COME_BY = 0.01
"""FSIW takes no smaller F: no row weighs more than a hundred. Where positives come later than that, wait longer."""
REMEMBERED_ROWS = 1_000_000
"""Where so many rows are counted, all counts are halved: the estimate follows the traffic."""


class Weights(NamedTuple):
    """Of N rows [N]."""

    fake_negative: Floats
    fsiw: Floats


class DelayCounts:
    """Rows, and delays of their first positives by bin. Before the first closed page p and F are 0: unknown."""

    def __init__(self, stored: Sequence[int] = ()) -> None:
        self._rows = stored[0] if stored else 0
        self._bins: Ints = np.array(stored[1:] if stored else [0] * len(EDGES_MS), np.int64)

    def stored(self) -> list[int]:
        """What makes the same counts again."""
        return [self._rows, *self._bins.tolist()]

    def add(self, delays_R: Ints) -> None:
        """R rows of closed pages, with the delay (ms) of their first positive; NEVER where there was none."""
        positive = delays_R[delays_R != NEVER]
        self._rows += len(delays_R)
        self._bins += np.bincount(np.searchsorted(EDGES_MS, positive), minlength=len(EDGES_MS))[: len(EDGES_MS)]
        if self._rows > REMEMBERED_ROWS:
            self._rows //= 2
            self._bins //= 2

    @property
    def positive_rate(self) -> float:
        """P."""
        return float(self._bins.sum() / self._rows) if self._rows else 0.0

    def share_come_by(self, elapsed_ms: Ints) -> Floats:
        """F(e) [N]: between the bounds of the bins it grows evenly."""
        total = self._bins.sum()
        if not total:
            return np.zeros(len(elapsed_ms))
        return np.asarray(np.interp(elapsed_ms, EDGES_MS, self._bins.cumsum() / total))


def weights(is_positive: npt.NDArray[np.bool_], is_late: npt.NDArray[np.bool_], p: float, come_by: Floats) -> Weights:
    """Of N early rows, or late positives (`is_late`): by the formulas above. `come_by` [N] is F at the early row's age."""
    if p == 0.0:  # no positive is known of: F says nothing yet, and every row weighs 1, late ones too
        return Weights(np.ones_like(come_by), np.ones_like(come_by))
    to_come = p * (1.0 - come_by)
    fake_negative = np.where(is_positive, 1.0 + to_come, (1.0 - p) * (1.0 + to_come) / np.maximum(1.0 - p + to_come, 1e-9))
    fsiw = np.where(is_positive, 1.0 / np.maximum(come_by, LEAST_COME_BY), 1.0 - to_come / np.maximum(1.0 - p * come_by, 1e-9))
    return Weights(fake_negative, np.where(is_late, 0.0, fsiw))
