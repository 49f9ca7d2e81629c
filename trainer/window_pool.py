"""A 1-D convolution, ReLU, and the maximum and sum over the positions that hold an id, as one differentiable function.

    maps_t = held_t relu(bias + sum_k matrix_{t+k} weight_k)        best = max_t maps_t        total = sum_t maps_t

Autograd would copy every window forward, and write a zero-padded matrix for every window backward. With time in front, the rows that
meet weight_k lie side by side in memory: each k is one matrix product added in place, forward and backward. 1.5 to 2 times faster.

Shape legend: B batch, T sequence length, K kernel width, S = T + K - 1 padded length, D embedding columns, C channels.
"""

from typing import Any

import torch
from torch import Tensor


class WindowPool(torch.autograd.Function):
    """matrix_SBD, held_TB1 (1 where a position holds an id, else 0), weight [C, K * D], bias_C -> best_BC, total_BC."""

    @staticmethod
    def forward(ctx: Any, matrix_SBD: Tensor, held_TB1: Tensor, weight: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
        """The maximum starts at 0, which a held position's map never is below: padding does not count."""
        assert matrix_SBD.is_contiguous(), matrix_SBD.stride()  # else the views below are copies, and backward writes into them
        rows, weights = _by_place(matrix_SBD, held_TB1, weight)
        maps = torch.addmm(bias_C, rows[0], weights[0].T)
        for row, weight_CD in zip(rows[1:], weights[1:], strict=True):
            maps.addmm_(row, weight_CD.T)
        maps_TBC = maps.relu_().view(*held_TB1.shape[:2], len(bias_C)).mul_(held_TB1)
        best_BC = maps_TBC.amax(0)
        ctx.save_for_backward(matrix_SBD, held_TB1, weight, maps_TBC, best_BC)
        return best_BC, maps_TBC.sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Positions that share the maximum share its gradient, as in torch's amax. sign() is a comparison that is vectorised."""
        matrix_SBD, held_TB1, weight, maps_TBC, best_BC = ctx.saved_tensors
        best_gradient_BC, total_gradient_BC = gradients
        rows, weights = _by_place(matrix_SBD, held_TB1, weight)
        is_best_TBC = (maps_TBC - best_BC).sign_().add_(1.0)
        share_TBC = is_best_TBC.mul_(best_gradient_BC / is_best_TBC.sum(0)).add_(total_gradient_BC)
        maps_gradient = share_TBC.mul_(maps_TBC.sign()).flatten(0, 1)
        matrix_gradient_SBD = torch.zeros_like(matrix_SBD)
        into, _ = _by_place(matrix_gradient_SBD, held_TB1, weight)
        for row, weight_CD in zip(into, weights, strict=True):
            row.addmm_(maps_gradient, weight_CD)
        weight_gradient = torch.cat([maps_gradient.T @ row for row in rows], dim=1)
        return matrix_gradient_SBD, None, weight_gradient, maps_gradient.sum(0)


def _by_place(matrix_SBD: Tensor, held_TB1: Tensor, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """For every place k of the kernel: views of the rows [T * B, D] that meet it, and of its weight [C, D]."""
    padded, _, columns = matrix_SBD.shape
    length = len(held_TB1)
    rows = [matrix_SBD[place : place + length].flatten(0, 1) for place in range(padded - length + 1)]
    return rows, list(torch.split(weight, columns, dim=1))
