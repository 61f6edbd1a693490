"""Vectors in, real spherical harmonics of their directions out, in e3nn's order, signs and `component` normalisation."""

import math
from fractions import Fraction

import torch
from e3nn import o3
from torch import Tensor, nn


class SphericalHarmonics(nn.Module):
    """Y_lm of unit vectors for 0 ≤ l ≤ l_max, as polynomials whose coefficients are read off e3nn once, in float64."""

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        for l in range(2, l_max + 1):
            self.register_buffer(f"coefficients_{l}", _coefficients(l), persistent=False)

    def forward(self, unit: Tensor) -> Tensor:
        """unit [..., 3] -> [..., (l_max+1)²]; |Y_l|² = 2l + 1."""
        parts = [torch.ones_like(unit[..., :1])]
        if self.l_max:
            parts.append(3**0.5 * unit)
        for l in range(2, self.l_max + 1):
            parts.append(_monomials(unit, l) @ getattr(self, f"coefficients_{l}").to(unit.dtype))
        return torch.cat(parts, dim=-1)

    def polynomials(self) -> tuple[Tensor, Tensor]:
        """Powers of x, y and z [n, 3] of the monomials of each degree in turn, and their coefficients in every Y_lm of it, in float64."""
        powers = torch.cat([torch.tensor(_powers(l)) for l in range(self.l_max + 1)])
        return powers, torch.cat([_coefficients(l).flatten() for l in range(self.l_max + 1)])


def _powers(l: int) -> list[tuple[int, int, int]]:
    """Of x, y and z, of the (l+1)(l+2)/2 monomials of degree l."""
    return [(a, b, l - a - b) for a in range(l + 1) for b in range(l - a + 1)]


def _monomials(unit: Tensor, l: int) -> Tensor:
    """[..., (l+1)(l+2)/2]: x^a y^b z^c with a + b + c = l."""
    x, y, z = unit.unbind(-1)
    powers = [[torch.ones_like(x)], [torch.ones_like(x)], [torch.ones_like(x)]]
    for series, component in zip(powers, (x, y, z), strict=True):
        for _ in range(l):
            series.append(series[-1] * component)
    return torch.stack([powers[0][a] * powers[1][b] * powers[2][c] for a, b, c in _powers(l)], dim=-1)


def _coefficients(l: int) -> Tensor:
    """[(l+1)(l+2)/2, 2l+1] in float64: the polynomial of degree l that equals e3nn's harmonics on the sphere."""
    with torch.device("cpu"):  # also where a model is built without memory, on "meta"
        return _fitted(l)


def _fitted(l: int) -> Tensor:
    points = torch.randn(64 * (l + 1), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = points / points.norm(dim=-1, keepdim=True)
    target = o3.spherical_harmonics(l, points, normalize=False, normalization="component")
    return torch.linalg.lstsq(_monomials(points, l), target).solution.apply_(_exact)


def _exact(coefficient: float) -> float:
    """The nearest number whose square is a simple fraction, as it is for every harmonic. The last bits of a solver depend on where its
    arrays happen to lie in memory, and two runs of one fit would differ by them."""
    return math.copysign(math.sqrt(Fraction(coefficient**2).limit_denominator(2**12)), coefficient) + 0.0
