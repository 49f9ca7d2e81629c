"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) with gradients clipped to a norm, and steps that are skipped whole.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    w <- w - rate (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)        b1 = 0.9, b2 = 0.999, eps = 1e-8

The arithmetic is the kernel of `torch.optim.AdamW(fused=True)`. The class around it is not used: it loads torch's compiler (seconds of
import), counts t in one tensor a weight, and clips in a pass of its own; that cost more than the arithmetic.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class AdamWState(TypedDict):
    """All that the optimiser remembers: m and v, one tensor a weight, and t."""

    first: list[Tensor]
    second: list[Tensor]
    step: Tensor


class AdamW:
    """Descends on `parameters`, in their order."""

    def __init__(self, parameters: list[torch.nn.Parameter], learning_rate: float, weight_decay: float, max_norm: float) -> None:
        self.parameters = parameters
        self._learning_rate, self._weight_decay, self._max_norm = learning_rate, weight_decay, max_norm
        self._state: AdamWState = {
            "first": [torch.zeros_like(weight) for weight in parameters],
            "second": [torch.zeros_like(weight) for weight in parameters],
            "step": torch.zeros(()),
        }

    def step(self, loss: Tensor) -> tuple[bool, float]:
        """Descend, unless the loss or its gradient is not finite. Gives whether it did, and the gradient's norm before clipping."""
        is_ok, norm, _ = self.step_with(loss, [])
        return is_ok, norm

    def step_with(self, loss: Tensor, others: Sequence[Tensor]) -> tuple[bool, float, tuple[Tensor, ...]]:
        """The same, where the loss depends on `others`, too, on which somebody else descends: their gradients, clipped with ours."""
        gradients = torch.autograd.grad(loss, [*self.parameters, *others], materialize_grads=True)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            return False, float(norm), ()
        divisor = torch.clamp(norm / self._max_norm, min=1.0)
        own = len(self.parameters)
        self._descend(gradients[:own], divisor)
        return True, float(norm), tuple(gradient / divisor for gradient in gradients[own:])

    @torch.no_grad()
    def _descend(self, gradients: tuple[Tensor, ...], divisor: Tensor) -> None:
        state = self._state
        state["step"].add_(1.0)
        torch._fused_adamw_(
            list(self.parameters),
            list(gradients),
            state["first"],
            state["second"],
            [],
            [state["step"]] * len(gradients),
            lr=self._learning_rate,
            beta1=BETA_1,
            beta2=BETA_2,
            weight_decay=self._weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,  # the kernel divides by it
        )

    def state_dict(self) -> AdamWState:
        """Everything remembered; not copied."""
        return self._state

    def load_state_dict(self, state: AdamWState) -> None:
        """Go on from an earlier `state_dict`, whose tensors are kept."""
        shapes = [weight.shape for weight in self.parameters]
        assert all([moment.shape for moment in state[name]] == shapes for name in ("first", "second")), shapes
        self._state = state
