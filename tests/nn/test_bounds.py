"""What is large is bounded, what is small stays, and both are smooth between."""

import math

import pytest
import torch

from flashace.nn.bounds import bounded, saturated

EXACT = 1e-11


def vectors():
    return torch.randn(3, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_vectors_keep_their_direction_and_lose_length():
    x = vectors()
    lengths = torch.stack([x[:, lm] ** 2 for lm in range(9)]).sum(0).sqrt()  # [N, K]
    torch.testing.assert_close(bounded(x, 5.0), x / torch.sqrt(1 + (lengths / 5) ** 2).unsqueeze(1), atol=EXACT, rtol=0)
    assert (bounded(1e30 * x, 5.0).square().sum(1).sqrt() <= 5 + EXACT).all()
    torch.testing.assert_close(bounded(1e-6 * x, 5.0), 1e-6 * x, rtol=1e-11, atol=0)
    assert torch.equal(bounded(x, math.inf), x)


def test_energies_saturate():
    x = torch.tensor([-1e30, -30.0, -2.0, 0.0, 1e-9, 2.0, 30.0, 1e30], dtype=torch.float64)
    y = saturated(x, 10.0)
    assert (y.abs() <= 10.0).all()
    torch.testing.assert_close(y[2:6], x[2:6], atol=0, rtol=4.1e-4)  # a fifth of the limit
    torch.testing.assert_close(y[[0, -1]], torch.tensor([-10.0, 10.0], dtype=torch.float64))
    assert (saturated(torch.linspace(-50, 50, 1001, dtype=torch.float64), 10.0).diff() > 0).all()
    assert torch.equal(saturated(x, math.inf), x)


@pytest.mark.parametrize("function", [lambda x: bounded(x, 1.5), lambda x: saturated(x, 1.5)], ids=["bounded", "saturated"])
def test_derivatives(function):
    x = vectors()[:1, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))
