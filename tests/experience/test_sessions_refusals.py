"""What the step refuses: messages and pages that cannot be used, each with a dead letter, and the stream goes on."""

import pyarrow as pa
import pytest
from experience_log import Life, Shown, message, record, sample_batch, transitions

from headrace.step import Count
from schemas.codec import encode_batch

CLICKED = ((1.0, 0.0), (0.0, 0.0))


def _without(name: str) -> bytes:
    batch = sample_batch([Shown("a", "u", 0)])
    return encode_batch(batch.drop_columns([name]), 0)


def _with_null() -> bytes:
    batch = sample_batch([Shown("a", "u", 0)])
    return encode_batch(batch.set_column(0, batch.schema.field(0), pa.array(["a", None])), 0)


def _with_metadata(**metadata: str) -> bytes:
    batch = sample_batch([Shown("a", "u", 0)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema.with_metadata({f"headrace.{key}": value for key, value in metadata.items()})) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


MALFORMED = [
    ("no Arrow stream", b"{}", "not a record batch of samples"),
    ("empty", b"", "not a record batch of samples"),
    ("cut short", message([Shown("a", "u", 0)], 0)[:-400], "not a record batch of samples"),
    (
        "another schema",
        _with_metadata(schema="transitions", version="1"),
        "expected a batch of samples version 2, got transitions version 1",
    ),
    ("another version", _with_metadata(schema="samples", version="1"), "got samples version 1"),
    ("no kinds", _with_metadata(schema="samples", version="2", watermark_ms="0"), "KeyError: b'headrace.kinds'"),
    ("no watermark", _with_metadata(schema="samples", version="2", kinds="click,pay"), "not a record batch of samples"),
    (
        "a watermark that is no number",
        _with_metadata(schema="samples", version="2", kinds="click,pay", watermark_ms="soon"),
        "not a record batch of samples: invalid literal for int()",
    ),
    ("kinds that are not the columns'", _with_metadata(schema="samples", version="2", kinds="like", watermark_ms="0"), "kinds like"),
    ("a column is missing", _without("ts_ms"), "columns are not those of samples"),
    ("a null where none may be", _with_null(), "column request_id has 1 nulls"),
]


@pytest.mark.parametrize(("value", "detail"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_a_message_that_is_no_batch_of_samples_is_a_dead_letter_and_the_stream_goes_on(value, detail):
    life = Life()
    outcome = life.deliver(record(4, value), record(5, message([Shown("b", "u", 1, left=True)], 2)), now_ms=99)
    assert [row["transition_id"] for row in transitions(outcome)] == ["b"]
    assert outcome.counts == {Count("in", "samples"): 3, Count("rejected", "malformed"): 1, Count("out", "transitions"): 1}
    (letter,) = outcome.dead_letters
    assert detail in letter.detail
    assert (
        letter.stage,
        letter.reason,
        letter.source_topic,
        letter.source_partition,
        letter.source_offset,
        letter.size_bytes,
        letter.ts_ms,
    ) == (("experience", "malformed", "samples", 3, 4, len(value), 99))


@pytest.mark.parametrize("label", [float("inf"), float("nan"), 3e38])
def test_a_page_whose_reward_would_not_be_a_number_is_refused_and_the_others_are_not(label):
    life = Life()
    outcome = life.deliver(record(0, message([Shown("a", "u", 0, ((0.0, label),)), Shown("b", "v", 0, left=True)], 1)))
    assert [row["transition_id"] for row in transitions(outcome)] == ["b"]
    assert outcome.counts[Count("rejected", "malformed")] == 1
    assert outcome.dead_letters[0].detail.startswith("page a earned (0.0, ")


def test_bytes_that_were_damaged_anywhere_never_stop_the_step():
    whole = message([Shown("a", "u", 0, CLICKED), Shown("b", "u", 1)], 2)
    for place in range(0, len(whole), 7):
        life = Life()
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        outcome = life.deliver(record(0, damaged))
        assert outcome.counts[Count("in", "samples")] == 4 or outcome.counts[Count("rejected", "malformed")] == 1
