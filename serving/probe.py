"""Generated states for the gate: wide enough that an actor that leaves its bounds, or answers NaN, does so here and not to a user."""

import numpy as np

from schemas.features import PADDING, FeatureSpec, IdFeature, SequenceFeature, StateColumns
from schemas.policy import Candidate
from serving.actor import Actor, feeds_of, golden_answer
from serving.gate import Probe

_SPREAD = 3.0
"""Dense features are drawn around the golden row, this many times its size (and at least this much) wide."""


def probe_columns(features: FeatureSpec, candidate: Candidate, rows: int, generator: np.random.Generator) -> StateColumns:
    """States as columns [rows, …]: dense ones around the candidate's golden row, every id as likely as any other."""
    centre = np.zeros(len(features.dense))
    golden = candidate.golden_inputs.get("dense")
    if golden and len(golden[0]) == len(centre):
        centre = np.nan_to_num(np.asarray(golden[0], np.float64))  # 0 for a value that was missing
    width = _SPREAD * np.maximum(np.abs(centre), 1.0)
    dense = (centre + width * generator.standard_normal((rows, len(centre)))).astype(np.float32)

    def ids(feature: IdFeature | SequenceFeature, length: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        return generator.integers(PADDING, feature.buckets, (rows, length))

    categories = [ids(feature, 1) for feature in features.ids]
    sequences = {feature.name: ids(feature, feature.length) for feature in features.sequences}
    return StateColumns(dense, np.hstack(categories) if categories else np.zeros((rows, 0), np.int64), sequences)


def probe(actor: Actor, features: FeatureSpec, rows: int, generator: np.random.Generator) -> Probe:
    """What the actor answers to its golden inputs and to `rows` generated states."""
    return Probe(golden_answer(actor), actor.raw(feeds_of(probe_columns(features, actor.candidate, rows, generator))))
