import json

import numpy as np
import pytest
from transition_log import FEATURES, action_spec, batch, page, row

from schemas.features import FeatureSpec, IdFeature
from trainer.preprocess import Preprocess
from trainer.replay import hash64

ACTION = action_spec(2)
NOW_MS = 5_000
SPEC_HASH = "5a5a"


def state(**changes: object) -> dict[str, object]:
    return {"state": {"x": 1.5, "city": "hz", "recent": ["i-1", "i-2"], **changes}, "action": [0.5, 2.0]}


def opened(*rows: dict[str, object]):
    made = Preprocess(ACTION, FEATURES, SPEC_HASH)(batch(list(rows)), {"": 0, "fusion-000001": 1}.__getitem__, NOW_MS)
    return made.rows, made.dead_letters


def test_a_transition_becomes_columns() -> None:
    rows, letters = opened(
        row(1, state(), state(x=2.5), model_version="fusion-000001", feedback_count=2, feedback_arrival_ms=77, **{"return": 3.0}),
        row(4, state(), None, feedback_count=0, feedback_arrival_ms=None),
    )
    assert letters == []
    assert rows.id_hash.tolist() == hash64(["r-1", "r-4"]).tolist()
    assert rows.state.dense.tolist() == [[1.5, 0.5], [1.5, 0.5]]  # y is missing: its default
    assert rows.next_state.dense.tolist() == [[2.5, 0.5], [0.0, 0.5]]
    assert rows.state.sequences["recent"][0, :3].tolist() == [0, 0, 0]
    assert rows.state.sequences["recent"][0, 3:].min() > 0
    assert rows.action.tolist() == [[0.5, 2.0], [0.5, 2.0]]
    assert rows.reward.tolist() == [3.0, 1.0]
    assert rows.done.tolist() == [False, True]
    assert rows.touched.tolist() == [True, False]
    assert rows.version.tolist() == [1, 0]
    assert rows.feedback_count.tolist() == [2, 0]
    assert rows.arrival_ms.tolist() == [77, 0]


def with_action(*values: object) -> dict[str, object]:
    return {**state(), "action": list(values)}


BAD_ROWS = [
    ({"exposure": b"{"}, "malformed", "truncated"),
    ({"exposure": b'{"action": [1, 1]}'}, "malformed", "state"),
    ({"exposure": json.dumps(with_action("a", 1)).encode()}, "malformed", "float"),
    ({"next_exposure": b"[]"}, "malformed", "array"),
    ({"return": float("nan")}, "malformed", "reward"),
    ({"return": float("inf")}, "malformed", "reward"),
    ({"exposure": json.dumps(state(x="warm")).encode()}, "wrong_state", "feature x"),
    ({"exposure": json.dumps(state(x=1e39)).encode()}, "wrong_state", "feature x"),
    ({"exposure": json.dumps(state(city=3)).encode()}, "wrong_state", "feature city"),
    ({"exposure": json.dumps(state(recent="i-1")).encode()}, "wrong_state", "feature recent"),
    ({"next_exposure": json.dumps(state(x=["a"])).encode()}, "wrong_state", "feature x"),
    ({"exposure": json.dumps(with_action(1.0)).encode()}, "wrong_action", "expected 2 numbers, got 1"),
    ({"exposure": json.dumps(with_action(1.0, 1.0, 1.0)).encode()}, "wrong_action", "expected 2 numbers, got 3"),
    ({"exposure": json.dumps(with_action(1.0, 2.1)).encode()}, "wrong_action", "action w1: expected 0.0 to 2.0, got 2.1"),
    ({"exposure": json.dumps(with_action(-0.1, 1.0)).encode()}, "wrong_action", "action w0"),
    ({"exposure": json.dumps({**state(), "spec_hash": "0101"}).encode()}, "wrong_spec", "specification 0101, this trainer has 5a5a"),
    ({"next_exposure": json.dumps({**state(), "spec_hash": "0101"}).encode()}, "wrong_spec", "specification 0101"),
    ({"exposure": json.dumps(state(recent=["i-1", None])).encode()}, "malformed", "got `null`"),
    ({"exposure": json.dumps(state(recent=["i-1", 2.0])).encode()}, "wrong_state", "feature recent: expected a string, got 2.0"),
    ({"exposure": b'{"state": {}, "action": [1.0, 1e999]}'}, "malformed", "out of range"),
]


@pytest.mark.parametrize(("columns", "reason", "detail"), BAD_ROWS)
def test_a_bad_row_is_refused_with_its_place_and_the_others_are_kept(columns: dict[str, object], reason: str, detail: str) -> None:
    good = row(1, state(), state())
    rows, letters = opened(good, row(2, state(), state(), **columns), row(3, state(), None))
    assert rows.id_hash.tolist() == hash64(["r-1", "r-3"]).tolist()
    (letter,) = letters
    assert (letter.stage, letter.source_topic, letter.source_partition, letter.source_offset) == ("trainer", "exposures", 3, 2)
    assert letter.ts_ms == NOW_MS
    assert letter.reason == reason
    assert detail in letter.detail


def test_an_action_rounded_just_over_its_bound_is_clipped() -> None:
    rows, letters = opened(row(1, with_action(2.0000001, -1e-9), None))
    assert letters == []
    assert rows.action.tolist() == [[2.0, 0.0]]


def test_a_batch_of_bad_rows_only_gives_no_rows() -> None:
    rows, letters = opened(row(1, state(x="a"), None), row(2, state(x="b"), None))
    assert len(rows) == 0
    assert rows.action.shape == (0, 2)
    assert [letter.source_offset for letter in letters] == [1, 2]


def test_features_of_one_kind_only_are_enough() -> None:
    features = FeatureSpec(ids=(IdFeature(name="city"),))
    rows = Preprocess(ACTION, features, SPEC_HASH)(batch([row(1, page(np.random.default_rng(0)), None)]), lambda _: 0, NOW_MS).rows
    assert rows.state.dense.shape == (1, 0)
    assert rows.state.ids.shape == (1, 1)


def test_a_page_that_comes_twice_is_the_same_row_both_times() -> None:
    pages = [state(x=float(number), recent=[f"i-{number}"]) for number in range(4)]
    rows, _ = opened(*(row(number, pages[number], pages[number + 1] if number < 3 else None) for number in range(4)))
    alone = [opened(row(number, pages[number], None))[0] for number in range(4)]
    assert rows.state.dense.tolist() == [made.state.dense[0].tolist() for made in alone]
    assert rows.next_state.dense[:3].tolist() == rows.state.dense[1:].tolist()
    assert rows.next_state.sequences["recent"][:3].tolist() == rows.state.sequences["recent"][1:].tolist()


def test_a_bad_page_is_refused_as_the_next_one_of_a_row_and_as_its_own() -> None:
    broken = with_action(1.0)
    rows, letters = opened(row(1, state(), broken), row(2, broken, None), row(3, state(), {"state": 1}), row(4, state(), {"state": 1}))
    assert [(letter.source_offset, letter.reason) for letter in letters] == [(2, "wrong_action"), (3, "malformed"), (4, "malformed")]
    assert rows.id_hash.tolist() == hash64(["r-1"]).tolist()


def test_pages_of_the_trainer_s_own_specification_and_of_none_are_learned_from() -> None:
    rows, letters = opened(row(1, {**state(), "spec_hash": SPEC_HASH}, state()), row(2, state(), None))
    assert (len(rows), letters) == (2, [])
