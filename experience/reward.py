"""The reward of a page, as in Meituan's "Guess you like" (the MDP table of the article).

    r = sum_k w_k * feedback_k  -  penalty_no_conversion * [no conversion, and the session went on]
                                -  penalty_left          * [no conversion, and the user left]

Without the penalties the article's agent learned to make people page longer instead of showing what they want.
Shape legend: R rows (samples) of a batch, P pages, K kinds of feedback.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def page_sums(labels_RK: Sequence[Floats], starts_P: npt.NDArray[np.int64]) -> Floats:
    """Feedback of each kind, summed over the rows of each page: [P, K]. `starts_P` are the pages' first rows."""
    sums_PK = np.empty((len(starts_P), len(labels_RK)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a sum that is not finite is refused with its page
        for column, labels_R in enumerate(labels_RK):
            np.add.reduceat(labels_R, starts_P, out=sums_PK[:, column])
    return sums_PK


def earned_parts(sums_PK: Floats, kinds: Sequence[str], weights: Mapping[str, float]) -> Floats:
    """What each kind of feedback earned each page: w_k * feedback_k, [P, K]; kinds without a weight earn nothing."""
    weights_K = np.array([weights.get(kind, 0.0) for kind in kinds], np.float32)
    # A kind of weight 0 earns 0 whatever its sum is: 0 * inf would be NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(weights_K == 0, np.float32(0), sums_PK * weights_K)


def conversions(sums_PK: Floats, kinds: Sequence[str], conversion_kinds: Sequence[str]) -> Bools:
    """Which pages had any feedback of a converting kind: [P]."""
    counts = [column for column, kind in enumerate(kinds) if kind in conversion_kinds]
    converted_P: Bools = np.any(sums_PK[:, counts] > 0, axis=1)
    return converted_P


def penalties(converted_P: Bools, went_on_P: Bools, penalty_no_conversion: float, penalty_left: float) -> tuple[Floats, Floats]:
    """The two penalties of each page, zero or negative: on pages after which the session went on, and after which the user left."""
    no_conversion_P = np.where(~converted_P & went_on_P, 0.0 - penalty_no_conversion, 0.0).astype(np.float32)
    left_P = np.where(~converted_P & ~went_on_P, 0.0 - penalty_left, 0.0).astype(np.float32)
    return no_conversion_P, left_P


def total(parts: Sequence[Floats]) -> Floats:
    """The reward: the parts added from left to right in float32, so that whoever adds the columns gets the same bits."""
    reward_P = np.zeros_like(parts[0])
    for part_P in parts:
        reward_P += part_P
    return reward_P
