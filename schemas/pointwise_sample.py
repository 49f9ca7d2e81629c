"""A point-wise sample: one row for learners that look at items one by one. Point-wise samples travel as Arrow record batches.

The rows of a page need not be in one batch, nor all there: negatives may be sampled. Whoever needs whole pages reads `samples`.
"""

import pyarrow as pa

from schemas.sample import sample_schema

VERSION = 2
"""1 had no `feedback_offsets`."""

CLOSED_BY = ("window", "idle", "positive", "early", "correction")
"""When a row left: at the end of its window; the same because a topic fell silent; as soon as it was positive; early, with the label
that it had by then; again, because it was positive after it had left early. (source_partition, source_offset, item_id, closed_by)
names a row: delivered twice, it is the same row."""


def pointwise_schema(kinds: tuple[str, ...]) -> pa.Schema:
    """The columns of a sample, and what a loss needs to know of when the row left and which rows are missing.

    `is_positive`: feedback of the target kind had come, whatever its value. `elapsed_ms` is how much feedback time after its exposure
    the row's label was looked at (of a correction: when its early row left).
    `positive_rate` and `positives_come_by` are p and F(elapsed_ms) of joiner/delay.py at that time; `weight_fake_negative` and
    `weight_fsiw` the weights that follow from them. In rows with their final label (`window`, `idle`, `positive`) F and both weights
    are 1. Before a positive is known of, p is 0, F 0 in rows that left at once and 1 in rows that waited, and every row weighs 1.
    `log_odds_correction` is the logarithm of the share of negatives that were kept: added to the log-odds learned from these rows
    it gives those of the traffic.
    """
    samples = sample_schema(kinds)
    return pa.schema(
        [
            *samples,
            pa.field("is_positive", pa.bool_(), nullable=False),
            pa.field("elapsed_ms", pa.int64(), nullable=False),
            pa.field("positive_rate", pa.float32(), nullable=False),
            pa.field("positives_come_by", pa.float32(), nullable=False),
            pa.field("weight_fake_negative", pa.float32(), nullable=False),
            pa.field("weight_fsiw", pa.float32(), nullable=False),
            pa.field("log_odds_correction", pa.float32(), nullable=False),
        ],
        metadata={**samples.metadata, b"headrace.schema": b"pointwise-samples", b"headrace.version": b"%d" % VERSION},
    )
