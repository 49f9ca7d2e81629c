import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transition_log import FEATURES, SMALL

from schemas.action import ActionDimension, ActionSpec
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature, StateColumns
from trainer.ddpg import DDPG
from trainer.export import actor_onnx, onnx_inputs
from trainer.settings import TrainerSettings

ACTION = ActionSpec(
    dimensions=(
        ActionDimension(name="a", objective="click"),
        ActionDimension(name="b", objective="pay", low=-3.0, baseline=0.25, high=4.0),
        ActionDimension(name="c", objective="like", low=0.0, baseline=0.0, high=1.0),
    )
)
SPECS = {
    "all kinds": FEATURES,
    "dense only": FeatureSpec(dense=(DenseFeature(name="x"), DenseFeature(name="y"))),
    "ids only": FeatureSpec(ids=(IdFeature(name="a", buckets=9, dim=3), IdFeature(name="b", buckets=5, dim=2))),
    "sequences only": FeatureSpec(
        sequences=(SequenceFeature(name="s", length=1, buckets=9, dim=3), SequenceFeature(name="t", length=7, buckets=9))
    ),
}


def random_states(features: FeatureSpec, count: int, seed: int) -> StateColumns:
    rng = np.random.default_rng(seed)
    dense = rng.normal(100.0, 30.0, (count, len(features.dense))).astype(np.float32)
    dense[::7] *= 1e6  # far beyond the clip
    dense[rng.random(dense.shape) < 0.1] = np.nan  # missing
    ids = [rng.integers(0, feature.buckets, count) for feature in features.ids]
    sequences = {}
    for feature in features.sequences:
        sequence = rng.integers(0, feature.buckets, (count, feature.length))
        sequence[np.arange(feature.length) < rng.integers(0, feature.length + 1, count)[:, None]] = 0
        sequences[feature.name] = sequence
    return StateColumns(dense, np.stack(ids, axis=1) if ids else np.zeros((count, 0), np.int64), sequences)


def randomised(features: FeatureSpec, seed: int = 3, rows: int = 500, **changes: object) -> DDPG:
    """A learner whose actor's last layer is not zero, with `rows` rows in its normaliser."""
    learner = DDPG(ACTION, features, TrainerSettings(**{**SMALL, **changes}), seed)
    learner.features.update(random_states(features, rows, seed).dense)
    with torch.no_grad():
        learner.network.actor.output.weight.normal_(0.0, 2.0, generator=torch.Generator().manual_seed(seed))
    return learner


def run(model: bytes, states: StateColumns) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["action"], onnx_inputs(states))[0]


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
        ("dense only", ["dense"]),
        ("ids only", ["ids"]),
        ("sequences only", ["seq_s", "seq_t"]),
    ],
)
def test_inputs_of_size_zero_are_left_out(name: str, inputs: list[str]) -> None:
    session = onnxruntime.InferenceSession(actor_onnx(randomised(SPECS[name])), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == inputs
    assert sorted(onnx_inputs(random_states(SPECS[name], 2, seed=0))) == inputs
