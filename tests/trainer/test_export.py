import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transition_log import FEATURES, SMALL

from schemas.action import ActionDimension, ActionSpec
from schemas.features import (
    BinarySequenceFeature,
    CrossFeature,
    DenseFeature,
    FeatureSpec,
    IdFeature,
    MultiIdFeature,
    SequenceFeature,
    VectorFeature,
)
from schemas.state_columns import StateColumns
from trainer.ddpg import DDPG
from trainer.export import actor_onnx
from trainer.settings import TrainerSettings

ACTION = ActionSpec(
    dimensions=(
        ActionDimension(name="a", objective="click"),
        ActionDimension(name="b", objective="pay", low=-3.0, baseline=0.25, high=4.0),
        ActionDimension(name="c", objective="like", low=0.0, baseline=0.0, high=1.0),
    )
)
EVERY_KIND = FeatureSpec(
    dense=(DenseFeature(name="x"), DenseFeature(name="share", normalisation="none")),
    ids=(IdFeature(name="city", buckets=9, dim=3),),
    multi_ids=tuple(MultiIdFeature(name=pooling, pooling=pooling, length=4, buckets=9, dim=3) for pooling in ("mean", "sum", "max")),
    sequences=(
        SequenceFeature(name="s", length=5, buckets=9, dim=3),
        SequenceFeature(name="t", length=6, buckets=9, dim=3, pooling="attention"),
    ),
    binary_sequences=(BinarySequenceFeature(name="habit", windows=("1h", "1d"), dim=3),),
    crosses=(CrossFeature(name="city_habit", of=("city", "habit"), buckets=9, dim=3),),
    vectors=(VectorFeature(name="text", size=4),),
)
SPECS = {
    "all kinds": FEATURES,
    "every kind and pooling": EVERY_KIND,
    "dense only": FeatureSpec(dense=(DenseFeature(name="x"), DenseFeature(name="y"))),
    "ids only": FeatureSpec(ids=(IdFeature(name="a", buckets=9, dim=3), IdFeature(name="b", buckets=5, dim=2))),
    "sequences only": FeatureSpec(
        sequences=(SequenceFeature(name="s", length=1, buckets=9, dim=3), SequenceFeature(name="t", length=7, buckets=9))
    ),
}


def random_states(features: FeatureSpec, count: int, seed: int) -> StateColumns:
    rng = np.random.default_rng(seed)
    dense = rng.normal(100.0, 30.0, (count, len(features.normalised))).astype(np.float32)
    dense[::7] *= 1e6  # far beyond the clip
    dense[rng.random(dense.shape) < 0.1] = np.nan  # missing
    ids = [rng.integers(0, table.rows, count) for table in features.tables]
    sequences = {}
    for feature in features.lists:
        sequence = rng.integers(0, feature.buckets, (count, feature.length))
        sequence[np.arange(feature.length) < rng.integers(0, feature.length + 1, count)[:, None]] = 0
        sequences[feature.name] = sequence
    plain = rng.normal(0.0, 1.0, (count, features.plain_size)).astype(np.float32)
    return StateColumns(dense, np.stack(ids, axis=1) if ids else np.zeros((count, 0), np.int64), sequences, plain)


def randomised(features: FeatureSpec, seed: int = 3, rows: int = 500, **changes: object) -> DDPG:
    """A learner whose actor's last layer is not zero, with `rows` rows in its normaliser."""
    learner = DDPG(ACTION, features, TrainerSettings(**{**SMALL, **changes}), seed)
    learner.features.update(random_states(features, rows, seed).dense)
    with torch.no_grad():
        learner.network.actor.output.weight.normal_(0.0, 2.0, generator=torch.Generator().manual_seed(seed))
    return learner


def run(model: bytes, states: StateColumns) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["action"], states.inputs())[0]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_the_exported_actor_gives_the_trainer_s_actions(name: str, kernel: int) -> None:
    learner = randomised(SPECS[name], kernel=kernel)
    states = random_states(SPECS[name], 300, seed=11)
    actions = run(actor_onnx(learner), states)
    assert actions.dtype == np.float32
    half_range = (np.array(ACTION.high) - np.array(ACTION.low)) / 2
    np.testing.assert_allclose(actions / half_range, learner.act(states) / half_range, rtol=0, atol=1e-5)
    assert actions.std(axis=0).min() > 0.01  # not one constant action that any graph would give
    assert (actions >= np.array(ACTION.low, np.float32)).all()
    assert (actions <= np.array(ACTION.high, np.float32)).all()


def test_before_the_warm_up_is_over_the_graph_takes_features_as_they_are() -> None:
    learner = randomised(SPECS["dense only"], rows=5)
    states = random_states(SPECS["dense only"], 50, seed=2)
    np.testing.assert_allclose(run(actor_onnx(learner), states), learner.act(states), rtol=0, atol=1e-4)


def test_an_untrained_actor_gives_exactly_the_baseline() -> None:
    learner = DDPG(ACTION, FEATURES, TrainerSettings(**SMALL), seed=1)
    actions = run(actor_onnx(learner), random_states(FEATURES, 20, seed=1))
    assert actions.tolist() == [ACTION.baseline] * 20


def test_the_same_weights_give_the_same_bytes_and_a_whole_model() -> None:
    first, second, other = (actor_onnx(randomised(FEATURES, seed)) for seed in (3, 3, 4))
    assert first == second
    assert first != other
    onnx.checker.check_model(onnx.load_from_string(first), full_check=True)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("all kinds", ["dense", "ids", "seq_recent"]),
        ("every kind and pooling", ["dense", "ids", "plain", "seq_max", "seq_mean", "seq_s", "seq_sum", "seq_t"]),
        ("dense only", ["dense"]),
        ("ids only", ["ids"]),
        ("sequences only", ["seq_s", "seq_t"]),
    ],
)
def test_inputs_of_size_zero_are_left_out(name: str, inputs: list[str]) -> None:
    session = onnxruntime.InferenceSession(actor_onnx(randomised(SPECS[name])), providers=["CPUExecutionProvider"])
    assert sorted(item.name for item in session.get_inputs()) == inputs
    assert sorted(random_states(SPECS[name], 2, seed=0).inputs()) == inputs


@pytest.mark.parametrize("part", ["city", "habit", "city_habit", "mean", "sum", "max", "s", "t", "plain", "dense"])
def test_every_part_of_the_state_reaches_the_action(part: str) -> None:
    learner = randomised(EVERY_KIND)
    states = random_states(EVERY_KIND, 64, seed=5)
    tables = [table.name for table in EVERY_KIND.tables]
    sequences = {name: np.zeros_like(ids) if name == part else ids for name, ids in states.sequences.items()}
    ids, dense, plain = (column.copy() for column in (states.ids, states.dense, states.plain))
    if part in tables:
        ids[:, tables.index(part)] = 0
    dense, plain = (-1e6 * dense, plain) if part == "dense" else (dense, plain + (part == "plain"))
    changed = StateColumns(dense.astype(np.float32), ids, sequences, plain.astype(np.float32))
    model = actor_onnx(learner)
    assert np.abs(run(model, changed) - run(model, states)).max() > 1e-3
    np.testing.assert_allclose(run(model, changed), learner.act(changed), rtol=0, atol=3e-5)


def test_the_graph_also_gives_what_its_normaliser_made_of_the_numbers() -> None:
    learner = randomised(EVERY_KIND)
    states = random_states(EVERY_KIND, 50, seed=2)
    session = onnxruntime.InferenceSession(actor_onnx(learner), providers=["CPUExecutionProvider"])
    normalised = session.run(["normalised"], states.inputs())[0]
    np.testing.assert_array_equal(normalised, learner.state_tensors(states).dense_BN.numpy())
