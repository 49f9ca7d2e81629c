"""MessagePack and Avro events are the JSON message, or are refused; a schema that is not the message's is refused before."""

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import exposure, feedback
from schemas.avro import WrongSchemaError, avro_format, read_schema, shipped_schema
from schemas.codec import UNREADABLE, decode_feedback, encode_json
from schemas.event_format import event_format
from schemas.exposure import ExposedItem, Exposure
from schemas.feedback import Feedback

SHOWN, REACTED = msgspec.to_builtins(exposure.EXAMPLE), msgspec.to_builtins(feedback.EXAMPLE)
ITEM = SHOWN["items"][0]
EXAMPLES = settings(max_examples=200, deadline=None)
FORMATS = {
    (name, message): known
    for message in (Exposure, Feedback)
    for name, known in (("msgpack", event_format("msgpack", message)), ("avro", event_format("avro", message)))
    if known is not None
}
CONFLUENT = avro_format(Feedback, shipped_schema(Feedback), 7)

ids = st.text(min_size=1, max_size=6) | st.just("null")
numbers = st.floats(allow_nan=False, allow_infinity=False)
features = st.dictionaries(st.text(max_size=4), numbers | st.text(max_size=6) | st.lists(st.text(max_size=4), max_size=3), max_size=3)
times_ms = st.integers(0, 253_402_300_799_999)
items = st.builds(ExposedItem, ids, st.integers(0, 2**31 - 1), st.dictionaries(st.text(max_size=4), numbers, max_size=3), features=features)
exposures = st.builds(
    Exposure, request_id=ids, user_id=ids, ts_ms=times_ms, scene=st.text(max_size=4), policy=ids, model_version=st.text(max_size=4),
    state=features, action=st.lists(numbers, max_size=3), propensity=st.floats(0, exclude_min=True, allow_infinity=False),
    items=st.lists(items, min_size=1, max_size=3),
)  # fmt: skip
reactions = st.builds(
    Feedback, event_id=ids, request_id=ids, user_id=ids, item_id=st.text(max_size=4), ts_ms=times_ms, kind=ids, value=numbers
)


def test_json_is_left_alone():
    assert event_format("json", Exposure) is None


@EXAMPLES
@given(exposures | reactions)
def test_any_message_comes_back_from_either_format_as_the_same_json(message):
    encoded = encode_json(message)
    for name in ("msgpack", "avro"):
        known = FORMATS[name, type(message)]
        assert known.to_json(known.from_json(encoded)) == encoded, name


def test_what_other_libraries_write_is_the_message():
    """A map in any order without what has a default; Avro by the rules of its specification, written out by hand."""
    least = {name: SHOWN[name] for name in ("items", "state", "user_id", "ts_ms", "action", "request_id")}
    read = FORMATS["msgpack", Exposure].to_json(msgspec.msgpack.encode(least))
    assert msgspec.json.decode(read, type=Exposure) == msgspec.json.decode(encode_json(least), type=Exposure)

    by_hand = (
        b"\x02"
        + b"\x06e-1"
        + b"\x06r-7"
        + b"\x08u-42"
        + b"\x06i-3"
        + b"\xb8\xb7\xab\xfe\xf9b"
        + b"\x0aclick"
        + b"\0\0\0\0\0\0\xf0\x3f"
        + b"\0"
    )
    assert msgspec.json.decode(FORMATS["avro", Feedback].to_json(by_hand), type=Feedback) == feedback.EXAMPLE
    assert msgspec.json.decode(CONFLUENT.to_json(b"\0\0\0\0\x07" + by_hand), type=Feedback) == feedback.EXAMPLE
    assert CONFLUENT.from_json(encode_json(feedback.EXAMPLE)) == b"\0\0\0\0\x07" + by_hand


def packed(wrong: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(wrong)


WRONG_MSGPACK = [
    ("nothing", b"", "truncated"),
    ("cut short", packed(SHOWN)[:-1], "truncated"),
    ("one byte more", packed(SHOWN) + b"\xc0", "trailing characters"),
    ("JSON", encode_json(exposure.EXAMPLE), "Expected `object`, got `int`"),
    ("no map", packed([SHOWN]), "Expected `object`, got `array`"),
    ("a list of four thousand million", packed(SHOWN)[:1] + b"\xa6action\xdd\xff\xff\xff\xff", "truncated"),
    ("not UTF-8", packed(SHOWN).replace(b"u-42", b"\xff\xfe42"), "utf-8"),
    ("unknown field", packed(SHOWN | {"colour": "red"}), "unknown field `colour`"),
    ("unknown field of an item", packed(SHOWN | {"items": [ITEM | {"price": 1}]}), "unknown field `price`"),
    ("missing field", packed({k: v for k, v in SHOWN.items() if k != "user_id"}), "missing required field `user_id`"),
    ("empty id", packed(SHOWN | {"request_id": ""}), "length >= 1"),
    ("id as bytes", packed(SHOWN | {"request_id": b"r-7"}), "Expected `str`, got `bytes`"),
    ("nil", packed(SHOWN | {"scene": None}), "Expected `str`, got `None`"),
    ("a number as a feature's name", packed(SHOWN | {"state": {1: 1.0}}), "Expected `str`, got `int`"),
    ("time with a fraction", packed(SHOWN | {"ts_ms": 1.5}), "Expected `int`, got `float`"),
    ("an extension type", packed(SHOWN | {"action": [msgspec.msgpack.Ext(1, b"")]}), "Expected `float`, got `ext`"),
    ("NaN in the state", packed(SHOWN | {"state": {"hour": math.nan}}), r"got `null` - at `\$.state"),
    ("infinite action", packed(SHOWN | {"action": [1.0, -math.inf]}), r"got `null` - at `\$.action\[1\]`"),
    ("NaN in a score", packed(SHOWN | {"items": [ITEM | {"scores": {"click": math.nan}}]}), r"got `null` - at `\$.items\[0\].scores"),
    ("infinite propensity", packed(SHOWN | {"propensity": math.inf}), r"got `null` - at `\$.propensity`"),
    ("NaN as propensity", packed(SHOWN | {"propensity": math.nan}), "`float` > 0.0"),
    ("another version", packed(SHOWN | {"version": 2}), "Invalid enum value 2"),
    ("no items", packed(SHOWN | {"items": []}), "length >= 1"),
]


@pytest.mark.parametrize(("wrong", "reason"), [case[1:] for case in WRONG_MSGPACK], ids=[case[0] for case in WRONG_MSGPACK])
def test_wrong_messagepack_is_refused_with_the_reason(wrong, reason):
    with pytest.raises(UNREADABLE, match=reason):
        FORMATS["msgpack", Exposure].to_json(wrong)


def datum(event: dict[str, Any], message: type[msgspec.Struct] = Feedback, schema: Any = None) -> bytes:
    """As fastavro writes it, whatever is wrong with the values."""
    stream = BytesIO()
    fastavro.schemaless_writer(stream, schema or shipped_schema(message), event)
    return stream.getvalue()


WRONG_AVRO = [
    ("nothing", Feedback, b"", "malformed: truncated"),
    ("cut short", Feedback, datum(REACTED)[:-1], "malformed: truncated"),
    ("cut short in a number", Feedback, datum(REACTED)[:-2], "malformed: .*double"),
    ("one byte more", Feedback, datum(REACTED) + b"\0", "trailing characters .byte 39"),
    ("JSON", Feedback, encode_json(feedback.EXAMPLE), "malformed"),
    ("a text that ends behind the end", Feedback, b"\x02\xfe\xff\xff\xff\x0fe", "malformed: Expected 2147483647 bytes"),
    ("a text of negative length", Feedback, b"\x02\x01", "malformed: Expected -1 bytes"),
    ("not UTF-8", Feedback, datum(REACTED).replace(b"u-42", b"\xff\xfe42"), "utf-8"),
    ("a branch that the union does not have", Exposure, datum(SHOWN, Exposure).replace(b"\x08hour\x00", b"\x08hour\x08"), "malformed"),
    ("NaN", Feedback, datum(REACTED | {"value": math.nan}), r"Expected `float`, got `null` - at `\$.value`"),
    ("infinite action", Exposure, datum(SHOWN | {"action": [math.inf]}, Exposure), r"Expected `float`, got `null` - at `\$.action\[0\]`"),
]


@pytest.mark.parametrize(("message", "wrong", "reason"), [case[1:] for case in WRONG_AVRO], ids=[case[0] for case in WRONG_AVRO])
def test_wrong_avro_is_refused_with_the_reason(message, wrong, reason):
    with pytest.raises(UNREADABLE, match=reason):
        FORMATS["avro", message].to_json(wrong)


@EXAMPLES
@given(st.data())
def test_damaged_bytes_are_refused_or_are_still_json(data):
    """Whatever a decoder raises for them is one of UNREADABLE: nothing else may end the stage."""
    name, message = data.draw(st.sampled_from(sorted(FORMATS, key=str)))
    known = FORMATS[name, message]
    damaged = bytearray(known.from_json(encode_json(exposure.EXAMPLE if message is Exposure else feedback.EXAMPLE)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = known.to_json(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    except UNREADABLE:
        return
    msgspec.json.decode(read)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\0\0\0\0\x08", "written with schema id 8, expected is 7"),
        (b"\x01\0\0\0\x07", "no Confluent frame"),
        (b"", "no Confluent frame"),
    ],
)
def test_avro_of_another_schema_id_is_refused_and_not_misread(frame, reason):
    with pytest.raises(UNREADABLE, match=reason):
        CONFLUENT.to_json(frame + datum(REACTED))
    with pytest.raises(UNREADABLE, match="no Confluent frame"):
        CONFLUENT.to_json(b"")


def changed(message: type[msgspec.Struct], **types: Any) -> dict[str, Any]:
    """Our schema with other types for some fields, or without a field (None), or with one more."""
    schema = shipped_schema(message)
    ours = [field | {"type": types.pop(field["name"], field["type"])} for field in schema["fields"]]
    fields = [field for field in ours if field["type"] is not None]
    return schema | {"fields": [*fields, *({"name": name, "type": kind} for name, kind in types.items())]}


def record(**types: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Features", "fields": [{"name": name, "type": kind} for name, kind in types.items()]}


OWN_STATE = record(
    hour="float",
    city=["null", "string"],
    recent={"type": "array", "items": "string"},
    device={"type": "enum", "name": "D", "symbols": ["tv"]},
)
OWN_EXPOSURE = {
    "type": "record",
    "name": "Shown",
    "namespace": "shop.events",
    "fields": [
        {"name": "user_id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "request_id", "type": "string"},
        {"name": "ts_ms", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "scene", "type": ["null", "string"], "default": None},
        {"name": "state", "type": OWN_STATE},
        {"name": "action", "type": {"type": "array", "items": "float"}},
        {"name": "items", "type": {"type": "array", "items": {"type": "record", "name": "Item", "fields": [
            {"name": "item_id", "type": "string"}, {"name": "position", "type": "long"},
            {"name": "scores", "type": {"type": "map", "values": ["null", "double"]}},
            {"name": "features", "type": ["null", "Features"]},
        ]}}},
    ],
}  # fmt: skip
"""What a shop's own schema may look like: records for maps, nulls for what is not known, a type named twice, no field of ours too many."""


@pytest.fixture
def own(tmp_path: Path) -> Any:
    path = tmp_path / "shown.avsc"
    path.write_text(json.dumps(OWN_EXPOSURE))
    known = event_format("avro", Exposure, path)
    assert known is not None
    return known


def test_a_schema_of_ones_own_is_read_and_its_nulls_are_left_out(own):
    state = {"hour": 0.5, "city": None, "recent": ["i-1"], "device": "tv"}
    item = {"item_id": "i-1", "position": 0, "scores": {"click": 0.25, "pay": None}, "features": state}
    event = {
        "user_id": "u",
        "request_id": "r",
        "ts_ms": 5,
        "scene": None,
        "state": state,
        "action": [1.5],
        "items": [item, item | {"features": None}],
    }
    read = msgspec.json.decode(own.to_json(datum(event, schema=plain(OWN_EXPOSURE))), type=Exposure)
    features = {"hour": 0.5, "recent": ["i-1"], "device": "tv"}
    shown = ExposedItem("i-1", 0, {"click": 0.25}, features)
    assert read == Exposure(
        request_id="r", user_id="u", ts_ms=5, state=features, action=[1.5], items=[shown, ExposedItem("i-1", 0, {"click": 0.25})]
    )


def test_a_message_that_a_schema_has_no_place_for_is_not_written_in_part(own):
    with pytest.raises(UNREADABLE, match=r"no place for it: record contains more fields than the schema specifies: .*propensity"):
        own.from_json(encode_json(exposure.EXAMPLE))


@pytest.mark.parametrize(("kind", "value"), [("int", 0.5), ("int", 2e9 + 0.5), ("long", 1e30), ("float", 0.1), ("float", 1e300)])
def test_a_number_that_a_schema_cannot_hold_is_not_written_as_another(kind, value):
    schema = shipped_schema(Feedback)
    known = avro_format(Feedback, schema | {"fields": [*schema["fields"][:-1], {"name": "value", "type": kind}]}, None)
    assert decode_feedback(known.to_json(known.from_json(encode_json(REACTED)))) == feedback.EXAMPLE
    with pytest.raises(UNREADABLE, match="no place for it"):
        known.from_json(encode_json({**REACTED, "value": value}))


def plain(schema: Any) -> Any:
    """Without logical types, so that plain values can be given."""
    return json.loads(json.dumps(schema).replace('"logicalType"', '"was"'))


OBJECT = record(os=["null", "string"], sizes={"type": "map", "values": {"type": "array", "items": "int"}})
FITTING = {
    "ours": changed(Exposure),
    "nulls where the message has a default": changed(Exposure, scene=["null", "string"], propensity=["null", "double"]),
    "state of numbers": changed(Exposure, state={"type": "map", "values": "long"}),
    "state as a record": changed(Exposure, state=OWN_STATE),
    "objects in the state": changed(Exposure, state=record(device=OBJECT | {"name": "Device"})),
    "least": changed(Exposure, version=None, scene=None, policy=None, model_version=None, propensity=None),
}


@pytest.mark.parametrize("schema", FITTING.values(), ids=FITTING)
def test_a_schema_whose_data_are_the_message_fits(tmp_path, schema):
    (tmp_path / "x.avsc").write_text(json.dumps(schema))
    assert read_schema(tmp_path / "x.avsc", Exposure) == schema


MISFITS = [
    ("no JSON", "{", "no Avro schema: JSONDecodeError"),
    ("not UTF-8", b"\xff", "no Avro schema: UnicodeDecodeError"),
    ("empty", {}, "no Avro schema: KeyError"),
    ("too deep", "[" * 100_000, "no Avro schema: RecursionError"),
    ("an unknown type", changed(Exposure, scene="text"), "no Avro schema: UnknownType: headrace.text"),
    ("a field without a type", {"type": "record", "name": "a", "fields": [{"name": "b"}]}, "no Avro schema: SchemaParseException"),
    ("a map of nothing", changed(Exposure, state={"type": "map"}), "no Avro schema: KeyError"),
    ("no record", "\"string\"", "Exposure is string, expected is record"),
    ("a union", [changed(Exposure)], "it must be one record"),
    ("a missing field", changed(Exposure, user_id=None), "Exposure needs a field user_id"),
    ("a field too many", changed(Exposure, colour="string"), "Exposure has no field colour, only version, request_id, user_id, "),
    ("a null where there must be a value", changed(Exposure, user_id=["null", "string"]), "Exposure.user_id is null, expected is string"),
    ("nulls in a list", changed(Exposure, action={"type": "array", "items": ["null", "double"]}), r"Exposure.action\[\] is null"),
    ("bytes", changed(Exposure, request_id="bytes"), "Exposure.request_id is bytes, expected is string"),
    ("time in seconds", changed(Exposure, ts_ms="double"), "Exposure.ts_ms is double, expected is long"),
    (
        "time in microseconds", changed(Exposure, ts_ms={"type": "long", "logicalType": "timestamp-micros"}),
        "Exposure.ts_ms has the logical type timestamp-micros, allowed are timestamp-millis and uuid",
    ),
    (
        "a flag in the state", changed(Exposure, state=record(new="boolean")),
        "Exposure.state.new is boolean, expected is double or string or array",
    ),
    (
        "a flag in an object of the state", changed(Exposure, state=record(device=record(new="boolean") | {"name": "Device"})),
        "Exposure.state.device is record, expected is double or string or array",
    ),
    (
        "lists of booleans", changed(Exposure, state={"type": "map", "values": {"type": "array", "items": "boolean"}}),
        r"Exposure.state.\* is array, expected is double or string or array",
    ),
    (
        "a field too many in an item",
        changed(Exposure, items={"type": "array", "items": record(item_id="string", position="int", price="int")}),
        r"Exposure.items\[\] has no field price",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "reason"), [case[1:] for case in MISFITS], ids=[case[0] for case in MISFITS])
def test_a_schema_whose_data_would_not_be_the_message_is_refused_with_the_place(tmp_path, schema, reason):
    text = schema if isinstance(schema, str | bytes) else json.dumps(schema)
    (tmp_path / "x.avsc").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WrongSchemaError, match=reason) as error:
        read_schema(tmp_path / "x.avsc", Exposure)
    assert "\n" not in str(error.value)


def test_a_schema_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(WrongSchemaError, match="cannot be read: No such file"):
        read_schema(tmp_path / "none.avsc", Exposure)
