"""The improved DDPG of Meituan's "Guess you like": Q(s, a) = V(s) + A(s, a), one shared encoder, no target networks.

    delta    = r + gamma (1 - done) V(s') - V(s) - A(s, a)     TD error, A = 0 for baseline traffic
    L_V      = mean delta(A held)^2                            every row, baseline too, teaches encoder and V
    L_A      = mean m_e (delta_e(V held))^2                    rows that a policy touched: A fits the residual Q - V
    grad J   = mean grad_theta mu(s) . g(s),   g = dA/da at a = mu(s)      deterministic policy gradient; the actor ascends

Papers: Lillicrap et al. 2016 (DDPG, arXiv 1509.02971, eq. 5 and 6), Silver et al. 2014 (deterministic policy gradient, theorem 1),
Wang et al. 2016 (dueling: Q = V + A, arXiv 1511.06581), Osband et al. 2016 (bootstrapped heads, arXiv 1602.04621), and Meituan's article.

Where we differ from them:
1. A(s, baseline) = 0 by construction (f(s, a) - f(s, baseline)), and V's target has A(s, a) taken off. So V is the value of changing
   nothing, A the gain of one changed page over it, and "A stays above 0: this policy beats the baseline" holds literally.
2. V(s') and not V(s') + A(s', mu(s')) in the target: V's fixed point does not move with the actor, over-estimation has no way to feed
   itself. The price: A counts the gain of this page's action on all later pages, not the gain of later changed actions.
3. A has E heads. Head e learns from half of the rows (bits of the transition's hash): their spread is A's sampling error.
4. The actor follows g = mean_e g_e - kappa std_e g_e sign(u), per action number: where the heads do not agree it returns to the
   baseline instead of running to a bound on noise. (sign is smoothed to tanh(u / 0.05) so that the step vanishes at the baseline.)
5. The actor's gradient ends at the encoder: V and A alone shape the state code. No Ornstein-Uhlenbeck noise here: serving explores.
6. Beyond a bound the clamp lets the gradient through, and a quadratic penalty pulls back, so that the actor cannot get stuck there.
7. Rewards are divided by their rolling standard deviation (not centred: sessions differ in length). Metrics are in reward units.
8. Every batch begins with the rows that no step has used yet (replay.py), AdamW, gradients clipped to a norm. A step whose loss or
   gradient is not finite is skipped and counted: no weight, moment or counter of the optimiser changes.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.action import ActionSpec
from schemas.features import FeatureSpec
from schemas.state_columns import StateColumns, rows_input
from trainer.adamw import AdamW, AdamWState
from trainer.embedding_table import EmbeddingTable, Gathered
from trainer.network import Network, StateTensors, state_tensors
from trainer.replay import Transitions
from trainer.settings import TrainerSettings
from trainer.zscore import Zscore, ZscoreState

SIGN_WIDTH = 0.05
"""Half-ranges over which deviation 4's sign(u) is smoothed: well below an action that anybody would notice."""


class DDPGState(TypedDict):
    """All that the learner remembers."""

    network: dict[str, Tensor]
    critic_optimiser: AdamWState
    actor_optimiser: AdamWState
    features: ZscoreState
    rewards: ZscoreState
    reward_bound: float
    steps: int
    skipped_steps: int


def td_error(reward_B: Tensor, done_B: Tensor, next_value_B: Tensor, value_B: Tensor, advantage_B: Tensor, gamma: Tensor | float) -> Tensor:
    """TD error: delta = r + gamma (1 - done) V(s') - V(s) - A(s, a)."""
    return reward_B + gamma * (1.0 - done_B) * next_value_B - value_B - advantage_B


def value_loss(target_B: Tensor, value_B: Tensor) -> Tensor:
    """Mean of delta^2 with delta = target - V(s); target = r + gamma (1 - done) V(s') - A(s, a), held."""
    return (target_B.detach() - value_B).square().mean()


def advantage_loss(residual_B: Tensor, advantage_BE: Tensor, used_BE: Tensor) -> Tensor:
    """Squared error of each head on the rows that it uses, averaged over those; residual = r + gamma V(s') - V(s), held."""
    squared_BE = (residual_B.detach().unsqueeze(1) - advantage_BE).square() * used_BE
    return squared_BE.sum() / used_BE.sum().clamp(min=1.0)


def bootstrap_mask(id_hash: npt.NDArray[np.uint64], touched: npt.NDArray[np.bool_], heads: int) -> Tensor:
    """used_BE: head e learns from a touched row if bit 63 - e of its hash is set."""
    bits_BE = (id_hash[:, None] >> (np.uint64(63) - np.arange(heads, dtype=np.uint64))) & np.uint64(1)
    return torch.from_numpy((bits_BE.astype(np.bool_) & touched[:, None]).astype(np.float32))


def cautious_gradient(gradient_BEA: Tensor, u_BA: Tensor, kappa: float) -> Tensor:
    """Deviation 4: g = mean_e g_e - kappa std_e g_e sign(u): ascent of A's lower bound over the box of slopes that the heads span."""
    mean_BA = gradient_BEA.mean(1)
    std_BA = (gradient_BEA - mean_BA.unsqueeze(1)).square().mean(1).sqrt()
    return mean_BA - kappa * std_BA * torch.tanh(u_BA / SIGN_WIDTH)


class DDPG:
    """One policy's learner. Deterministic: the same seed and the same calls give the same bits."""

    def __init__(
        self,
        action: ActionSpec,
        features: FeatureSpec,
        settings: TrainerSettings,
        seed: int,
        tables: Mapping[str, EmbeddingTable] = MappingProxyType({}),
    ) -> None:
        """`tables`: one for each feature whose table is dynamic. What they remember is not in `state_dict`."""
        assert [*tables] == [feature.name for feature in features.dynamic], [*tables]
        self.action_spec, self.feature_spec, self.settings, self.tables = action, features, settings, tables
        self.network = Network(action, features, settings, torch.Generator().manual_seed(seed))
        network, decay = self.network, settings.weight_decay
        critic_parameters = [weight for part in (network.encoder, network.value, network.advantages) for weight in part.parameters()]
        self._critic_optimiser = AdamW(critic_parameters, settings.critic_learning_rate, decay, settings.max_grad_norm)
        self._actor_optimiser = AdamW(list(network.actor.parameters()), settings.actor_learning_rate, decay, settings.max_grad_norm)
        self.features = self._zscore(len(features.normalised))
        self.rewards = self._zscore(1)
        self.reward_bound = 0.0
        self.steps = 0
        self.skipped_steps = 0

    def _zscore(self, size: int) -> Zscore:
        settings = self.settings
        return Zscore(
            size,
            half_life_rows=settings.normaliser_half_life_rows,
            warm_up_rows=settings.normaliser_warm_up_rows,
            clip=settings.normaliser_clip,
            min_variance=settings.normaliser_min_variance,
        )

    def observe(self, rows: Transitions, now_s: int = 0) -> None:
        """Take new transitions into the normalisers and the dynamic tables, once each; `now_s` is their event time."""
        for name, table in self.tables.items():
            keys = rows.state.sequences[name].ravel().view(np.uint64)
            for start in range(0, len(keys), self.settings.embedding_hot_rows):
                table.observe(keys[start : start + self.settings.embedding_hot_rows], now_s)
        self.features.update(rows.state.dense)
        self.rewards.update(rows.reward[:, None])
        self.reward_bound = max(self.reward_bound, float(np.abs(rows.reward).max(initial=0.0)))

    @property
    def reward_scale(self) -> float:
        """Standard deviation of the reward: what one unit of V and A inside the network is worth."""
        return float(self.rewards.constants().std_N[0])

    def state_tensors(self, state: StateColumns) -> StateTensors:
        """The network's input for states as served, normalised and looked up as of now."""
        matrices = {name: torch.from_numpy(self.rows(state, name)).view(len(state), -1, table.dim) for name, table in self.tables.items()}
        return state_tensors(state, self.features.constants(), self.feature_spec, matrices)

    def inputs(self, state: StateColumns) -> dict[str, npt.NDArray[Any]]:
        """What the exported graph takes for these states."""
        return {**state.inputs(), **{rows_input(name): self.rows(state, name) for name in self.tables}}

    def rows(self, state: StateColumns, name: str) -> npt.NDArray[np.float32]:
        """The embeddings [B, T * D] of a feature whose table is dynamic."""
        keys_BT = state.sequences[name]
        return self.tables[name].weights(keys_BT.ravel().view(np.uint64)).reshape(len(keys_BT), -1)

    def act(self, state: StateColumns) -> npt.NDArray[np.float32]:
        """mu(s), [B, A], without exploration."""
        with torch.no_grad():
            action_BA: npt.NDArray[np.float32] = self.network.actor(self.network.encoder(self.state_tensors(state))).numpy()
        return action_BA

    def values(self, state: StateColumns) -> npt.NDArray[np.float64]:
        """V(s), [B], in reward units."""
        with torch.no_grad():
            value_B = self.network.value(self.network.encoder(self.state_tensors(state)))
        return np.asarray(value_B.numpy(), np.float64) * self.reward_scale

    def advantages(self, state: StateColumns, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """A_e(s, a) of every head, [B, E], in reward units."""
        with torch.no_grad():
            code_BH = self.network.encoder(self.state_tensors(state))
            advantage_BE = self.network.advantages(code_BH, self.network.actor.half_ranges(torch.from_numpy(action)))
        return np.asarray(advantage_BE.numpy(), np.float64) * self.reward_scale

    def learn(self, batch: Transitions) -> dict[str, float]:
        """One gradient step of critic and actor. The metrics are defined in docs/learners/ddpg.md; a skipped step gives none."""
        is_ok, code_BH, metrics = self._learn_critic(batch)
        if is_ok:
            is_ok, actor_metrics = self._learn_actor(code_BH.detach())
            metrics |= actor_metrics
        self.steps += is_ok
        self.skipped_steps += not is_ok
        return {**(metrics if is_ok else {}), "skipped_steps": float(self.skipped_steps)}

    def _learn_critic(self, batch: Transitions) -> tuple[bool, Tensor, dict[str, float]]:
        network, settings, scale = self.network, self.settings, self.reward_scale
        reward_B = torch.from_numpy((batch.reward / scale).astype(np.float32))
        done_B = torch.from_numpy(batch.done.astype(np.float32))
        touched_B = torch.from_numpy(batch.touched.astype(np.float32))
        u_BA = network.actor.half_ranges(torch.from_numpy(batch.action))
        used_BE = bootstrap_mask(batch.id_hash, batch.touched, settings.heads)
        next_value_B = self._next_values(batch)
        gathered, leaves, matrices = self._gather(batch.state)
        code_BH = network.encoder(state_tensors(batch.state, self.features.constants(), self.feature_spec, matrices))
        value_B = network.value(code_BH)
        advantage_BE = network.advantages(code_BH, u_BA)
        advantage_B = advantage_BE.detach().mean(1) * touched_B
        residual_B = td_error(reward_B, done_B, next_value_B, value_B.detach(), torch.zeros_like(value_B), torch.from_numpy(batch.discount))
        delta_B = residual_B - advantage_B
        loss_v = value_loss(delta_B + value_B.detach(), value_B)
        loss_a = advantage_loss(residual_B, advantage_BE, used_BE)
        is_ok, norm, gradients = self._critic_optimiser.step_with(loss_v + loss_a, leaves)
        for table, rows, gradient in zip(self.tables.values(), gathered, gradients, strict=is_ok):
            table.scatter(rows, gradient.numpy())
        q_max = float((value_B.detach() + advantage_B).abs().max()) * scale
        metrics = {
            "v_mean": float(value_B.detach().mean()) * scale,
            "v_loss": float(loss_v.detach()),
            "a_loss": float(loss_a.detach()),
            "td_error": float(delta_B.abs().mean()) * scale,
            "q_divergence": q_max * (1.0 - float(batch.discount.max())) / max(self.reward_bound, 1e-9),
            "grad_norm": norm,
        }
        return is_ok, code_BH, metrics

    def _gather(self, state: StateColumns) -> tuple[list[Gathered], list[Tensor], dict[str, Tensor]]:
        """For each dynamic table: the rows that these states use, the same as a tensor to descend on, and the feature's matrix of it."""
        gathered = [table.gather(state.sequences[name].ravel().view(np.uint64)) for name, table in self.tables.items()]
        leaves = [torch.from_numpy(rows.weights_UD.copy()).requires_grad_() for rows in gathered]
        matrices = {
            name: torch.nn.functional.embedding(torch.from_numpy(rows.inverse_B).view(len(state), -1), leaf)
            for name, rows, leaf in zip(self.tables, gathered, leaves, strict=True)
        }
        return gathered, leaves, matrices

    def _next_values(self, batch: Transitions) -> Tensor:
        """V(s'), held. Where a session is done there is no s', and the target takes no value from it: 0."""
        value_B = torch.zeros(len(batch))
        goes_on = np.flatnonzero(~batch.done)
        with torch.no_grad():
            code_RH = self.network.encoder(self.state_tensors(batch.next_state.take(goes_on)))
            value_B[torch.from_numpy(goes_on)] = self.network.value(code_RH)
        return value_B

    def _learn_actor(self, code_BH: Tensor) -> tuple[bool, dict[str, float]]:
        actor = self.network.actor
        reach_BA = actor.reach(code_BH)
        with torch.no_grad():
            u_BA = actor.bounded(reach_BA)
            advantage_BE = self.network.advantages(code_BH, u_BA)
            gradient_BA = cautious_gradient(self.network.advantages.gradient(code_BH, u_BA), u_BA, self.settings.pessimism)
        # d loss / d reach = -g, whatever the clamp does: deviation 6
        loss = -(gradient_BA * reach_BA).sum(1).mean() + 0.5 * (reach_BA - u_BA).square().sum(1).mean()
        is_ok, norm = self._actor_optimiser.step(loss)
        return is_ok, {
            "a_mean": float(advantage_BE.mean()) * self.reward_scale,
            "actor_grad_norm": norm,
            "action_shift": float(u_BA.abs().mean()),
            "at_bound": float(((u_BA <= actor.u_low_A) | (u_BA >= actor.u_high_A)).float().mean()),
        }

    def state_dict(self) -> DDPGState:
        """Everything the learner remembers, copied: later steps do not change it."""
        state: DDPGState = {
            "network": self.network.state_dict(),
            "critic_optimiser": self._critic_optimiser.state_dict(),
            "actor_optimiser": self._actor_optimiser.state_dict(),
            "features": self.features.state_dict(),
            "rewards": self.rewards.state_dict(),
            "reward_bound": self.reward_bound,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: DDPGState) -> None:
        """Go on from an earlier `state_dict` of a learner of the same specification and sizes."""
        state = copy.deepcopy(state)  # optimisers keep the tensors that they are given
        self.network.load_state_dict(state["network"])
        self._critic_optimiser.load_state_dict(state["critic_optimiser"])
        self._actor_optimiser.load_state_dict(state["actor_optimiser"])
        self.features.load_state_dict(state["features"])
        self.rewards.load_state_dict(state["rewards"])
        self.reward_bound, self.steps, self.skipped_steps = state["reward_bound"], state["steps"], state["skipped_steps"]
