"""Generated states for the gate: wide enough that an actor that leaves its bounds, or answers NaN, does so here and not to a user."""

import numpy as np
import numpy.typing as npt

from schemas.features import FeatureSpec
from schemas.id_hash import PADDING
from schemas.policy import Candidate
from schemas.state_columns import DENSE, PLAIN, StateColumns, rows_input
from serving.actor import Actor, golden_answer
from serving.gate import Probe

_SPREAD = 3.0
"""Numbers are drawn around the golden row, this many times its size (and at least this much) wide."""


def probe_columns(features: FeatureSpec, candidate: Candidate, rows: int, generator: np.random.Generator) -> StateColumns:
    """States as columns [rows, …]: numbers around the candidate's golden row, every id as likely as any other."""

    def numbers(name: str, width: int) -> npt.NDArray[np.float32]:
        centre = np.zeros(width)
        golden = candidate.golden_inputs.get(name)
        if golden and len(golden[0]) == width:
            centre = np.nan_to_num(np.asarray(golden[0], np.float64))  # 0 for a value that was missing
        spread = _SPREAD * np.maximum(np.abs(centre), 1.0)
        return (centre + spread * generator.standard_normal((rows, width))).astype(np.float32)

    categories = [generator.integers(PADDING, table.rows, (rows, 1)) for table in features.tables]
    ids = np.hstack(categories) if categories else np.zeros((rows, 0), np.int64)
    sequences = {feature.name: generator.integers(PADDING, feature.buckets, (rows, feature.length)) for feature in features.listed}
    return StateColumns(numbers(DENSE, len(features.normalised)), ids, sequences, numbers(PLAIN, features.plain_size))


def probe(actor: Actor, features: FeatureSpec, rows: int, generator: np.random.Generator) -> Probe:
    """What the actor answers to its golden inputs and to `rows` generated states."""
    inputs = probe_columns(features, actor.candidate, rows, generator).inputs()
    for feature in features.dynamic:
        inputs[rows_input(feature.name)] = generator.standard_normal((rows, feature.length * feature.dim)).astype(np.float32)
    return Probe(golden_answer(actor), actor.raw(inputs))
