"""Distance and the two species of a pair in; keys, values and radial functions of one layer out. Nothing else enters: these are curves."""

from copy import deepcopy
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from flashace.nn.linear import Linear
from flashace.nn.radial import polynomial_envelope

KNOTS = 512  # of the splines, over 0 to r_max


class EdgeFeatures(NamedTuple):
    """What each pair contributes to a layer; N atoms, M neighbours, H heads, K channels."""

    keys: Tensor  # [N, M, key_dim], shared by the heads
    direction_keys: Tensor  # [N, M, l_max, H], c^h_l
    values: Tensor  # [N, M, hidden_dim], scalar values
    radial: Tensor  # [N, M, l_max + 1, K], R_kl


class EdgeFunctions(nn.Module):
    """MLP with one hidden layer, whose input is scaled and shifted by an embedding of the ordered species pair.

    A second hidden layer makes curves that generalise worse (docs/model.md). The last step is linear, so per-head keys would be linear
    maps of the hidden layer: they are folded into the queries, and one narrow key is shared by all heads (as multi-query attention
    does; Shazeer, arXiv:1911.02150).
    """

    def __init__(
        self,
        num_elements: int,
        num_radial: int,
        width: int,
        key_dim: int,
        num_heads: int,
        hidden_dim: int,
        num_channels: int,
        l_max: int,
    ) -> None:
        super().__init__()
        self.shapes = [(key_dim,), (l_max, num_heads), (hidden_dim,), (l_max + 1, num_channels)]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.centre = nn.Parameter(torch.randn(num_elements, 2 * width) * 0.5)
        self.neighbour = nn.Parameter(torch.randn(num_elements, 2 * width) * 0.5)
        self.basis_in = Linear(num_radial, width)
        self.out = Linear(width, sum(self.sizes))

    def forward(self, basis: Tensor, centre: Tensor, neighbour: Tensor) -> EdgeFeatures:
        """basis [N, M, num_radial], element indices centre [N, 1] and neighbour [N, M] -> EdgeFeatures."""
        scale, shift = (self.centre[centre] + self.neighbour[neighbour]).chunk(2, dim=-1)
        x = silu(self.basis_in(basis) * (1 + scale) + shift)
        parts = self.out(x).split(self.sizes, dim=-1)
        return EdgeFeatures(*(part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)))


def tabulate(functions: EdgeFunctions, radial_basis: nn.Module, r_max: float, envelope_exponent: int) -> Tensor:
    """The curves of all pairs of elements as cubic Hermite splines: [S², KNOTS, 4, width] in float64.

    Row (centre · S + neighbour, k) has the coefficients of 1, u, u² and u³ over the k-th of equal intervals from 0 to `r_max`, where u goes
    from -1 to 1; value and slope are those of the functions at its ends. Columns: keys, direction keys, values (heads last), radial.
    """
    functions, radial_basis = deepcopy(functions).double(), deepcopy(radial_basis).double()
    num_elements = functions.centre.shape[0]
    num_heads = functions.shapes[1][1]
    r = torch.linspace(0, r_max, KNOTS + 1, dtype=torch.float64).clamp(min=1e-3 * r_max / KNOTS)  # no basis divides by zero

    def curves(r: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        basis = radial_basis(r) * polynomial_envelope(r, r_max, envelope_exponent).unsqueeze(-1)
        edge = functions(basis.unsqueeze(0), centre.view(1, 1), neighbour.expand(1, len(r)))
        values = edge.values.unflatten(-1, (num_heads, -1)).mT
        return torch.cat([part.flatten(2) for part in (edge.keys, edge.direction_keys, values, edge.radial)], dim=-1)[0]

    tables = []
    with torch.no_grad():
        for centre, neighbour in product(torch.arange(num_elements), repeat=2):
            y, dy = torch.func.jvp(partial(curves, centre=centre, neighbour=neighbour), (r,), (torch.ones_like(r),))[:2]
            dy = dy * r_max / KNOTS / 2  # per u
            (y0, y1), (s0, s1) = ((x[:-1], x[1:]) for x in (y, dy))
            cubic = [(y0 + y1) / 2 + (s0 - s1) / 4, 0.75 * (y1 - y0) - (s0 + s1) / 4, (s1 - s0) / 4, (y0 - y1) / 4 + (s0 + s1) / 4]
            tables.append(torch.stack(cubic, dim=1))
    return torch.stack(tables)
