"""The network, generated from the feature and action specifications: one encoder, and the heads V(s), A(s, a) and mu(s).

Shape legend: B batch, N normalised numbers, P plain numbers, I id columns, T list length, D embedding columns, C CNN channels, H state
code, A action numbers, E advantage heads.

Inside, an action is u = (a - baseline) / half_range, so u = 0 is the baseline and every dimension has the same scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from schemas.action import ActionSpec
from schemas.features import FeatureSpec, IdFeature, ListedFeature, MultiIdFeature, SequenceFeature
from schemas.id_hash import PADDING
from schemas.state_columns import StateColumns
from trainer.settings import TrainerSettings
from trainer.window_pool import WindowPool
from trainer.zscore import ZscoreConstants

ACTOR_REACH = 2.0
"""2 tanh(x) reaches every bound, in units of half the range, from every baseline between the bounds; a clamp does the rest."""


NO_ATTENTION = -1e9
"""The score of a position that holds no id: its weight is 0 beside any other. (Minus infinity gives NaN where a sequence is empty.)"""


DYNAMIC_BIAS = 0.1
"""Rows of a dynamic table begin at zero: without a bias the ReLU behind them would have no gradient there, and they would stay."""


@dataclass(frozen=True)
class StateTensors:
    """B normalised states: dense_BN and plain_BP float32, ids_BI int64, sequences_BT int64 in the order of the specification.

    `matrices_BTD`: for each list the embeddings of its ids, looked up already, where its table is dynamic; else None.
    """

    dense_BN: Tensor
    plain_BP: Tensor
    ids_BI: Tensor
    sequences_BT: tuple[Tensor, ...]
    matrices_BTD: tuple[Tensor | None, ...]


def state_tensors(
    columns: StateColumns, normalise: ZscoreConstants, features: FeatureSpec, matrices_BTD: Mapping[str, Tensor] = MappingProxyType({})
) -> StateTensors:
    """The encoder's input for states as served. `matrices_BTD`: of the features whose tables are dynamic."""
    sequences = tuple(torch.from_numpy(columns.sequences[feature.name]) for feature in features.listed)
    dense, plain, ids = (torch.from_numpy(column) for column in (normalise(columns.dense), columns.plain, columns.ids))
    return StateTensors(dense, plain, ids, sequences, tuple(matrices_BTD.get(feature.name) for feature in features.listed))


class Linear(nn.Linear):
    """A layer whose weights somebody else draws: torch's own would draw them from the global generator first."""

    def reset_parameters(self) -> None:
        """Leaves the weights as they are."""


class Embedding(nn.Embedding):
    """A table whose weights somebody else draws."""

    def reset_parameters(self) -> None:
        """Leaves the weights as they are."""


def linear(inputs: int, outputs: int, generator: torch.Generator, *, zero: bool = False) -> nn.Linear:
    """A linear layer drawn from `generator` (He 2015, uniform) with zero bias; or all zero."""
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    return layer


def embedding(buckets: int, dim: int, generator: torch.Generator) -> nn.Embedding:
    """An embedding table whose padding row is zero and stays zero."""
    table = Embedding(buckets, dim, padding_idx=PADDING)
    nn.init.normal_(table.weight, std=dim**-0.5, generator=generator)
    with torch.no_grad():
        table.weight[PADDING].zero_()
    return table


class SequenceBlock(nn.Module):
    """Recent ids -> intent: embedding matrix -> 1-D CNN -> maximum and mean over the positions that hold an id.

    The CNN's weight is [C, K * D], a linear layer over windows of K ids: window_pool.py says how it is computed.
    """

    def __init__(self, feature: SequenceFeature, channels: int, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel = kernel
        self.width = 2 * channels
        self.table = None if feature.is_dynamic else embedding(feature.buckets, feature.dim, generator)
        self.convolution = linear(feature.dim * kernel, channels, generator)
        if feature.is_dynamic:
            nn.init.constant_(self.convolution.bias, DYNAMIC_BIAS)

    @property
    def pads(self) -> tuple[int, int]:
        """Positions in front and behind that hold no id and keep the length T; the odd one is behind."""
        return (self.kernel - 1) // 2, self.kernel // 2

    def forward(self, ids_BT: Tensor, matrix_BTD: Tensor | None = None) -> Tensor:
        """[B, 2C]; zero where a sequence is empty. `matrix_BTD` where the table is dynamic."""
        if self.table is None:
            assert matrix_BTD is not None
            # contiguous, as WindowPool wants it: without padding it would be a view with time behind
            matrix_SBD = nn.functional.pad(matrix_BTD.transpose(0, 1), (0, 0, 0, 0, *self.pads)).contiguous()
        else:
            matrix_SBD = self.table(nn.functional.pad(ids_BT, self.pads, value=PADDING).T)
        held_TB1 = (ids_BT != PADDING).to(matrix_SBD.dtype).T.unsqueeze(2)
        best_BC, total_BC = WindowPool.apply(matrix_SBD, held_TB1, self.convolution.weight, self.convolution.bias)  # type: ignore[no-untyped-call]
        return torch.cat([best_BC, total_BC / held_TB1.sum(0).clamp(min=1.0)], dim=1)


class AttentionBlock(nn.Module):
    """Recent ids -> intent: sum_t alpha_t e_t, alpha = softmax over held positions of q . tanh(W e_t + b) (Yang et al. 2016)."""

    def __init__(self, feature: SequenceFeature, generator: torch.Generator) -> None:
        super().__init__()
        self.width = feature.dim
        self.table = None if feature.is_dynamic else embedding(feature.buckets, feature.dim, generator)
        self.key = linear(feature.dim, feature.dim, generator)
        self.query = linear(feature.dim, 1, generator)

    def forward(self, ids_BT: Tensor, matrix_BTD: Tensor | None = None) -> Tensor:
        """[B, D]; zero where a sequence is empty. `matrix_BTD` where the table is dynamic."""
        matrix_BTD = matrix_BTD if self.table is None else self.table(ids_BT)
        assert matrix_BTD is not None
        score_BT = self.query(torch.tanh(self.key(matrix_BTD))).squeeze(2)
        weight_BT = torch.softmax(score_BT.masked_fill(ids_BT == PADDING, NO_ATTENTION), dim=1)
        intent_BD: Tensor = (weight_BT.unsqueeze(2) * matrix_BTD).sum(1)  # padding's embedding is zero
        return intent_BD


class SetBlock(nn.Module):
    """A set of ids -> the mean, sum or maximum of their embeddings; one id -> its embedding, where that is looked up already."""

    def __init__(self, feature: MultiIdFeature | IdFeature, generator: torch.Generator) -> None:
        super().__init__()
        self.width = feature.dim
        self.pooling: Literal["mean", "sum", "max"] = feature.pooling if isinstance(feature, MultiIdFeature) else "sum"
        self.table = None if feature.is_dynamic else embedding(feature.buckets, feature.dim, generator)

    def forward(self, ids_BT: Tensor, matrix_BTD: Tensor | None = None) -> Tensor:
        """[B, D]; zero where a set is empty. `matrix_BTD` where the table is dynamic."""
        if self.table is not None:
            return nn.functional.embedding_bag(ids_BT, self.table.weight, mode=self.pooling, padding_idx=PADDING)
        assert matrix_BTD is not None
        held_BT1 = (ids_BT != PADDING).unsqueeze(2)
        match self.pooling:  # padding's embedding is zero
            case "sum":
                return matrix_BTD.sum(1)
            case "mean":
                return matrix_BTD.sum(1) / held_BT1.sum(1).clamp(min=1)
            case "max":
                largest_BD = matrix_BTD.masked_fill(~held_BT1, torch.finfo(matrix_BTD.dtype).min).amax(1)
                return largest_BD.masked_fill(~held_BT1.any(1), 0.0)


Block = SequenceBlock | AttentionBlock | SetBlock


def list_block(feature: ListedFeature, settings: TrainerSettings, generator: torch.Generator) -> Block:
    """The part of the encoder that reads a feature of the columns `sequences`."""
    if isinstance(feature, MultiIdFeature | IdFeature):
        return SetBlock(feature, generator)
    match feature.pooling:
        case "cnn":
            return SequenceBlock(feature, settings.channels, settings.kernel, generator)
        case "attention":
            return AttentionBlock(feature, generator)


class Encoder(nn.Module):
    """State -> code_BH in [-1, 1]: numbers, id embeddings and list blocks, concatenated, through an MLP."""

    def __init__(self, features: FeatureSpec, settings: TrainerSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.tables = nn.ModuleList([embedding(table.rows, table.dim, generator) for table in features.tables])
        blocks = [list_block(feature, settings, generator) for feature in features.listed]
        self.blocks = nn.ModuleList(blocks)
        numbers = len(features.normalised) + features.plain_size
        width = numbers + sum(table.dim for table in features.tables) + sum(block.width for block in blocks)
        widths = (width, *settings.hidden)
        self.layers = nn.ModuleList([linear(widths[i], widths[i + 1], generator) for i in range(len(settings.hidden))])
        self.norms = nn.ModuleList([nn.LayerNorm(size) for size in settings.hidden])

    def forward(self, state: StateTensors) -> Tensor:
        parts = [state.dense_BN, state.plain_BP]
        parts += [table(state.ids_BI[:, column]) for column, table in enumerate(self.tables)]
        lists = zip(self.blocks, state.sequences_BT, state.matrices_BTD, strict=True)
        parts += [block(ids_BT, matrix_BTD) for block, ids_BT, matrix_BTD in lists]
        code_BH = torch.cat(parts, dim=1)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            code_BH = norm(layer(code_BH))
            code_BH = torch.tanh(code_BH) if i == len(self.layers) - 1 else torch.relu(code_BH)
        return code_BH


class ValueHead(nn.Module):
    """V(s): what the session is worth from here on when nothing is changed, in scaled reward."""

    def __init__(self, settings: TrainerSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = linear(settings.hidden[-1], settings.head_hidden, generator)
        self.output = linear(settings.head_hidden, 1, generator, zero=True)

    def forward(self, code_BH: Tensor) -> Tensor:
        value_B1: Tensor = self.output(torch.relu(self.hidden(code_BH)))
        return value_B1.squeeze(1)


class AdvantageHeads(nn.Module):
    """A_e(s, a) = f_e(s, u) - f_e(s, 0), e = 1..E: zero for the baseline by construction.

    f_e(s, u) = slope_e(s) . u + curve_e(s) . u^2 / 2 + MLP_e(s, u). The first two multiply state code and action, so that a
    state-dependent best direction is linear in the weights; the MLP takes what is left. All start at zero.
    """

    def __init__(self, settings: TrainerSettings, action_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = settings.heads
        self.slope = linear(settings.hidden[-1], settings.heads * action_size, generator, zero=True)
        self.curve = linear(settings.hidden[-1], settings.heads * action_size, generator, zero=True)
        self.from_code = linear(settings.hidden[-1], settings.head_hidden, generator)
        self.from_action = linear(action_size, settings.head_hidden, generator)
        self.output = linear(settings.head_hidden, settings.heads, generator, zero=True)

    def forward(self, code_BH: Tensor, u_BA: Tensor) -> Tensor:
        """A_BE."""
        slope_BEA = self.slope(code_BH).unflatten(1, (self.heads, -1))
        curve_BEA = self.curve(code_BH).unflatten(1, (self.heads, -1))
        u_B1A = u_BA.unsqueeze(1)
        smooth_BE = ((slope_BEA + 0.5 * curve_BEA * u_B1A) * u_B1A).sum(2)
        from_code_BK = self.from_code(code_BH)
        weight_AK = self.from_action.weight.T
        bent_BK = torch.relu(from_code_BK + u_BA @ weight_AK) - torch.relu(from_code_BK)
        advantage_BE: Tensor = smooth_BE + bent_BK @ self.output.weight.T
        return advantage_BE

    def gradient(self, code_BH: Tensor, u_BA: Tensor) -> Tensor:
        """dA_e/du, [B, E, A], in closed form: one pass for all heads, where autograd takes one a head."""
        slope_BEA = self.slope(code_BH).unflatten(1, (self.heads, -1))
        curve_BEA = self.curve(code_BH).unflatten(1, (self.heads, -1))
        is_on_BK = (self.from_code(code_BH) + u_BA @ self.from_action.weight.T > 0).to(u_BA.dtype)
        bent_BEK = is_on_BK.unsqueeze(1) * self.output.weight
        gradient_BEA: Tensor = slope_BEA + curve_BEA * u_BA.unsqueeze(1) + bent_BEK @ self.from_action.weight
        return gradient_BEA


class Actor(nn.Module):
    """mu(s): the action in bounds. Its last layer starts at zero, so that it starts exactly at the baseline."""

    def __init__(self, action: ActionSpec, settings: TrainerSettings, generator: torch.Generator) -> None:
        super().__init__()
        low_A, baseline_A, high_A = (np.array(values, np.float64) for values in (action.low, action.baseline, action.high))
        half_A = (high_A - low_A) / 2
        self.hidden = linear(settings.hidden[-1], settings.head_hidden, generator)
        self.output = linear(settings.head_hidden, action.size, generator, zero=True)
        for name, values in (("low", low_A), ("baseline", baseline_A), ("high", high_A), ("half", half_A)):
            self.register_buffer(f"{name}_A", torch.from_numpy(values).float(), persistent=False)
        self.register_buffer("u_low_A", torch.from_numpy((low_A - baseline_A) / half_A).float(), persistent=False)
        self.register_buffer("u_high_A", torch.from_numpy((high_A - baseline_A) / half_A).float(), persistent=False)

    low_A: Tensor
    baseline_A: Tensor
    high_A: Tensor
    half_A: Tensor
    u_low_A: Tensor
    u_high_A: Tensor

    def reach(self, code_BH: Tensor) -> Tensor:
        """Where the actor points, in half-ranges from the baseline; it may lie outside the bounds."""
        reach_BA: Tensor = ACTOR_REACH * torch.tanh(self.output(torch.relu(self.hidden(code_BH))))
        return reach_BA

    def bounded(self, reach_BA: Tensor) -> Tensor:
        """u_BA within the bounds."""
        return torch.minimum(torch.maximum(reach_BA, self.u_low_A), self.u_high_A)

    def action(self, u_BA: Tensor) -> Tensor:
        """Half-ranges from the baseline -> the action in its own units."""
        return torch.minimum(torch.maximum(self.baseline_A + self.half_A * u_BA, self.low_A), self.high_A)

    def half_ranges(self, action_BA: Tensor) -> Tensor:
        """The opposite of `action`."""
        return (action_BA - self.baseline_A) / self.half_A

    def forward(self, code_BH: Tensor) -> Tensor:
        """The action a_BA in its own units."""
        return self.action(self.bounded(self.reach(code_BH)))


class Network(nn.Module):
    """Encoder and heads, drawn from `generator` alone: the same seed gives the same weights."""

    def __init__(self, action: ActionSpec, features: FeatureSpec, settings: TrainerSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = Encoder(features, settings, generator)
        self.value = ValueHead(settings, generator)
        self.advantages = AdvantageHeads(settings, action.size, generator)
        self.actor = Actor(action, settings, generator)
