"""Envelope and radial bases: the ends, the published formulas, and what training may do to them."""

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial

from flashace.nn.radial import BesselBasis, GaussianBasis, mean_envelope, never_closer, polynomial_envelope

R_MAX = 4.5  # Å
EXPONENTS = [2, 3, 5, 6, 8, 12]
BASIS = {
    "bessel": lambda trainable=False, n=6: BesselBasis(R_MAX, n, trainable),
    "gaussian": lambda trainable=False, n=6: GaussianBasis(R_MAX, n, trainable, None),
    "gaussian with width": lambda trainable=False, n=6: GaussianBasis(R_MAX, n, trainable, 0.4),
}


def published(p):
    """Gasteiger et al., arXiv:2003.03123, eq. 8, as a polynomial in x = r / r_max."""
    return Polynomial([1] + [0] * (p - 1) + [-(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2])


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_mean_of_the_envelope(p):
    integral = (published(p) * Polynomial([0, 0, 3])).integ()
    np.testing.assert_allclose(mean_envelope(p), integral(1) - integral(0), rtol=1e-11)


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_envelope_is_the_published_polynomial(p):
    x = np.linspace(0, 1, 101)
    f = polynomial_envelope(torch.tensor(x * R_MAX), R_MAX, p)
    np.testing.assert_allclose(f, published(p)(x), atol=1e-12)
    assert f[0] == 1.0


@pytest.mark.parametrize("p", EXPONENTS)
def test_value_and_two_derivatives_vanish_at_the_cutoff(p):
    r = torch.tensor(R_MAX, dtype=torch.float64, requires_grad=True)
    f = polynomial_envelope(r, R_MAX, p)
    (first,) = torch.autograd.grad(f, r, create_graph=True)
    (second,) = torch.autograd.grad(first, r, create_graph=True)
    assert f.item() == first.item() == second.item() == 0.0
    near = torch.tensor(R_MAX * (1 - 1e-4), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(polynomial_envelope(near, R_MAX, p), near, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, near)
    assert -1e-5 < slope.item() < 0
    assert 0 < curvature.item() < 0.1  # continuous: it was 0 at the cutoff


@pytest.mark.parametrize("p", EXPONENTS)
def test_derivatives_are_those_of_the_polynomial(p):
    r = torch.linspace(0.01, 0.999, 50, dtype=torch.float64).mul(R_MAX).requires_grad_()
    (first,) = torch.autograd.grad(polynomial_envelope(r, R_MAX, p).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    x = r.detach().numpy() / R_MAX
    np.testing.assert_allclose(first.detach(), published(p).deriv(1)(x) / R_MAX, atol=1e-10)
    np.testing.assert_allclose(second, published(p).deriv(2)(x) / R_MAX**2, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", EXPONENTS)
def test_the_envelope_falls_from_one_to_zero_and_is_never_negative(p, dtype):
    r = torch.linspace(0, R_MAX, 20_001, dtype=dtype)
    f = polynomial_envelope(r, R_MAX, p)
    assert ((f >= 0) & (f <= 1 + 4 * torch.finfo(dtype).eps)).all()
    assert (f.diff() <= 4 * torch.finfo(dtype).eps).all()
    assert (polynomial_envelope(torch.tensor([1.0, 1 + 1e-6, 2, 100], dtype=dtype) * R_MAX, R_MAX, p) == 0).all()


# Distances that training did not have


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_flatten_out_below_the_least_and_stay_as_they_are_above(dtype):
    least = torch.tensor(1.7, dtype=dtype)
    r = torch.linspace(0, 3, 3001, dtype=dtype)
    seen = never_closer(r, least)
    assert torch.equal(seen[r >= least], r[r >= least])
    assert (seen[r <= 0.9 * least] == 0.95 * least).all()
    assert (seen.diff() >= -torch.finfo(dtype).eps).all()
    assert torch.equal(never_closer(r, torch.zeros((), dtype=dtype)), r)  # nothing is known: nothing is changed


def test_distances_flatten_out_smoothly():
    """Value and three derivatives are those of the pieces on either side: r above, a constant below."""
    least = torch.tensor(1.0, dtype=torch.float64)
    for place, expected in ((1.0, [1.0, 1.0, 0.0, 0.0]), (0.9, [0.95, 0.0, 0.0, 0.0])):
        for side in (-1e-7, 1e-7):
            r = torch.tensor(place + side, dtype=torch.float64, requires_grad=True)
            found = [never_closer(r, least)]
            for _ in range(3):
                found.append(torch.autograd.grad(found[-1], r, create_graph=True)[0] if found[-1].requires_grad else torch.tensor(0.0))
            assert [x.item() for x in found] == pytest.approx(expected, abs=1e-2)


# Bases


def test_bessel_is_the_published_formula():
    r = torch.linspace(0.1, R_MAX, 40, dtype=torch.float64)
    found = BASIS["bessel"]().double()(r)
    for n in range(1, 7):
        expected = (2 / R_MAX) ** 0.5 * torch.sin(n * torch.pi * r / R_MAX) / r
        torch.testing.assert_close(found[:, n - 1], expected, atol=1e-6, rtol=0)  # frequencies are drawn up in float32
    assert found[-1].abs().max() < 1e-6


def test_bessel_functions_are_orthonormal():
    r = torch.linspace(1e-4, R_MAX, 20_001, dtype=torch.float64)
    b = BASIS["bessel"]().double()(r).detach() * r[:, None]
    overlap = torch.trapezoid(b[:, :, None] * b[:, None, :], r, dim=0)
    torch.testing.assert_close(overlap, torch.eye(6, dtype=torch.float64), atol=1e-4, rtol=0)


def test_gaussians_are_the_formula():
    r = torch.linspace(0.1, R_MAX, 40, dtype=torch.float64)
    for basis, width in ((BASIS["gaussian"](), R_MAX / 6), (BASIS["gaussian with width"](), 0.4)):
        found = basis.double()(r)
        for n in range(1, 7):
            expected = torch.exp(-0.5 * ((r - n * R_MAX / 6) / width) ** 2)
            torch.testing.assert_close(found[:, n - 1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", BASIS)
@pytest.mark.parametrize("n", [1, 6, 20])
def test_parameters_start_positive_and_ordered(kind, n):
    basis = BASIS[kind](n=n)
    places = basis.frequencies if kind == "bessel" else basis.centres
    expected = torch.arange(1, n + 1) * (torch.pi / R_MAX if kind == "bessel" else R_MAX / n)
    torch.testing.assert_close(places.detach(), expected, rtol=1e-5, atol=0)
    assert basis(torch.rand(3, 4, 2)).shape == (3, 4, 2, n)


@pytest.mark.parametrize("kind", BASIS)
def test_trainable_parameters_move_and_keep_their_order(kind):
    basis = BASIS[kind](trainable=True).double()
    start = [p.detach().clone() for p in basis.parameters()]
    optimizer = torch.optim.Adam(basis.parameters(), lr=0.5)
    r = torch.linspace(0.5, R_MAX, 30, dtype=torch.float64)
    for step in range(200):
        optimizer.zero_grad()
        ((basis(r) - torch.sin(3 * r + 0.1 * step)[:, None]) ** 2).sum().backward()
        optimizer.step()
    assert all((p != before).any() for p, before in zip(basis.parameters(), start, strict=True))
    places = basis.frequencies if kind == "bessel" else basis.centres
    assert (places > 0).all()
    assert (places.diff() >= 0).all()
    if kind != "bessel":
        assert (basis.widths > 0).all()
    assert basis(r).isfinite().all()


@pytest.mark.parametrize("kind", BASIS)
def test_fixed_parameters_do_not_train(kind):
    assert [p for p in BASIS[kind]().parameters() if p.requires_grad] == []
    assert [p for p in BASIS[kind](trainable=True).parameters() if not p.requires_grad] == []


def test_every_basis_can_be_chosen_by_name(make_model):
    for name, kind in {"bessel": BesselBasis, "gaussian": GaussianBasis}.items():
        assert type(make_model(radial_basis_type=name).radial_basis) is kind
