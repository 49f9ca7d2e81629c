"""A transition: one TD instance <s, a, r, s', done> of a session, one row a page. Transitions travel as Arrow record batches."""

import pyarrow as pa

VERSION = 1


def reward_column(kind: str) -> str:
    """The column with the part of the reward that a kind of feedback earned."""
    return f"reward_{kind}"


def transition_schema(kinds: tuple[str, ...]) -> pa.Schema:
    """Columns of a transition batch whose reward is made of `kinds`.

    `reward` is exactly the sum of the `reward_*` and `penalty_*` columns (penalties are zero or negative). `exposure` and
    `next_exposure` are the unopened messages of this page and the session's next one; the next is null where `done`.
    `transition_id` is the page's request_id: the same page gives the same id however often it is delivered.
    """
    return pa.schema(
        [
            pa.field("transition_id", pa.string(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("session_id", pa.string(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("ts_ms", pa.int64(), nullable=False),
            pa.field("policy", pa.string(), nullable=False),
            pa.field("model_version", pa.string(), nullable=False),
            pa.field("reward", pa.float32(), nullable=False),
            *(pa.field(reward_column(kind), pa.float32(), nullable=False) for kind in kinds),
            pa.field("penalty_no_conversion", pa.float32(), nullable=False),
            pa.field("penalty_left", pa.float32(), nullable=False),
            pa.field("done", pa.bool_(), nullable=False),
            pa.field("feedback_count", pa.int32(), nullable=False),
            pa.field("feedback_arrival_ms", pa.int64()),
            pa.field("source_partition", pa.int32(), nullable=False),
            pa.field("source_offset", pa.int64(), nullable=False),
            pa.field("exposure", pa.binary(), nullable=False),
            pa.field("next_exposure", pa.binary()),
        ],
        metadata={"headrace.schema": "transitions", "headrace.version": str(VERSION), "headrace.kinds": ",".join(kinds)},
    )
