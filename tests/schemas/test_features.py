"""The preprocessing that a specification generates: states and messages become the same columns, and wrong ones are refused by name."""

import json
import math
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import id_hash
from schemas.action import spec_hash
from schemas.features import (
    BinarySequenceFeature,
    CrossFeature,
    DenseFeature,
    FeatureSpec,
    IdFeature,
    MultiIdFeature,
    SequenceFeature,
    VectorFeature,
    WrongStateError,
    differences,
)
from schemas.message_reader import READ_ERRORS, MessageReader, text_lists
from schemas.state_columns import StateColumns
from schemas.state_reader import StateReader

SPEC = FeatureSpec(
    dense=(
        DenseFeature(name="x"),
        DenseFeature(name="y", default=0.5),
        DenseFeature(name="log_x", source="x", normalisation="log_zscore"),
        DenseFeature(name="share", normalisation="none"),
        DenseFeature(name="age", default=math.nan),
        DenseFeature(name="log_age", source="age", default=math.nan, normalisation="log_zscore"),
        DenseFeature(name="width", source="device.screen.width", default=7.0),
    ),
    ids=(
        IdFeature(name="city", buckets=16),
        IdFeature(name="seller", table="dynamic", default="nobody"),
        IdFeature(name="tab", buckets=7, default="home"),
        IdFeature(name="os", source="device.os", buckets=9),
    ),
    multi_ids=(MultiIdFeature(name="tags", length=2, buckets=9), MultiIdFeature(name="tag_rows", source="tags", length=2, table="dynamic")),
    sequences=(
        SequenceFeature(name="recent", length=3, buckets=32),
        SequenceFeature(name="bought", length=2, buckets=5, default=("none",)),
        SequenceFeature(name="apps", source="device.apps", length=2, buckets=5),
    ),
    binary_sequences=(BinarySequenceFeature(name="habit", windows=("1h", "1d"), digits=3),),
    crosses=(
        CrossFeature(name="city_habit", of=("city", "habit"), buckets=50),
        CrossFeature(name="seller_tab", of=("seller", "tab"), buckets=50),
    ),
    vectors=(VectorFeature(name="text", size=2, normalisation="l2"),),
)
FULL = {
    "x": 1.5,
    "y": 2,
    "share": 0.25,
    "age": 41,
    "city": "hz",
    "seller": "s-1",
    "tab": "",
    "tags": ["a", "b", "c"],
    "recent": ["a", "b", "c", "d"],
    "bought": ["", "é"],
    "habit": "02",
    "text": [3.0, 4.0],
    "device": {"os": "ios", "apps": ["a"], "screen": {"width": 4, "unread": None}, "unread": [{}]},
}


def bucket(value: str, buckets: int) -> int:
    return 1 + crc32(value.encode()) % (buckets - 1) if value else 0


def key(value: str) -> int:
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little") >> 1 if value else 0


def crossed_by_hand(numbers: list[int], buckets: int) -> int:
    """The definition of `id_hash.crossed` with Python's integers."""
    if -1 in numbers:
        return 0
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 32
    return 1 + (mixed >> 1) % (buckets - 1)


def by_hand(state: dict[str, Any]) -> dict[str, list[float]]:
    """The columns of one state, written out."""
    x, y, age = float(state.get("x", 0.0)), float(state.get("y", 0.5)), float(state.get("age", math.nan))
    city, seller, tab = state.get("city", ""), state.get("seller", "nobody"), state.get("tab", "home")
    habit = state.get("habit", "")
    code = int(habit[0]) * 3 + int(habit[1]) if habit else -1
    device: dict[str, Any] = state.get("device", {})
    width = float(device.get("screen", {}).get("width", 7.0))
    numbers = [crc32(value.encode()) if value else -1 for value in (city, seller, tab)]
    crosses = [crossed_by_hand([numbers[0], code], 50), crossed_by_hand(numbers[1:], 50)]
    text = state.get("text", [0.0, 0.0])
    length = math.hypot(*text) or 1.0
    made = {
        "dense": [x, y, math.copysign(math.log1p(abs(x)), x), age, math.copysign(math.log1p(abs(age)), age), width],
        "ids": [bucket(city, 16), bucket(tab, 7), bucket(device.get("os", ""), 9), code + 1, *crosses],
        "plain": [float(state.get("share", 0.0)), text[0] / length, text[1] / length],
    }
    for name, size, buckets, default in (("tags", 2, 9, []), ("recent", 3, 32, []), ("bought", 2, 5, ["none"])):
        newest = [bucket(value, buckets) for value in state.get(name, default)[-size:]]
        made[f"seq_{name}"] = [0] * (size - len(newest)) + newest
    apps = [bucket(value, 5) for value in device.get("apps", [])[-2:]]
    tags = [key(value) for value in state.get("tags", [])[-2:]]
    return {**made, "seq_apps": [0] * (2 - len(apps)) + apps, "seq_tag_rows": [0] * (2 - len(tags)) + tags, "seq_seller": [key(seller)]}


def assert_rows_equal(columns: StateColumns, states: list[dict[str, object]]) -> None:
    expected = [by_hand(state) for state in states]
    inputs = columns.inputs()
    read = [entry for entry in SPEC.inputs() if not entry.name.startswith("rows_")]
    assert {entry.name: entry.width for entry in read} == {name: column.shape[1] for name, column in inputs.items()}
    for entry in read:
        assert inputs[entry.name].dtype == entry.type
        dtype = np.int64 if entry.type == "int64" else np.float64
        made = np.array([row[entry.name] for row in expected], dtype).reshape(len(states), entry.width)
        np.testing.assert_allclose(inputs[entry.name], made, rtol=1e-7 if dtype is np.float64 else 0, atol=1e-45)


NUMBERS = st.floats(-3e38, 3e38) | st.integers(-(2**60), 2**60)
IDS = st.text(st.characters(codec="utf-8"), max_size=3) | st.just("x" * 100) | st.just('","')
CODES = st.sampled_from(["", "00", "01", "12", "22"])
NEAR = st.floats(1e-3, 1e3) | st.just(0.0)
STATES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "x": NUMBERS,
            "y": NUMBERS,
            "share": NUMBERS,
            "age": NUMBERS,
            "city": IDS,
            "seller": IDS,
            "tab": IDS,
            "tags": st.lists(IDS, max_size=4),
            "recent": st.lists(IDS, max_size=5),
            "bought": st.lists(IDS),
            "habit": CODES,
            "text": st.lists(NEAR, min_size=2, max_size=2),
            "device": st.fixed_dictionaries(
                {},
                optional={
                    "os": IDS,
                    "apps": st.lists(IDS, max_size=3),
                    "screen": st.fixed_dictionaries({}, optional={"width": NUMBERS, "not read": NUMBERS}),
                    "not read": st.none() | IDS,
                },
            ),
            "not read": NUMBERS,
            "device.os": NUMBERS,
        },
    ),
    max_size=6,
)


def message(state: dict[str, object], **layout: object) -> bytes:
    return json.dumps({"request_id": "r", "state": state, "action": [1.0], "propensity": 0.5, "items": []}, **layout).encode()


@given(STATES)
def test_columns_are_those_written_out_by_hand(states: list[dict[str, object]]) -> None:
    assert_rows_equal(StateReader(SPEC).columns(states), states)


@given(STATES, st.booleans(), st.booleans())
def test_messages_give_the_same_bits_as_the_states_in_them(states: list[dict[str, object]], compact: bool, ascii_only: bool) -> None:
    separators = (",", ":") if compact else None
    served = MessageReader(SPEC).read([message(state, separators=separators, ensure_ascii=ascii_only) for state in states])
    expected = StateReader(SPEC).columns(states).inputs()
    read = served.states.inputs()
    assert {name: column.tobytes() for name, column in read.items()} == {name: column.tobytes() for name, column in expected.items()}
    assert served.actions == [[1.0]] * len(states)


def test_messages_that_name_their_features_in_other_orders_are_read_alike() -> None:
    reader = MessageReader(SPEC)
    expected = reader.read([message(FULL)]).states.inputs()
    for shift in range(len(FULL)):
        names = [*FULL][shift:] + [*FULL][:shift]
        shuffled = reader.read([message({name: FULL[name] for name in reversed(names)}), message(FULL)]).states.inputs()
        for name, column in expected.items():
            assert shuffled[name].tolist() == [*column.tolist()] * 2


def test_shapes_and_types_hold_without_states_and_without_features_of_a_kind() -> None:
    only_ids = FeatureSpec(ids=(IdFeature(name="city"),))
    for count in (0, 2):
        for columns in (StateReader(only_ids).columns([FULL] * count), MessageReader(only_ids).read([message(FULL)] * count).states):
            assert (columns.dense.shape, columns.plain.shape, columns.ids.shape) == ((count, 0), (count, 0), (count, 1))
            assert (columns.dense.dtype, columns.plain.dtype, columns.ids.dtype) == (np.float32, np.float32, np.int64)
            assert columns.sequences == {}
    for columns in (StateReader(SPEC).columns([]), MessageReader(SPEC).read([]).states):
        assert_rows_equal(columns, [])


WRONG = [
    ("x", "1.5", "feature x: expected a finite number, got '1.5'"),
    ("y", float("nan"), "feature y: expected a finite number, got nan"),
    ("y", float("-inf"), "feature y: expected a finite number, got -inf"),
    ("y", 3.5e38, "feature y: expected a finite number, got 3.5e+38"),
    ("x", 10**400, "feature x: expected a finite number, got 1000"),
    ("x", None, "feature x: expected a finite number, got None"),
    ("x", ["a"], "feature x: expected a finite number"),
    ("age", "41", "feature age: expected a finite number, got '41'"),
    ("age", float("inf"), "feature age: expected a finite number, got inf"),
    ("age", -3.5e38, "feature age: expected a finite number, got -3.5e+38"),
    ("city", 3.0, "feature city: expected a string, got 3.0"),
    ("seller", 7.0, "feature seller: expected a string, got 7.0"),
    ("tab", ["a"], "feature tab: expected a string, got "),
    ("recent", "abc", "feature recent: expected a list of strings, got 'abc'"),
    ("recent", ["a", 1.0], "feature recent: expected a string, got 1.0"),
    ("bought", ["a", None], "feature bought: expected a string, got None"),
    ("tags", [2.0], "feature tags: expected a string, got 2.0"),
    ("habit", "0", "feature habit: expected 2 digits below 3, one a window, got '0'"),
    ("habit", "03", "feature habit: expected 2 digits below 3, one a window, got '03'"),
    ("habit", "\u0660\u0661", "feature habit: expected 2 digits below 3"),
    ("habit", 2.0, "feature habit: expected a string, got 2.0"),
    ("device", "ios", "feature width: expected an object at 'device', got 'ios'"),
    ("device", None, "feature width: expected an object at 'device', got None"),
    ("device", {"screen": [4.0]}, "feature width: expected an object at 'device.screen', got [4.0]"),
    ("device", {"screen": {"width": "4"}}, "feature width: expected a finite number, got '4'"),
    ("device", {"os": None}, "feature os: expected a string, got None"),
    ("device", {"os": {"name": "ios"}}, "feature os: expected a string, got {'name': 'ios'}"),
    ("device", {"apps": "a"}, "feature apps: expected a list of strings, got 'a'"),
    ("city", {"name": "hz"}, "feature city: expected a string, got {'name': 'hz'}"),
    ("text", [1.0], "feature text: expected 2 numbers, got 1"),
    ("text", ["a", "b"], "feature text: expected a list of finite numbers"),
    ("text", [1.0, float("inf")], "feature text: expected a list of finite numbers"),
    ("text", 1.0, "feature text: expected a list of finite numbers, got 1.0"),
]
IDS_OF_WRONG = [f"{name}={value!r:.12}" for name, value, _ in WRONG]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG, ids=IDS_OF_WRONG)
@pytest.mark.parametrize("others", [0, 3])
def test_a_wrong_value_is_refused_by_its_feature_s_name(name: str, value: object, expected: str, others: int) -> None:
    with pytest.raises(WrongStateError) as refused:
        StateReader(SPEC).columns([FULL] * others + [{**FULL, name: value}])
    assert str(refused.value).startswith(expected)


NOT_JSON = (float("nan"), float("-inf"), 10**400, None)


@pytest.mark.parametrize(("name", "value", "expected"), WRONG, ids=IDS_OF_WRONG)
def test_a_message_with_a_wrong_value_is_refused_alone_and_by_its_feature_s_name(name: str, value: object, expected: str) -> None:
    reader, wrong = MessageReader(SPEC), message({**FULL, name: value})
    with pytest.raises(READ_ERRORS):
        reader.read([message(FULL), wrong])
    assert reader.why_not(message(FULL)) is None
    why = reader.why_not(wrong)
    if isinstance(why, WrongStateError):
        assert str(why).startswith(expected)
    else:  # it is no state of any specification
        assert isinstance(why, READ_ERRORS)
        assert any(repr(each) in repr(value) for each in NOT_JSON) or "inf" in repr(value)


def test_a_number_without_a_default_is_missing_in_states_and_in_messages() -> None:
    spec = FeatureSpec(dense=(DenseFeature(name="x"), DenseFeature(name="y", default=math.nan)))
    states = [{"x": 1.0}, {"y": 2.0}, {}]
    expected = np.array([[1.0, np.nan], [0.0, 2.0], [0.0, np.nan]], np.float32)
    np.testing.assert_array_equal(StateReader(spec).columns(states).dense, expected)
    np.testing.assert_array_equal(MessageReader(spec).read([message(state) for state in states]).states.dense, expected)


def test_a_state_with_a_missing_number_is_not_blamed_for_another_one_of_the_batch() -> None:
    with pytest.raises(WrongStateError, match="feature x: expected a finite number, got nan"):
        StateReader(SPEC).columns([{"age": math.nan}, {}, {"x": math.nan}])
    reader = MessageReader(SPEC)
    assert (reader.why_not(message({})), str(reader.why_not(message({"x": "1"})))[:9]) == (None, "feature x")


def test_a_specification_with_a_number_without_a_default_is_the_same_once_written_and_read() -> None:
    written = SPEC.model_dump(mode="json")
    assert written["dense"][4]["default"] == "nan"
    for read in (FeatureSpec.model_validate_json(SPEC.model_dump_json()), FeatureSpec.model_validate(json.loads(json.dumps(written)))):
        assert math.isnan(read.dense[4].default)
        assert read.model_dump(mode="json") == written
        assert spec_hash(read) == spec_hash(SPEC)
    filled = FeatureSpec(dense=(*SPEC.dense[:4], DenseFeature(name="age", default=30.0)))
    assert differences(written, filled).startswith("dense log_age is gone; dense width is gone; dense age had default 'nan' (now 30.0); ")


def test_a_wrong_id_older_than_the_sequence_is_long_is_not_looked_at() -> None:
    state = {**FULL, "recent": [7.0, "b", "c", "d"]}
    assert_rows_equal(StateReader(SPEC).columns([state]), [FULL])
    assert_rows_equal(MessageReader(SPEC).read([message(state)]).states, [FULL])


MALFORMED = [
    ({}, "at least one feature"),
    ({"dense": [{"name": "x"}], "ids": [{"name": "x"}]}, "features named twice: x"),
    ({"ids": [{"name": "x", "table": "magic"}]}, "Input should be 'hash' or 'dynamic'"),
    ({"dense": [{"name": "x"}], "ids": [{"name": "y", "source": "x"}]}, "'x' of a state is read by x as a number, y as a string"),
    ({"dense": [{"name": "x"}, {"name": "y", "source": "x", "default": 1.0}]}, "'x' of a state has two defaults, of x and of y"),
    ({"dense": [{"name": "x"}, {"name": "y", "source": "x", "default": "nan"}]}, "'x' of a state has two defaults, of x and of y"),
    ({"dense": [{"name": "x", "source": "a..b"}]}, "feature x: 'a..b' is no path: expected names with one dot between them"),
    (
        {"dense": [{"name": "x", "source": "device.screen.width"}], "ids": [{"name": "device.screen"}]},
        "'device.screen' of a state is read by x as an object, device.screen as a string",
    ),
    ({"dense": [{"name": "x", "default": "inf"}]}, "a finite number, or nan for a value that may be missing"),
    ({"dense": [{"name": "x", "default": "nan", "normalisation": "none"}]}, "a number that passes as it is needs a default"),
    ({"crosses": [{"name": "c", "of": ["a", "b"]}]}, "feature c crosses 'a', which is none of"),
    ({"ids": [{"name": "a"}], "crosses": [{"name": "c", "of": ["a"]}]}, "at least 2 items"),
    ({"binary_sequences": [{"name": "b", "windows": ["1y"]}]}, "window '1y': expected a number and one of s, m, h, d, w"),
    ({"binary_sequences": [{"name": "b", "windows": ["1d", "24h"]}]}, "windows must grow, got 1d, 24h"),
    ({"binary_sequences": [{"name": "b", "digits": 10, "windows": [f"{n}h" for n in range(1, 9)]}]}, "more than 16777216 codes"),
    ({"sequences": [{"name": "s", "pooling": "lstm"}]}, "'cnn' or 'attention'"),
    ({"vectors": [{"name": "v"}]}, "Field required"),
]


@pytest.mark.parametrize(("spec", "why"), MALFORMED, ids=[why for _, why in MALFORMED])
def test_a_specification_that_makes_no_sense_is_refused(spec: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        FeatureSpec.model_validate(spec)


def test_the_difference_of_two_specifications_is_told_by_feature() -> None:
    made_with = SPEC.model_dump(mode="json")
    assert differences(made_with, SPEC) == "no feature"
    other = FeatureSpec(dense=SPEC.dense[1:], ids=(SPEC.ids[0].model_copy(update={"buckets": 99}), IdFeature(name="new")))
    told = differences(made_with, other)
    assert "dense x is gone" in told
    assert "ids city had buckets 16 (now 99)" in told
    assert "ids new is new" in told
    assert "vectors text is gone" in told
    swapped = FeatureSpec(dense=(SPEC.dense[1], SPEC.dense[0]))
    assert differences(FeatureSpec(dense=SPEC.dense[:2]).model_dump(mode="json"), swapped) == "dense stood in another order"


def test_the_memory_of_ids_is_bounded_and_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = id_hash._IdHashes(lambda value: crc32(value.encode()))
    monkeypatch.setattr(id_hash._IdHashes, "ENTRIES", 10)
    names = [f"i-{number % 23}" for number in range(100)] + ["", "x" * 65]
    assert [hashes[name] for name in names] == [crc32(name.encode()) if name else -1 for name in names]
    assert len(hashes) <= 10
    assert "x" * 65 not in hashes


def test_a_column_of_ids_has_the_numbers_of_its_ids_one_by_one() -> None:
    texts = ["", *("x" * length for length in range(1, 70)), *(chr(200 + number) * number for number in range(40)), "b" * 500, None]
    column = pa.array(["not looked at", *texts, *reversed(texts)]).slice(1)
    expected = [crc32(text.encode()) if text else -1 for text in [*texts, *reversed(texts)]]
    assert id_hash.crcs_of_column(column).tolist() == expected
    assert id_hash.crcs_of_column(pa.array(["", None], pa.string())).tolist() == [-1, -1]
    assert id_hash.crcs_of_column(pa.array([], pa.string())).tolist() == []


LISTS = [
    [b'["a","b"]', b"[]", b'[""]', b'["","c"]', b'["d"]'],
    [b"[]", b"[]"],
    [],
    [b'["a", "b"]', b'[ "c" ]', b"[ ]"],
    [b'["\\u0061","\\""]', b'["b"]'],
    [b'["a,","]b["]', b'[","]'],
    ['["é","中"]'.encode(), b'["a"]'],
]


@pytest.mark.parametrize("lists", LISTS)
def test_lists_of_ids_are_taken_apart_as_a_json_decoder_does(lists: list[bytes]) -> None:
    values, lengths, _ = text_lists(lists, 9)
    opened = [json.loads(ids) for ids in lists]
    assert values.to_pylist() == [value for ids in opened for value in ids]
    assert lengths.tolist() == [len(ids) for ids in opened]


@pytest.mark.parametrize("wrong", [b"5", b'""', b"{}", b'"a","b"', b'[["a"]]', b'["a",["b"]]', b'["a",{"b":"c"}]', b"null", b'["\xff"]'])
@pytest.mark.parametrize("others", [[], [b'["a"]'], [b"[]"]])
def test_what_is_no_list_of_ids_is_refused_among_others(wrong: bytes, others: list[bytes]) -> None:
    for lists in ([wrong, *others], [*others, wrong]):
        with pytest.raises(READ_ERRORS):
            text_lists(lists, 9)
    with pytest.raises(TypeError):
        text_lists([b'["a",1.0]', b'["b"]'], 9)
