"""The repulsion of the nuclei: the published formula, its end, its limit, and that it repels."""

import math

import numpy as np
import pytest
import torch
from ase import units
from numpy.polynomial import Polynomial

from flashace.potential.repulsion import Repulsion

NUMBERS = [1, 6, 14, 79]
END = torch.tensor([[0.6, 1.1, 1.4, 1.7], [1.1, 1.5, 1.9, 2.1], [1.4, 1.9, 2.2, 2.5], [1.7, 2.1, 2.5, 2.7]], dtype=torch.float64)  # Å
PAIRS = [(i, j) for i in range(4) for j in range(4)]


def half(repulsion, r, i, j):
    vec = torch.stack([torch.zeros_like(r), 0.6 * r, -0.8 * r], dim=-1)
    return repulsion.of_edges(vec, torch.full(r.shape, i), torch.full(r.shape, j))


def published(r, z1, z2, end):
    """Ziegler, Biersack and Littmark with the constants of ase.units, times Gasteiger's envelope with p = 6."""
    coulomb = units._e / (4 * math.pi * units._eps0) * 1e10
    x = r / (0.88534 * units.Bohr / (z1**0.23 + z2**0.23))
    phi = 0.18175 * np.exp(-3.1998 * x) + 0.50986 * np.exp(-0.94229 * x) + 0.28022 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.20162 * x)
    envelope = Polynomial([1, 0, 0, 0, 0, 0, -28, 48, -21])(r / end)
    return np.where(r < end, coulomb * z1 * z2 / r * phi * envelope, 0.0)


@pytest.mark.parametrize(("i", "j"), PAIRS)
def test_it_is_the_published_formula(i, j):
    r = torch.linspace(0.01, 3.0, 200, dtype=torch.float64)
    expected = published(r.numpy(), NUMBERS[i], NUMBERS[j], END[i, j].item())
    np.testing.assert_allclose(2 * half(Repulsion(NUMBERS, END), r, i, j), expected, rtol=1e-6, atol=1e-9 * expected[0])


def test_both_atoms_have_the_same_share():
    r, repulsion = torch.linspace(0.1, 2.0, 20, dtype=torch.float64), Repulsion(NUMBERS, END)
    for i, j in PAIRS:
        assert torch.equal(half(repulsion, r, i, j), half(repulsion, r, j, i))


def test_close_nuclei_are_bare():
    r = torch.tensor([1e-6], dtype=torch.float64)
    assert float(2 * r * half(Repulsion(NUMBERS, END), r, 1, 3)) == pytest.approx(14.3996 * 6 * 79, rel=1e-4)


@pytest.mark.parametrize(("i", "j"), [(0, 0), (0, 1), (2, 3)])
def test_it_ends_smoothly(i, j):
    repulsion, end = Repulsion(NUMBERS, END), END[i, j].item()
    for r in torch.tensor([end, end + 1e-9, end + 1.0], dtype=torch.float64).unsqueeze(1):
        r.requires_grad_()
        energy = half(repulsion, r, i, j)
        (first,) = torch.autograd.grad(energy.sum(), r, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), r)
        assert energy.item() == first.item() == second.item() == 0.0
    inside = torch.tensor([end * (1 - 1e-3)], dtype=torch.float64)
    assert 0 < half(repulsion, inside, i, j).item() < 1e-4


def test_it_repels_ever_more_between_all_elements():
    numbers = list(range(1, 97))
    repulsion, r = Repulsion(numbers, torch.ones(96, 96)), torch.linspace(0.02, 0.5, 49, dtype=torch.float64)
    i, j = torch.triu_indices(96, 96)
    vec = torch.nn.functional.pad(r[:, None, None].expand(-1, len(i), 1), (0, 2)).reshape(-1, 3)
    curves = repulsion.of_edges(vec, i.repeat(len(r)), j.repeat(len(r))).reshape(len(r), -1)
    assert (curves.diff(dim=0) < 0).all()
    assert curves.min() > 0


def test_derivatives_are_those_of_the_energy():
    repulsion = Repulsion(NUMBERS, END)
    vec = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vec = (0.7 * vec / vec.norm(dim=-1, keepdim=True)).requires_grad_()
    i, j = torch.tensor([0, 1, 2, 3, 1, 2]), torch.tensor([1, 1, 3, 3, 2, 2])
    assert torch.autograd.gradcheck(lambda v: repulsion.of_edges(v, i, j), vec)
    assert torch.autograd.gradgradcheck(lambda v: repulsion.of_edges(v, i, j), vec)


def test_float32_vectors_give_float64_energies():
    vec = torch.tensor([[0.25, 0.0, 0.0]])
    repulsion, zero = Repulsion(NUMBERS, END), torch.zeros(1, dtype=torch.long)
    assert torch.equal(repulsion.of_edges(vec, zero, zero), repulsion.of_edges(vec.double(), zero, zero))
