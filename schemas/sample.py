"""A sample: one exposed item with its labels. Samples travel as Arrow record batches."""

import pyarrow as pa

VERSION = 2
"""1 had no `feedback_offsets`."""


def label_column(kind: str) -> str:
    """The column that holds the summed feedback of a kind."""
    return f"label_{kind}"


def sample_schema(kinds: tuple[str, ...]) -> pa.Schema:
    """Columns of a sample batch whose labels are `kinds`.

    The rows of one page are consecutive and all in one batch. `exposure` is the page's message, unopened; its rows share one
    dictionary value. `label_delay_ms` is the time from the exposure to its first feedback, null where there was none;
    `feedback_arrival_ms` the broker's time of the newest feedback; `left` marks every row of a page that the user left from.
    Where it comes from: the exposure at (exposures, source_partition, source_offset), and the feedback that counted, on the item or the
    page as a whole, at (feedback, source_partition, each of `feedback_offsets`), in their order.
    """
    return pa.schema(
        [
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("position", pa.int32(), nullable=False),
            pa.field("page_size", pa.int32(), nullable=False),
            pa.field("ts_ms", pa.int64(), nullable=False),
            pa.field("policy", pa.string(), nullable=False),
            pa.field("model_version", pa.string(), nullable=False),
            *(pa.field(label_column(kind), pa.float32(), nullable=False) for kind in kinds),
            pa.field("label_delay_ms", pa.int64()),
            pa.field("feedback_arrival_ms", pa.int64()),
            pa.field("left", pa.bool_(), nullable=False),
            pa.field("closed_by", pa.string(), nullable=False),
            pa.field("source_partition", pa.int32(), nullable=False),
            pa.field("source_offset", pa.int64(), nullable=False),
            pa.field("feedback_offsets", pa.list_(pa.int64()), nullable=False),
            pa.field("exposure", pa.dictionary(pa.int32(), pa.binary()), nullable=False),
        ],
        metadata={"headrace.schema": "samples", "headrace.version": str(VERSION), "headrace.kinds": ",".join(kinds)},
    )
