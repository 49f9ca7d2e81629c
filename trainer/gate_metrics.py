"""What the gate judges a candidate by, measured on transitions that the learner never learned from."""

import numpy as np
import torch

from trainer.ddpg import DDPG, td_error
from trainer.replay import Transitions


def gate_metrics(learner: DDPG, held_out: Transitions, rng: np.random.Generator) -> dict[str, float]:
    """Defined in docs/learners/ddpg.md; in reward units where they are rewards. `rng` draws the uniformly random actions."""
    action = learner.action_spec
    random_action = rng.uniform(action.low, action.high, (len(held_out), action.size)).astype(np.float32)
    policy_B = learner.advantages(held_out.state, learner.act(held_out.state)).mean(1)
    random_B = learner.advantages(held_out.state, random_action).mean(1)
    return {
        "held_out_rows": float(len(held_out)),
        "policy_advantage_mean": float(policy_B.mean()),
        "policy_advantage_se": _standard_error(policy_B),
        "random_advantage_mean": float(random_B.mean()),
        "random_advantage_se": _standard_error(random_B),
        "v_mean": float(learner.values(held_out.state).mean()),
        **_fit(learner, held_out),
    }


def _fit(learner: DDPG, held_out: Transitions) -> dict[str, float]:
    """How well A foretells the residual r + gamma V(s') - V(s) of touched pages: 1 perfectly, 0 not at all, below 0 it misleads."""
    touched = held_out.take(held_out.touched)
    if len(touched) < 2:
        return {}
    value_B, next_value_B = learner.values(touched.state), learner.values(touched.next_state)
    advantage_B = learner.advantages(touched.state, touched.action).mean(1)
    reward_B, done_B = touched.reward.astype(np.float64), touched.done.astype(np.float64)
    columns = [torch.from_numpy(column) for column in (reward_B, done_B, next_value_B, value_B, np.zeros_like(value_B))]
    discount_B = torch.from_numpy(touched.discount.astype(np.float64))
    residual_B = td_error(columns[0], columns[1], columns[2], columns[3], columns[4], discount_B).numpy()
    without, left = np.square(residual_B).mean(), np.square(residual_B - advantage_B).mean()
    return {
        "held_out_td_error": float(np.abs(residual_B - advantage_B).mean()),
        "a_fit": float(1.0 - left / without) if without > 0 else 0.0,
    }


def _standard_error(values_B: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return float(values_B.std(ddof=1) / np.sqrt(len(values_B))) if len(values_B) > 1 else float("inf")
