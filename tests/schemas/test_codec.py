import json

import msgspec
import pyarrow as pa
import pytest

from schemas import exposure, feedback
from schemas.codec import (
    UNREADABLE,
    WrongBatchError,
    batch_kinds,
    decode_batch,
    decode_exposure_key,
    decode_feedback,
    decode_served_state,
    encode_batch,
    encode_json,
)
from schemas.exposure import Exposure
from schemas.sample import sample_schema
from schemas.transition import transition_schema

SHOWN = json.loads(encode_json(exposure.EXAMPLE))
REACTED = json.loads(encode_json(feedback.EXAMPLE))
ITEM = SHOWN["items"][0]
decode_exposure = msgspec.json.Decoder(Exposure).decode


def test_an_exposure_comes_back_as_it_was_sent():
    assert decode_exposure(encode_json(exposure.EXAMPLE)) == exposure.EXAMPLE


def test_a_feedback_comes_back_as_it_was_sent():
    assert decode_feedback(encode_json(feedback.EXAMPLE)) == feedback.EXAMPLE


def test_the_join_key_and_the_served_state_are_parts_of_the_same_exposure():
    encoded = encode_json(exposure.EXAMPLE)
    key, served = decode_exposure_key(encoded), decode_served_state(encoded)
    assert (key.request_id, key.user_id, key.ts_ms, key.policy, key.model_version) == (
        "r-7",
        "u-42",
        1_700_000_000_000,
        "fusion",
        "fusion-000012",
    )
    assert [(item.item_id, item.position, json.loads(bytes(item.scores))) for item in key.items] == [
        ("i-3", 0, {"click": 0.21, "pay": 0.02})
    ]
    assert (served.state, served.action, served.propensity) == (SHOWN["state"], [1.1], 0.8)


def test_an_exposure_may_leave_out_what_has_a_default():
    optional = {"version", "scene", "policy", "model_version", "propensity"}
    encoded = json.dumps({name: value for name, value in SHOWN.items() if name not in optional}).encode()
    assert decode_exposure(encoded).policy == decode_exposure_key(encoded).policy == "baseline"
    assert decode_served_state(encoded).propensity == 1.0


# name, wrong exposure, what the key's decoder says (None: it leaves the value unopened), what the whole decoder says
WRONG_EXPOSURES = [
    ("no JSON", b"page", "malformed", "malformed"),
    ("cut short", json.dumps(SHOWN).encode()[:-1], "truncated", "truncated"),
    ("no object", b"[]", "Expected `object`", "Expected `object`"),
    ("not UTF-8", json.dumps(SHOWN).encode().replace(b"u-42", b"\xff\xfe"), "utf-8|UTF-8", "utf-8|UTF-8"),
    ("unknown field", SHOWN | {"colour": "red"}, "unknown field `colour`", "unknown field `colour`"),
    ("unknown field of an item", SHOWN | {"items": [ITEM | {"price": 1}]}, "unknown field `price`", "unknown field `price`"),
    ("missing field", {k: v for k, v in SHOWN.items() if k != "user_id"}, "missing required field `user_id`", "`user_id`"),
    ("empty id", SHOWN | {"request_id": ""}, "length >= 1", "length >= 1"),
    ("long id", SHOWN | {"user_id": "u" * 257}, "length <= 256", "length <= 256"),
    ("id of the wrong type", SHOWN | {"request_id": 7}, "Expected `str`, got `int`", "Expected `str`, got `int`"),
    ("time as text", SHOWN | {"ts_ms": "now"}, "Expected `int`, got `str`", "Expected `int`, got `str`"),
    ("time with a fraction", SHOWN | {"ts_ms": 1.5}, "Expected `int`, got `float`", "Expected `int`, got `float`"),
    ("negative time", SHOWN | {"ts_ms": -1}, "`int` >= 0", "`int` >= 0"),
    ("time in nanoseconds", SHOWN | {"ts_ms": 1_700_000_000_000_000_000}, "`int` <= 253402300799999", "`int` <= 253402300799999"),
    ("no items", SHOWN | {"items": []}, "length >= 1", "length >= 1"),
    ("another version", SHOWN | {"version": 2}, "Invalid enum value 2", "Invalid enum value 2"),
    ("NaN in a score", SHOWN | {"items": [ITEM | {"scores": {"click": float("nan")}}]}, "malformed", "malformed"),
    ("NaN in the state", SHOWN | {"state": {"hour": float("nan")}}, "malformed", "malformed"),
    ("infinite action", SHOWN | {"action": [float("inf")]}, "malformed", "malformed"),
    ("action as text", SHOWN | {"action": ["much"]}, None, "Expected `float`, got `str`"),
    ("propensity zero", SHOWN | {"propensity": 0.0}, None, "`float` > 0.0"),
    ("a list of objects in the state", SHOWN | {"state": {"city": [{"name": "hz"}]}}, None, "Expected `float | str`"),
    ("no value in the state", SHOWN | {"state": {"city": None}}, None, "Expected `float | str | "),
]


@pytest.mark.parametrize(("wrong", "of_key", "of_all"), [case[1:] for case in WRONG_EXPOSURES], ids=[case[0] for case in WRONG_EXPOSURES])
def test_a_wrong_exposure_is_refused_with_the_reason(wrong, of_key, of_all):
    encoded = wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode()
    with pytest.raises(UNREADABLE, match=of_all):
        decode_exposure(encoded)
    if of_key is None:
        assert decode_exposure_key(encoded).request_id == "r-7"
        with pytest.raises(UNREADABLE, match=of_all.replace("|", r"\|")):
            decode_served_state(encoded)
    else:
        with pytest.raises(UNREADABLE, match=of_key):
            decode_exposure_key(encoded)


WRONG_FEEDBACK = [
    ("no JSON", b"", "truncated"),
    ("two messages", json.dumps(REACTED).encode() * 2, "trailing characters"),
    ("unknown field", REACTED | {"page": 1}, "unknown field `page`"),
    ("missing kind", {k: v for k, v in REACTED.items() if k != "kind"}, "missing required field `kind`"),
    ("empty kind", REACTED | {"kind": ""}, "length >= 1"),
    ("null item", REACTED | {"item_id": None}, "Expected `str`, got `null`"),
    ("value as text", REACTED | {"value": "1"}, "Expected `float`, got `str`"),
    ("NaN value", REACTED | {"value": float("nan")}, "malformed"),
    ("value beyond a double", json.dumps(REACTED).replace('"value": 1.0', '"value": 1e400').encode(), "out of range"),
    ("boolean time", REACTED | {"ts_ms": True}, "Expected `int`, got `bool`"),
    ("another version", REACTED | {"version": 0}, "Invalid enum value 0"),
]


@pytest.mark.parametrize(("wrong", "reason"), [case[1:] for case in WRONG_FEEDBACK], ids=[case[0] for case in WRONG_FEEDBACK])
def test_a_wrong_feedback_is_refused_with_the_reason(wrong, reason):
    with pytest.raises(UNREADABLE, match=reason):
        decode_feedback(wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode())


@pytest.mark.parametrize(("name", "schema"), [("samples", sample_schema(("click", "pay"))), ("transitions", transition_schema(()))])
def test_a_batch_comes_back_with_its_watermark_and_kinds(name, schema):
    batch = schema.empty_table().to_batches() or [pa.RecordBatch.from_pylist([], schema=schema)]
    decoded, watermark_ms = decode_batch(encode_batch(batch[0], -5), name)
    assert decoded.schema.equals(schema)
    assert (watermark_ms, batch_kinds(decoded.schema)) == (-5, batch_kinds(schema))


def test_a_batch_of_another_topic_is_refused_by_name():
    message = encode_batch(pa.RecordBatch.from_pylist([], schema=sample_schema(())), 0)
    with pytest.raises(WrongBatchError, match="expected a batch of transitions version 3, got samples version 2"):
        decode_batch(message, "transitions")


@pytest.mark.parametrize("message", [b"", b"{}", encode_batch(pa.RecordBatch.from_pylist([], schema=sample_schema(())), 0)[:100]])
def test_bytes_that_are_no_batch_are_refused(message):
    with pytest.raises(WrongBatchError, match="not a record batch of samples"):
        decode_batch(message, "samples")
