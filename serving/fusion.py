"""Score fusion: an item's scores and an action become one ranking score.

Shape legend: C candidates, K objectives, A action dimensions.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from schemas.action import ActionSpec

MIN_SCORE = 1e-9
"""A power product takes scores below this for this: log(0) would put an item last whatever its other scores say."""
_MAX_LOG_SCORE = 700.0
"""exp(710) is no float64 any more. The order comes from the logarithm, so that clipping what is shown loses nothing."""

Floats = npt.NDArray[np.float64]


class WrongScoresError(ValueError):
    """Candidates whose scores cannot be fused; the message names the item and the objective."""


def fuse(scores_CK: Floats, action: Sequence[float], spec: ActionSpec) -> tuple[Floats, Floats]:
    """Ranking keys [C] and shown scores [C]; for a power product the keys are the logarithms of the scores.

    The first A columns of `scores_CK` belong to the action's dimensions; a power product takes further ones with exponent 1.
    Rows are summed one by one and not as a matrix product, whose rounding may depend on the row: equal rows stay equal.
    """
    if spec.fusion == "weighted_sum":
        fused = (scores_CK[:, : spec.size] * np.asarray(action, np.float64)).sum(axis=1)
        return fused, fused
    exponents_K = np.ones(scores_CK.shape[1])
    exponents_K[: spec.size] = spec.beta * np.asarray(action, np.float64)
    keys = (np.log(np.maximum(scores_CK, MIN_SCORE)) * exponents_K).sum(axis=1)
    return keys, np.exp(np.clip(keys, -_MAX_LOG_SCORE, _MAX_LOG_SCORE))


def score_matrix(item_ids: Sequence[str], scores: Sequence[Mapping[str, float]], spec: ActionSpec) -> Floats:
    """The scores as columns [C, K]: the objectives that the action moves, then (power product) the rest of them, which all must have."""
    moved = [dimension.objective for dimension in spec.dimensions]
    rest = [name for name in scores[0] if name not in moved] if spec.fusion == "power_product" else []
    objectives = moved + rest
    pick = itemgetter(*objectives)
    try:
        picked = list(map(pick, scores))
    except KeyError:
        raise _missing(item_ids, scores, objectives) from None
    if spec.fusion == "power_product":
        expected = len(set(objectives))
        for own in scores:
            if len(own) != expected:  # it has one more than the first candidate: which then is the one that lacks it
                raise _missing(item_ids, scores, [*objectives, *own])
    flat = picked if len(objectives) == 1 else chain.from_iterable(picked)
    matrix = np.fromiter(flat, np.float64, len(scores) * len(objectives)).reshape(len(scores), len(objectives))
    _check_range(matrix, item_ids, objectives, spec)
    return matrix


def rank(
    item_ids: Sequence[str], scores: Sequence[Mapping[str, float]], action: Sequence[float], spec: ActionSpec, page_size: int
) -> list[tuple[int, float]]:
    """(index of the candidate, score) of the page, best first; equal scores keep the order of the request.

    Raises WrongScoresError.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below, by name
        keys, shown = fuse(score_matrix(item_ids, scores, spec), action, spec)
    if not np.isfinite(keys).all():
        row = int(np.flatnonzero(~np.isfinite(keys))[0])
        raise WrongScoresError(f"candidate {item_ids[row]}: its fused score is not a finite number")
    best = np.argsort(-keys, kind="stable")[:page_size]
    return list(zip(best.tolist(), shown[best].tolist(), strict=True))


def _missing(item_ids: Sequence[str], scores: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> WrongScoresError:
    item_id, objective = next(
        (item_id, name) for item_id, own in zip(item_ids, scores, strict=True) for name in objectives if name not in own
    )
    return WrongScoresError(f"candidate {item_id}: no score for objective {objective}")


def _check_range(matrix: Floats, item_ids: Sequence[str], objectives: Sequence[str], spec: ActionSpec) -> None:
    if spec.fusion == "power_product" and matrix.min() < 0.0:
        row, column = (int(index) for index in np.argwhere(matrix < 0.0)[0])
        found = float(matrix[row, column])
        raise WrongScoresError(
            f"candidate {item_ids[row]}: objective {objectives[column]} must be zero or more in a power product, got {found}"
        )
