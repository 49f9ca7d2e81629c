import copy

import pytest
import torch

from trainer.adamw import AdamW


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 4), (7,), ())]


def loss_of(weights: list[torch.nn.Parameter], step: int) -> torch.Tensor:
    return torch.stack([(weight - step).square().sum() * (step + 1) for weight in weights]).sum()


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_it_is_torch_s_adamw_with_clipped_gradients(max_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    optimiser, reference = AdamW(ours, 0.01, 0.1, max_norm), torch.optim.AdamW(theirs, 0.01, weight_decay=0.1)
    for step in range(6):
        is_ok, norm = optimiser.step(loss_of(ours, step))
        reference.zero_grad()
        loss_of(theirs, step).backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        reference.step()
        assert is_ok
        assert norm == pytest.approx(float(expected_norm))
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected)


def test_the_first_step_by_hand() -> None:
    # g = 2 w = 6, clipped to norm 3; m and v are corrected to g and g^2, so the step is the rate, and decay takes 0.1 * 0.5 * 3
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimiser = AdamW([weight], 0.1, 0.5, 3.0)
    assert optimiser.step(weight.square().sum()) == (True, 6.0)
    assert weight.item() == pytest.approx(3.0 - 0.15 - 0.1)
    state = optimiser.state_dict()
    assert (state["first"][0].item(), state["second"][0].item()) == (pytest.approx(0.1 * 3), pytest.approx(0.001 * 9))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(wrong: float) -> None:
    weights = parameters()
    optimiser = AdamW(weights, 0.01, 0.1, 1.0)
    optimiser.step(loss_of(weights, 1))
    before, state_before = copy.deepcopy(weights), copy.deepcopy(optimiser.state_dict())
    assert not optimiser.step(loss_of(weights, 2) * wrong)[0]
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert torch.equal(optimiser.state_dict()["step"], state_before["step"])
    for name in ("first", "second"):
        assert all(torch.equal(now, old) for now, old in zip(optimiser.state_dict()[name], state_before[name], strict=True))


def test_a_weight_that_the_loss_does_not_use_decays_only() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.full((2,), 4.0))
    AdamW([used, unused], 0.1, 0.5, 1.0).step(used.sum())
    assert unused.tolist() == pytest.approx([3.8, 3.8])


def test_it_goes_on_from_its_state() -> None:
    first, second = parameters(), parameters()
    optimiser = AdamW(first, 0.01, 0.1, 1.0)
    optimiser.step(loss_of(first, 1))
    resumed = AdamW(second, 0.01, 0.1, 1.0)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    with torch.no_grad():
        for weight, old in zip(second, first, strict=True):
            weight.copy_(old)
    for made, weights in ((optimiser, first), (resumed, second)):
        made.step(loss_of(weights, 2))
    assert all(torch.equal(weight, other) for weight, other in zip(first, second, strict=True))
