"""The point-wise stream: which rows leave when, with the weights and the sampling correction that belong to them.

| mode | positive rows | negative rows | a row leaves |
|---|---|---|---|
| window | when the window is over | when the window is over | once |
| eager | as soon as the target's feedback comes | when the window is over | once |
| fast | with the rest, and again as soon as the feedback comes | at once, or `fast_wait_ms` after the exposure | once or twice |

Negatives are kept with probability `negative_keep_rate`, decided by the row's place in the log: a row that is sent again after a
crash is kept or dropped as before. Positives are always kept.
"""

from math import log

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from joiner.block import Block, Layout
from joiner.delay import DelayCounts, weights
from joiner.labels import Floats, Ints
from joiner.settings import JoinerSettings
from schemas.pointwise_sample import pointwise_schema
from schemas.sample import sample_schema

Bools = npt.NDArray[np.bool_]


class Pointwise:
    """What a partition's settings mean for its point-wise stream, and the delays counted so far."""

    def __init__(self, settings: JoinerSettings, partition: int, counts: DelayCounts) -> None:
        self.mode = settings.emission_mode
        self.target = settings.target
        self.wait_ms = settings.fast_wait_ms
        self.counts = counts
        self.layout = Layout(sample_schema(settings.feedback_kinds), settings.rules(), settings.feedback_kinds, partition)
        self._keep_rate = settings.negative_keep_rate
        self._schema: pa.Schema = pointwise_schema(settings.feedback_kinds)

    def positive_leaves_as(self, block: Block) -> str | None:
        """The `closed_by` of a row that has just become positive; None where it does not leave now."""
        if self.mode == "eager":
            return "positive"
        return "correction" if self.mode == "fast" and block.early_ms is not None else None

    def batch(self, samples: pa.RecordBatch, is_positive: Bools, looked_at_ms: int) -> pa.RecordBatch | None:
        """Of a samples batch the rows that are to leave, as point-wise rows; None where no row is.

        `is_positive` says which have feedback of the target kind. When labels were looked at, feedback had been seen up to `looked_at_ms`.
        """
        closed_by = samples["closed_by"][0].as_py()
        kept = is_positive | self._is_kept(samples)
        if self.mode == "eager" and closed_by != "positive":
            kept &= ~is_positive  # they have left
        if not kept.any():
            return None
        if not kept.all():
            samples, is_positive = _chosen(samples, kept), is_positive[kept]
        elapsed_ms = np.maximum(0, looked_at_ms - samples["ts_ms"].to_numpy())
        p, one = self.counts.positive_rate, np.ones(len(samples))
        if closed_by in ("early", "correction"):
            come_by = self._come_by(elapsed_ms)
            fake_negative, fsiw = weights(is_positive, np.full(len(samples), closed_by == "correction"), p, come_by)
        else:  # the label is final
            come_by, fake_negative, fsiw = one, one, one
        floats = (p * one, come_by, fake_negative, fsiw, log(self._keep_rate) * one)
        exact = (pa.array(is_positive), pa.array(elapsed_ms))
        columns = [*samples.columns, *exact, *(pa.array(column.astype(np.float32)) for column in floats)]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _come_by(self, elapsed_ms: Ints) -> Floats:
        """F. Before a positive is known of: 0 for rows that leave at once, 1 for those that wait, which are learned as they are."""
        if not self.counts.positive_rate:
            return np.full(len(elapsed_ms), 1.0 if self.wait_ms else 0.0)
        return self.counts.share_come_by(elapsed_ms)

    def _is_kept(self, samples: pa.RecordBatch) -> Bools:
        """Of each row, were it negative."""
        if self._keep_rate == 1.0:
            return np.ones(len(samples), np.bool_)
        place = samples["source_offset"].to_numpy().astype(np.uint64) << np.uint64(20)
        place += samples["position"].to_numpy().astype(np.uint64) + (np.uint64(self.layout.partition) << np.uint64(56))
        return _uniform(place) < self._keep_rate


def _chosen(samples: pa.RecordBatch, kept: Bools) -> pa.RecordBatch:
    """The kept rows, with the messages of their pages alone."""
    chosen = samples.filter(pa.array(kept))
    exposure = chosen["exposure"]
    used, index = np.unique(exposure.indices.to_numpy(), return_inverse=True)
    messages = pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), exposure.dictionary.take(pa.array(used)))
    return chosen.set_column(chosen.schema.get_field_index("exposure"), chosen.schema.field("exposure"), messages)


def _uniform(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) from each integer, as if drawn at random: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
