"""Population stability index: how far the values of dense features lie from those that a model version was trained on.

    PSI = sum_b (p_b - q_b) ln(p_b / q_b)

over bins b: the deciles of the training rows, and one bin for missing values (NaN); q is the training rows' share of a bin, p the share
of the rows in question. Each share is (count + 1/2) / (rows + bins / 2), so that no bin is empty (Jeffreys' prior). Without any drift the
expected PSI of m rows against n is about 10 (1/n + 1/m). The rule of thumb (Siddiqi, *Credit Risk Scorecards*, 2006): below 0.1 stable,
above 0.25 another population.

Shape legend: B rows, N features, E = 9 edges between the deciles, C = 11 bins.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

EDGES = 9
BINS = EDGES + 2

Float64Array = npt.NDArray[np.float64]


class DenseReference(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What dense features looked like in training: for each its decile edges, and the share of the rows in each bin."""

    rows: int
    edges: list[list[float]]
    shares: list[list[float]]


def dense_reference(values_BN: npt.NDArray[np.float32]) -> DenseReference:
    """The reference that these rows are. A feature that none of them has gets edges of 0."""
    ordered_BN = np.sort(values_BN, axis=0)  # NaN is sorted to the end
    held_N = (~np.isnan(values_BN)).sum(0)
    places_EN = (np.arange(1, EDGES + 1)[:, None] * held_N // (EDGES + 1)).clip(0, max(0, len(values_BN) - 1))
    edges_EN = np.where(held_N > 0, np.take_along_axis(ordered_BN, places_EN, axis=0), 0.0)
    edges_NE = edges_EN.T.astype(np.float64)
    return DenseReference(rows=len(values_BN), edges=edges_NE.tolist(), shares=_shares(edges_NE, values_BN).tolist())


def stability_index(reference: DenseReference, values_BN: npt.NDArray[np.float32]) -> Float64Array:
    """PSI of each feature of these rows against the reference."""
    edges_NE = np.array(reference.edges, np.float64).reshape(-1, EDGES)
    q_NC = np.array(reference.shares, np.float64).reshape(-1, BINS)
    p_NC = _shares(edges_NE, values_BN)
    psi_N: Float64Array = ((p_NC - q_NC) * np.log(p_NC / q_NC)).sum(1)
    return psi_N


def _shares(edges_NE: Float64Array, values_BN: npt.NDArray[np.float32]) -> Float64Array:
    """Share of the rows in each bin: below the first edge, from one edge to the next, from the last one on, missing."""
    values_BN64: npt.NDArray[Any] = values_BN.astype(np.float64)
    reached_EN = np.array([(values_BN64 >= edges_N).sum(0) for edges_N in edges_NE.T])  # NaN reaches none
    held_N = (~np.isnan(values_BN64)).sum(0)
    counts_CN = np.vstack([held_N - reached_EN[0], -np.diff(reached_EN, axis=0), reached_EN[-1], len(values_BN) - held_N])
    shares_CN: Float64Array = (counts_CN + 0.5) / (len(values_BN) + BINS / 2)
    return shares_CN.T
