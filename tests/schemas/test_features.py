from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import features as features_module
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature, WrongStateError

SPEC = FeatureSpec(
    dense=(DenseFeature(name="x"), DenseFeature(name="y", default=0.5)),
    ids=(IdFeature(name="city", buckets=16), IdFeature(name="tab", buckets=7)),
    sequences=(SequenceFeature(name="recent", length=3, buckets=32), SequenceFeature(name="bought", length=2, buckets=5)),
)
FULL = {"x": 1.5, "y": 2, "city": "hz", "tab": "", "recent": ["a", "b", "c", "d"], "bought": ["", "é"]}


def bucket(value: str, buckets: int) -> int:
    return 1 + crc32(value.encode()) % (buckets - 1) if value else 0


def by_hand(state: dict[str, object]) -> tuple[list[float], list[int], list[int], list[int]]:
    """The columns of one state, written out."""
    lists = []
    for name, length, buckets in (("recent", 3, 32), ("bought", 2, 5)):
        newest = [bucket(value, buckets) for value in state.get(name, [])[-length:]]
        lists.append([0] * (length - len(newest)) + newest)
    dense = [float(np.float32(state.get("x", 0.0))), float(np.float32(state.get("y", 0.5)))]
    return dense, [bucket(state.get("city", ""), 16), bucket(state.get("tab", ""), 7)], lists[0], lists[1]


NUMBERS = st.floats(-3e38, 3e38) | st.integers(-(2**60), 2**60)
IDS = st.text(st.characters(codec="utf-8"), max_size=3) | st.just("x" * 100)
STATES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"x": NUMBERS, "y": NUMBERS, "city": IDS, "tab": IDS, "recent": st.lists(IDS, max_size=5), "bought": st.lists(IDS)}
    ),
    max_size=6,
)


@given(STATES)
def test_columns_are_those_written_out_by_hand(states: list[dict[str, object]]) -> None:
    columns = SPEC.columns(states)
    rows = zip(columns.dense.tolist(), columns.ids.tolist(), *(ids.tolist() for ids in columns.sequences.values()), strict=True)
    assert [tuple(row) for row in rows] == [by_hand(state) for state in states]


def test_shapes_and_types_hold_without_states_and_without_features_of_a_kind() -> None:
    for count in (0, 2):
        columns = FeatureSpec(ids=(IdFeature(name="city"),)).columns([FULL] * count)
        assert (columns.dense.shape, columns.ids.shape, columns.sequences) == ((count, 0), (count, 1), {})
        assert (columns.dense.dtype, columns.ids.dtype) == (np.float32, np.int64)
    assert SPEC.columns([]).sequences["recent"].shape == (0, 3)


WRONG = [
    ("x", "1.5", "feature x: expected a finite number, got '1.5'"),
    ("y", float("nan"), "feature y: expected a finite number, got nan"),
    ("y", float("-inf"), "feature y: expected a finite number, got -inf"),
    ("y", 3.5e38, "feature y: expected a finite number, got 3.5e.38"),
    ("x", 10**400, "feature x: expected a finite number, got 1000"),
    ("x", None, "feature x: expected a finite number, got None"),
    ("x", ["a"], "feature x: expected a finite number"),
    ("city", 3.0, "feature city: expected a string, got 3.0"),
    ("tab", ["a"], "feature tab: expected a string, got "),
    ("recent", "abc", "feature recent: expected a list of strings, got 'abc'"),
    ("recent", ["a", 1.0], "feature recent: expected a string, got 1.0"),
    ("bought", ["a", None], "feature bought: expected a string, got None"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{name}={value!r:.12}" for name, value, _ in WRONG])
@pytest.mark.parametrize("others", [0, 3])
def test_a_wrong_value_is_refused_by_its_feature_s_name(name: str, value: object, message: str, others: int) -> None:
    with pytest.raises(WrongStateError, match=message):
        SPEC.columns([FULL] * others + [{**FULL, name: value}])


def test_a_number_without_a_default_is_missing_and_a_wrong_one_is_still_refused() -> None:
    spec = FeatureSpec(dense=(DenseFeature(name="x"), DenseFeature(name="y", default=float("nan"))))
    np.testing.assert_array_equal(spec.columns([{"x": 1.0}, {"y": 2.0}]).dense, np.array([[1.0, np.nan], [0.0, 2.0]], np.float32))
    for state, message in (({"x": float("nan")}, "feature x"), ({"x": 1.0, "y": float("inf")}, "feature y"), ({"y": "2"}, "feature y")):
        with pytest.raises(WrongStateError, match=f"{message}: expected a finite number"):
            spec.columns([{"x": 1.0}, state])


def test_a_wrong_id_older_than_the_sequence_is_long_is_not_looked_at() -> None:
    assert SPEC.columns([{**FULL, "recent": [7.0, "b", "c", "d"]}]).sequences["recent"].tolist() == [by_hand(FULL)[2]]


def test_the_memory_of_ids_is_bounded_and_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = features_module._IdHashes()
    monkeypatch.setattr(features_module._IdHashes, "ENTRIES", 10)
    names = [f"i-{number % 23}" for number in range(100)] + ["", "x" * 65]
    assert [hashes[name] for name in names] == [crc32(name.encode()) if name else -1 for name in names]
    assert len(hashes) <= 10
    assert "x" * 65 not in hashes
