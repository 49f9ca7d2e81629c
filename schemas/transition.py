"""A transition: one instance <s, a, r, s', done, gamma> of a page in its session. Transitions travel as Arrow record batches."""

import pyarrow as pa

VERSION = 3
"""1 had one-step instances alone, without `instance`, `return`, `discount`, propensity, bucket, revision and lineage; 2 had no
`feedback_offsets`."""


def reward_column(kind: str) -> str:
    """The column with the part of the reward that a kind of feedback earned."""
    return f"reward_{kind}"


def transition_schema(kinds: tuple[str, ...]) -> pa.Schema:
    """Columns of a transition batch whose reward is made of `kinds`.

    `instance` is `td1`, `td<n>` or `mc`. `return` is sum_k gamma^k r_k over the page and the `n_steps` - 1 after it, `discount` is
    gamma^n_steps, `next_exposure` the page after those: the target is return + discount * V(s'), and the return alone where `done`.
    A `td1` has its own reward as return; an `mc` goes to the session's end.

    `reward` is this page's: exactly the sum of the `reward_*` and `penalty_*` columns (penalties are zero or negative). `ends_session`
    says that no page follows it in its session. `exposure` and `next_exposure` are unopened messages; `propensity` and `bucket` are
    the exposure's. `transition_id` names page and instance: the same however often it is delivered. A row with `revision` 1 takes the
    place of the one with 0. Where it comes from: the exposure at (exposures, source_partition, source_offset), the samples at
    (samples, source_partition, samples_offset), and the feedback that its own `reward` is made of at (feedback, source_partition, each
    of `feedback_offsets`), in their order.
    """
    return pa.schema(
        [
            pa.field("transition_id", pa.string(), nullable=False),
            pa.field("instance", pa.string(), nullable=False),
            pa.field("revision", pa.int32(), nullable=False),
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("session_id", pa.string(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("ts_ms", pa.int64(), nullable=False),
            pa.field("policy", pa.string(), nullable=False),
            pa.field("model_version", pa.string(), nullable=False),
            pa.field("bucket", pa.string(), nullable=False),
            pa.field("propensity", pa.float64(), nullable=False),
            pa.field("reward", pa.float32(), nullable=False),
            *(pa.field(reward_column(kind), pa.float32(), nullable=False) for kind in kinds),
            pa.field("penalty_no_conversion", pa.float32(), nullable=False),
            pa.field("penalty_left", pa.float32(), nullable=False),
            pa.field("n_steps", pa.int32(), nullable=False),
            pa.field("return", pa.float32(), nullable=False),
            pa.field("discount", pa.float32(), nullable=False),
            pa.field("done", pa.bool_(), nullable=False),
            pa.field("ends_session", pa.bool_(), nullable=False),
            pa.field("feedback_count", pa.int32(), nullable=False),
            pa.field("feedback_arrival_ms", pa.int64()),
            pa.field("source_partition", pa.int32(), nullable=False),
            pa.field("source_offset", pa.int64(), nullable=False),
            pa.field("samples_offset", pa.int64(), nullable=False),
            pa.field("feedback_offsets", pa.list_(pa.int64()), nullable=False),
            pa.field("exposure", pa.binary(), nullable=False),
            pa.field("next_exposure", pa.binary()),
        ],
        metadata={"headrace.schema": "transitions", "headrace.version": str(VERSION), "headrace.kinds": ",".join(kinds)},
    )
