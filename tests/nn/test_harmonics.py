"""Real spherical harmonics against e3nn, and their rotation."""

import pytest
import torch
from e3nn import o3

from flashace.nn.harmonics import SphericalHarmonics

EXACT = 1e-12
DEGREES = range(7)


def directions(n=50):
    v = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    return torch.cat([v / v.norm(dim=-1, keepdim=True), axes])


@pytest.mark.parametrize("l_max", DEGREES)
def test_they_are_those_of_e3nn(l_max):
    u = directions()
    expected = o3.spherical_harmonics(list(range(l_max + 1)), u, normalize=False, normalization="component")
    torch.testing.assert_close(SphericalHarmonics(l_max)(u), expected, atol=EXACT, rtol=0)


def test_they_rotate_with_wigner_matrices(turns):
    u, harmonics = directions(), SphericalHarmonics(6)
    for matrix, D in turns(6):
        torch.testing.assert_close(D @ D.T, torch.eye(49, dtype=torch.float64), atol=1e-10, rtol=0)
        torch.testing.assert_close(harmonics(u @ matrix.T), harmonics(u) @ D.T, atol=1e-10, rtol=0)
        theirs = o3.Irreps.spherical_harmonics(6).D_from_matrix(matrix)
        torch.testing.assert_close(D, theirs, atol=1e-5, rtol=0)  # e3nn's own, six digits


def test_the_norm_of_each_degree_is_2l_plus_1():
    for l, part in enumerate(SphericalHarmonics(6)(directions()).split([2 * l + 1 for l in DEGREES], dim=-1)):
        torch.testing.assert_close(part.square().sum(-1), torch.full((56,), 2.0 * l + 1, dtype=torch.float64), atol=EXACT, rtol=0)


def test_derivatives_are_those_of_e3nn():
    u = directions().requires_grad_()
    w = torch.randn(56, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tangent = torch.cross(u.detach(), torch.randn(56, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), dim=-1)
    ours, theirs = (
        (torch.autograd.grad((w * Y).sum(), u)[0] * tangent).sum(-1)
        for Y in (SphericalHarmonics(4)(u), o3.spherical_harmonics([0, 1, 2, 3, 4], u, normalize=False, normalization="component"))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)  # along the sphere; off it the polynomials may differ


def test_float32_and_leading_dimensions():
    u = directions().reshape(7, 8, 3)
    single = SphericalHarmonics(4).float()(u.float())
    assert (single.shape, single.dtype) == ((7, 8, 25), torch.float32)
    torch.testing.assert_close(single.double(), SphericalHarmonics(4)(u), atol=1e-5, rtol=0)
