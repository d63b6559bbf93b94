"""Losses on the opacity, against plain loops and their limits."""

import math

import pytest
import torch
from fsd.regularizers import binary_entropy, sparsity


def opacity() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 1, 3, 4, generator=generator, dtype=torch.float64) * 0.98 + 0.01


def test_sparsity_against_a_loop():
    o = opacity()
    expected = sum(math.sqrt(v**2 + 0.01) for v in o.flatten().tolist()) / o.numel()
    assert sparsity(o).item() == pytest.approx(expected, abs=1e-12)
    # The floor that keeps it smooth at nothing, and less matter is less.
    assert sparsity(torch.zeros(1, 1, 2, 2)).item() == pytest.approx(0.1)
    assert sparsity(o / 2) < sparsity(o)


def test_entropy_against_a_loop():
    o = opacity()
    expected = sum(-v * math.log(v) - (1 - v) * math.log(1 - v) for v in o.flatten().tolist()) / o.numel()
    assert binary_entropy(o).item() == pytest.approx(expected, abs=1e-12)
    assert binary_entropy(torch.full((1, 1, 2, 2), 0.5)).item() == pytest.approx(math.log(2))
    for certain in (0.0, 1.0):
        assert binary_entropy(torch.full((1, 1, 2, 2), certain)) < 0.01


@pytest.mark.parametrize("loss", [sparsity, binary_entropy])
def test_gradients(loss):
    assert torch.autograd.gradcheck(loss, opacity().requires_grad_())


@pytest.mark.parametrize("loss", [sparsity, binary_entropy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_and_everything_have_finite_gradients(loss, dtype):
    """Renders hold exact zeros and ones."""
    o = torch.tensor([0.0, 0.3, 1.0], dtype=dtype).view(1, 1, 1, 3).requires_grad_()
    value = loss(o)
    value.backward()
    assert value.isfinite()
    assert o.grad is not None
    assert o.grad.isfinite().all()


@pytest.mark.compile
@pytest.mark.parametrize("loss", [sparsity, binary_entropy])
def test_compiled(loss):
    o = opacity()
    torch.testing.assert_close(torch.compile(loss, backend="aot_eager")(o), loss(o))
