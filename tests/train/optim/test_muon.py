"""Muon against torch's own, and against the singular value decomposition that it approximates."""

import pytest
import torch

from flashace.train.optim.muon import Muon, orthogonalize

SHAPES = [(6, 6), (4, 10), (10, 4), (6, 6), (16, 3)]
ROUNDING = 2e-2  # of an update: torch multiplies in bfloat16


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_steps_are_those_of_torch():
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES] for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "ns_steps": 5}
    optimizers = Muon(ours, **options), torch.optim.Muon(theirs, **options, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        moved = (other - 1).square().mean() ** 0.5
        assert (one - other).square().mean() ** 0.5 < ROUNDING * moved


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 4, 9), (2, 9, 4), (1, 1, 7)])
def test_the_directions_are_nearly_orthogonal(shape):
    matrices = 1e-3 * torch.randn(shape, dtype=torch.float64)
    U, _, V = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalize(matrices, 8)
    middle = U.mT @ found @ V.mT
    torch.testing.assert_close(middle, torch.diag_embed(middle.diagonal(dim1=1, dim2=2)), atol=1e-6, rtol=0)
    singular = middle.diagonal(dim1=1, dim2=2)
    assert ((singular > 0.6) & (singular < 1.25)).all()


def test_leading_dimensions_are_matrices_of_their_own():
    gradients = torch.randn(3, 4, 6)
    together = torch.nn.Parameter(torch.zeros(3, 4, 6))
    alone = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(3)]
    together.grad = gradients.clone()
    for p, g in zip(alone, gradients, strict=True):
        p.grad = g.clone()
    Muon([together], lr=0.1).step()
    Muon(alone, lr=0.1).step()
    torch.testing.assert_close(together.data, torch.stack([p.data for p in alone]))


def test_no_gradient_no_move_and_a_zero_gradient_is_no_nan():
    still, zero, moving = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(3))
    zero.grad, moving.grad = torch.zeros(3, 3), torch.eye(3)
    Muon([still, zero, moving], lr=0.1).step()
    assert (still == 1).all()
    assert (zero == 1).all()
    assert (moving != 1).any()
    assert moving.isfinite().all()


def test_the_state_goes_through_a_file_bit_by_bit(tmp_path):
    def run(steps, state=None, start=None):
        torch.manual_seed(1)
        p = torch.nn.Parameter(torch.ones(4, 4) if start is None else start.clone())
        optimizer = Muon([p], lr=0.1)
        if state is not None:
            optimizer.load_state_dict(state)
        gradients = torch.randn(6, 4, 4)
        for g in gradients[steps]:
            p.grad = g.clone()
            optimizer.step()
        return p.detach(), optimizer.state_dict()

    whole, _ = run(slice(0, 6))
    half, state = run(slice(0, 3))
    torch.save(state, tmp_path / "state.pt")
    rest, _ = run(slice(3, 6), torch.load(tmp_path / "state.pt"), half)
    assert torch.equal(rest, whole)
