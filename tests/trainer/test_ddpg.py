from dataclasses import replace

import numpy as np
import pytest
import torch
from transition_log import action_spec, small_settings

from schemas.action import ActionDimension, ActionSpec
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature
from schemas.state_columns import StateColumns
from trainer.ddpg import DDPG, advantage_loss, bootstrap_mask, cautious_gradient, td_error, value_loss
from trainer.replay import ReplayBuffer, Transitions
from trainer.settings import TrainerSettings

FEATURES = FeatureSpec(
    dense=tuple(DenseFeature(name=f"x{i}") for i in range(4)),
    ids=(IdFeature(name="city", buckets=8, dim=2),),
    sequences=(SequenceFeature(name="recent", length=4, buckets=16, dim=3),),
)


def states(rng: np.random.Generator, count: int, features: FeatureSpec = FEATURES) -> StateColumns:
    ids = rng.integers(0, 8, (count, len(features.ids)))
    return StateColumns(
        rng.normal(size=(count, len(features.dense))).astype(np.float32),
        ids,
        {sequence.name: rng.integers(0, 16, (count, sequence.length)) for sequence in features.sequences},
        np.zeros((count, 0), np.float32),
    )


def transitions(rng: np.random.Generator, state: StateColumns, action: np.ndarray, reward: np.ndarray, **changes: object) -> Transitions:
    count = len(action)
    columns = {
        "id_hash": rng.integers(0, 2**64, count, dtype=np.uint64),
        "state": state,
        "action": action.astype(np.float32),
        "reward": reward.astype(np.float32),
        "next_state": state,
        "done": np.ones(count, np.bool_),
        "discount": np.full(count, 0.9, np.float32),
        "touched": np.ones(count, np.bool_),
        "feedback_count": np.zeros(count, np.int32),
        "arrival_ms": np.zeros(count, np.int64),
        "version": np.zeros(count, np.int32),
    }
    return Transitions(**{**columns, **changes})


def random_transitions(seed: int, count: int = 32, size: int = 2, **changes: object) -> Transitions:
    rng = np.random.default_rng(seed)
    return transitions(rng, states(rng, count), rng.uniform(0, 2, (count, size)), rng.normal(size=count), **changes)


def weights(learner: DDPG) -> list[torch.Tensor]:
    return [weight.clone() for weight in learner.network.state_dict().values()]


def are_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_td_error_by_hand() -> None:
    # 1 + 0.9 * 10 - 4 - 2 = 4;  done: 1 - 4 - 2 = -5
    numbers = [torch.tensor(values) for values in ([1.0, 1.0], [0.0, 1.0], [10.0, 10.0], [4.0, 4.0], [2.0, 2.0])]
    torch.testing.assert_close(td_error(*numbers, 0.9), torch.tensor([4.0, -5.0]))


def test_the_value_loss_by_hand() -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    target = torch.tensor([4.0, 0.0], requires_grad=True)
    loss = value_loss(target, value)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((9.0 + 4.0) / 2)
    assert value.grad is not None
    assert value.grad.tolist() == [-3.0, 2.0]
    assert target.grad is None  # the target is held


def test_the_advantage_loss_by_hand() -> None:
    advantage = torch.tensor([[1.0, 0.0], [5.0, 2.0]])
    used = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # head 0 learns from row 0: (3 - 1)^2 = 4; head 1 from row 1: (1 - 2)^2 = 1
    assert float(advantage_loss(torch.tensor([3.0, 1.0]), advantage, used)) == pytest.approx(2.5)
    assert float(advantage_loss(torch.tensor([3.0, 1.0]), advantage, torch.zeros(2, 2))) == 0.0


def test_a_head_learns_from_the_touched_rows_whose_bit_is_set() -> None:
    hashes = np.array([0b101 << 61, 0b010 << 61, 0b111 << 61], np.uint64)
    mask = bootstrap_mask(hashes, np.array([True, True, False]), 3)
    assert mask.tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_cautious_gradient_by_hand() -> None:
    # heads 3 and 1: mean 2, standard deviation 1; far above the baseline sign(u) = 1, below it -1, at it 0
    gradient = torch.tensor([[[3.0], [1.0]]])
    for u, expected in ((0.0, 2.0), (1.0, 0.5), (-1.0, 3.5)):
        assert float(cautious_gradient(gradient, torch.tensor([[u]]), kappa=1.5)) == pytest.approx(expected)


def test_the_closed_form_gradient_of_the_heads_is_autograd_s() -> None:
    learner = trained()
    rng = np.random.default_rng(3)
    code = learner.network.encoder(learner.state_tensors(states(rng, 16))).detach()
    u = torch.from_numpy(rng.uniform(-1, 1, (16, 2)).astype(np.float32)).requires_grad_()
    advantage = learner.network.advantages(code, u)
    for head in range(advantage.shape[1]):
        expected = torch.autograd.grad(advantage[:, head].sum(), u, retain_graph=True)[0]
        torch.testing.assert_close(learner.network.advantages.gradient(code, u)[:, head], expected)


@pytest.mark.parametrize(
    ("low", "baseline", "high"), [(0.0, 1.0, 2.0), (-1.0, 0.3, 5.0), (0.0, 0.0, 1.0), (0.1, 0.7, 0.7), (-3.0, 1 / 3, 1e6)]
)
def test_the_actor_starts_exactly_at_the_baseline(low: float, baseline: float, high: float) -> None:
    action = ActionSpec(dimensions=(ActionDimension(name="w", objective="o", low=low, baseline=baseline, high=high),))
    learner = DDPG(action, FEATURES, small_settings(), seed=5)
    acted = learner.act(states(np.random.default_rng(0), 50))
    assert acted.tolist() == [[float(np.float32(baseline))]] * 50


def test_the_advantage_of_the_baseline_is_zero_and_others_are_not() -> None:
    learner = trained()
    state = states(np.random.default_rng(3), 20)
    assert np.abs(learner.advantages(state, np.ones((20, 2), np.float32))).max() == 0.0
    assert np.abs(learner.advantages(state, np.full((20, 2), 1.5, np.float32))).min() > 0.0


def test_actions_stay_within_their_bounds_whatever_the_weights() -> None:
    learner = DDPG(action_spec(2), FEATURES, small_settings(), seed=1)
    with torch.no_grad():
        learner.network.actor.output.weight.normal_(0.0, 50.0, generator=torch.Generator().manual_seed(1))
    acted = learner.act(states(np.random.default_rng(2), 200))
    assert acted.min() == 0.0
    assert acted.max() == 2.0


def trained(seed: int = 1, steps: int = 20) -> DDPG:
    learner = DDPG(action_spec(2), FEATURES, small_settings(), seed)
    for step in range(steps):
        rows = random_transitions(step)
        learner.observe(rows)
        learner.learn(rows)
    return learner


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    torch.manual_seed(1)
    first = trained(seed=1)
    torch.manual_seed(2)  # the global generator is not used
    second, other = trained(seed=1), trained(seed=2)
    assert are_equal(weights(first), weights(second))
    assert not are_equal(weights(first), weights(other))


def test_a_learner_goes_on_from_its_state_bit_for_bit() -> None:
    first = trained(steps=7)
    second = DDPG(action_spec(2), FEATURES, small_settings(), seed=99)
    second.load_state_dict(first.state_dict())
    for step in range(5):
        rows = random_transitions(100 + step)
        for learner in (first, second):
            learner.observe(rows)
        assert first.learn(rows) == second.learn(rows)
    assert are_equal(weights(first), weights(second))


def test_baseline_rows_teach_encoder_and_v_but_no_a_and_no_actor_direction() -> None:
    learner = DDPG(action_spec(2), FEATURES, small_settings(weight_decay=0.0), seed=1)
    before = {name: weight.clone() for name, weight in learner.network.state_dict().items()}
    for step in range(3):
        learner.learn(random_transitions(step, touched=np.zeros(32, np.bool_)))
    changed = {name.split(".")[0] for name, weight in learner.network.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"encoder", "value"}


@pytest.mark.parametrize(
    ("column", "wrong"),
    [("reward", np.nan), ("reward", np.inf), ("reward", 3e38), ("action", np.nan), ("action", np.inf), ("action", 3e38)],
)
def test_a_batch_with_numbers_that_are_not_finite_changes_no_weight(column: str, wrong: float) -> None:
    learner = trained(steps=3)
    before, state_before = weights(learner), learner.state_dict()["critic_optimiser"]
    rows = random_transitions(50)
    getattr(rows, column)[3] = wrong
    metrics = learner.learn(rows)
    assert metrics == {"skipped_steps": 1.0}
    assert are_equal(weights(learner), before)
    state = learner.state_dict()["critic_optimiser"]
    assert torch.equal(state["step"], state_before["step"])
    assert are_equal(state["first"] + state["second"], state_before["first"] + state_before["second"])
    assert np.isfinite(learner.learn(random_transitions(51))["td_error"])
    assert (learner.steps, learner.skipped_steps) == (4, 1)


def test_the_next_state_of_a_finished_session_has_no_effect() -> None:
    rng = np.random.default_rng(0)
    done = np.arange(32) % 3 == 0
    first, second = trained(), trained()
    rows = random_transitions(5, next_state=states(rng, 32), done=done)
    other = states(rng, 32)
    mixed = StateColumns(
        np.where(done[:, None], other.dense, rows.next_state.dense),
        np.where(done[:, None], other.ids, rows.next_state.ids),
        {"recent": np.where(done[:, None], other.sequences["recent"], rows.next_state.sequences["recent"])},
        other.plain,
    )
    assert first.learn(rows) == second.learn(replace(rows, next_state=mixed))
    assert are_equal(weights(first), weights(second))
    third = trained()
    third.learn(replace(rows, next_state=other))
    assert not are_equal(weights(first), weights(third))


def learn_contextual_task(size: int, rows: int, settings: TrainerSettings, seed: int) -> tuple[float, float, float]:
    """Reward -|u - f(s)|^2 / A + noise; gives the mean reward of the policy, of the baseline and of random actions, without noise."""
    features = FeatureSpec(dense=tuple(DenseFeature(name=f"x{i}") for i in range(4)))
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(4, size))

    def reward(state: StateColumns, action: np.ndarray) -> np.ndarray:
        return -np.square(action - 1.0 - 0.6 * np.tanh(state.dense @ direction)).mean(1)

    learner, replay = DDPG(action_spec(size), features, settings, seed), ReplayBuffer(features, size, rows)
    for _ in range(rows // 100):
        state = states(rng, 100, features)
        action = np.clip(learner.act(state) + rng.normal(0, 0.3, (100, size)), 0, 2)
        touched = rng.random(100) < 0.8
        action[~touched] = 1.0
        new = transitions(rng, state, action, reward(state, action) + rng.normal(0, 0.1, 100), touched=touched)
        learner.observe(new)
        replay.add(new)
        for _ in range(int(100 * settings.steps_per_transition)):
            learner.learn(replay.sample(settings.batch_size, rng)[0])
    state = states(rng, 2000, features)
    random_action = rng.uniform(0, 2, (2000, size))
    policy, baseline = reward(state, learner.act(state)), reward(state, np.ones((2000, size)))
    return float(policy.mean()), float(baseline.mean()), float(reward(state, random_action).mean())


@pytest.mark.parametrize(("size", "rows"), [(1, 3000), (10, 8000)])
def test_the_policy_learns_a_contextual_task_and_beats_baseline_and_random(size: int, rows: int) -> None:
    policy, baseline, random = learn_contextual_task(size, rows, TrainerSettings(hidden=(32, 32), batch_size=128), seed=3)
    assert random < baseline - 0.2
    assert policy > 0.5 * baseline  # less than half of the baseline's loss is left; 0 is the best there is
    assert policy > random + 0.3
