"""Distance and the two species of a pair in; keys, values and radial functions of one layer out. Nothing else enters: these are curves."""

from copy import deepcopy
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from flashace.nn.linear import Linear, rows_of
from flashace.nn.radial import polynomial_envelope


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
        scale, shift = (rows_of(self.centre, centre) + rows_of(self.neighbour, neighbour)).chunk(2, dim=-1)
        x = silu(self.basis_in(basis) * (1 + scale) + shift)
        parts = self.out(x).split(self.sizes, dim=-1)
        return EdgeFeatures(*(part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)))


def tabulate(
    functions: EdgeFunctions, radial_basis: nn.Module, r_max: float, envelope_exponent: int, least: Tensor, intervals: int
) -> tuple[Tensor, float]:
    """The curves of all pairs of elements as sums of B-splines of fifth degree: [S², intervals + 5, 2, width] in float64.

    Row k of pair (centre · S + neighbour) has the k-th coefficient c_k and the step to the next. Over the k-th of the equal intervals
    from 0 to `r_max`, c_k to c_k+5 count with the weights w of uniform B-splines: Σ w_i c_k+i = c_k+3 + Σ_i<5 v_i step_k+i, a form in which
    rounded numbers lose less. The slope is the sum of the same steps with the weights of fourth degree, per interval.
    They are least-squares fits to four samples per interval. Columns: keys, direction keys, values (heads last), radial.
    Also the largest error of a sample at or beyond `least` [S, S] Å, in units of the largest value.
    """
    functions, radial_basis = deepcopy(functions).double(), deepcopy(radial_basis).double()
    num_elements = functions.centre.shape[0]
    num_heads = functions.shapes[1][1]
    r = torch.linspace(0, r_max, 4 * intervals + 1, dtype=torch.float64).clamp(min=1e-5 * r_max)  # no basis divides by zero
    knots = np.arange(-5, intervals + 6) * (r_max / intervals)
    weights = torch.from_numpy(BSpline.design_matrix(r.clamp(max=knots[-6]).numpy(), knots, 5).toarray())
    fit = torch.linalg.pinv(weights)

    tables, largest, error = [], 0.0, 0.0
    with torch.no_grad():
        basis = radial_basis(r) * polynomial_envelope(r, r_max, envelope_exponent).unsqueeze(-1)
        for centre, neighbour in product(torch.arange(num_elements), repeat=2):
            edge = functions(basis.unsqueeze(0), centre.view(1, 1), neighbour.expand(1, len(r)))
            values = edge.values.unflatten(-1, (num_heads, -1)).mT
            curves = torch.cat([part.flatten(2) for part in (edge.keys, edge.direction_keys, values, edge.radial)], dim=-1)[0]
            tables.append(fit @ curves)
            used = r >= least[centre, neighbour].clamp(max=r[-1])
            largest = max(largest, float(curves[used].abs().max()))
            error = max(error, float((weights @ tables[-1] - curves)[used].abs().max()))
    table = torch.stack(tables)
    return torch.stack([table, pad(table.diff(dim=1), (0, 0, 0, 1))], dim=2), error / max(largest, 1e-300)
