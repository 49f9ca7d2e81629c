import pytest
import torch
from torch import nn

from schemas.features import SequenceFeature
from trainer.network import SequenceBlock
from trainer.window_pool import WindowPool


def block(kernel: int = 3) -> SequenceBlock:
    generator = torch.Generator().manual_seed(1)
    made = SequenceBlock(SequenceFeature(name="recent", length=6, buckets=12, dim=3), channels=4, kernel=kernel, generator=generator)
    nn.init.normal_(made.convolution.bias, std=0.3, generator=generator)
    return made


def some_ids(rows: int = 9) -> torch.Tensor:
    ids = torch.randint(1, 12, (rows, 6), generator=torch.Generator().manual_seed(2))
    held = torch.arange(rows) % 7  # from none to all of the six
    ids[torch.arange(6) < 6 - held.unsqueeze(1)] = 0
    return ids


def reference(made: SequenceBlock, ids: torch.Tensor) -> torch.Tensor:
    """The same with torch's convolution and autograd."""
    matrix = nn.functional.pad(made.table(ids).transpose(1, 2), made.pads)
    weight = made.convolution.weight.unflatten(1, (made.kernel, -1)).transpose(1, 2)
    maps = torch.relu(nn.functional.conv1d(matrix, weight, made.convolution.bias)) * (ids != 0).unsqueeze(1)
    return torch.cat([maps.amax(2), maps.sum(2) / (ids != 0).sum(1, keepdim=True).clamp(min=1)], dim=1)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_values_and_gradients_are_those_of_torch_s_convolution(kernel: int) -> None:
    made, ids = block(kernel), some_ids()
    torch.testing.assert_close(made(ids), reference(made, ids))
    weight = torch.randn(9, 8, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((made(ids) * weight).sum(), list(made.parameters()))
    theirs = torch.autograd.grad((reference(made, ids) * weight).sum(), list(made.parameters()))
    for gradient, expected in zip(ours, theirs, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected)


def test_the_gradients_are_those_of_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    matrix, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((7, 4, 2), (3, 6), (3,))
    )
    held = (torch.rand(5, 4, 1, generator=generator) < 0.7).double()
    assert torch.autograd.gradcheck(lambda m, w, b: WindowPool.apply(m, held, w, b), (matrix, weight, bias))


def test_positions_that_share_the_maximum_share_its_gradient() -> None:
    matrix = torch.tensor([2.0, 2.0, 1.0, 2.0]).view(4, 1, 1).requires_grad_()
    best, _ = WindowPool.apply(matrix, torch.tensor([1.0, 1.0, 1.0, 0.0]).view(4, 1, 1), torch.ones(1, 1), torch.zeros(1))
    assert best.tolist() == [[2.0]]
    assert torch.autograd.grad(best.sum(), matrix)[0].flatten().tolist() == [0.5, 0.5, 0.0, 0.0]


def test_a_batch_of_no_rows_gives_no_rows() -> None:
    assert block()(torch.zeros((0, 6), dtype=torch.int64)).shape == (0, 8)
