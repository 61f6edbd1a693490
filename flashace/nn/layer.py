"""One layer, steps 1 to 6 in order: state and geometry in, the next state out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from flashace.nn.attention import NeighbourAttention
from flashace.nn.bounds import Limits, bounded
from flashace.nn.edge_functions import EdgeFunctions
from flashace.nn.linear import Linear, TensorLinear
from flashace.nn.product import ProductBasis


class Layer(nn.Module):
    """Attend over the neighbours, expand what was attended in an ACE basis, update scalars s and tensors t of each atom."""

    def __init__(
        self,
        edge_functions: EdgeFunctions,
        attention: NeighbourAttention,
        product: ProductBasis,
        hidden_dim: int,
        num_channels: int,
        l_max: int,
        correlation: int,
        has_tensors: bool,
        layer_scale: float,
        limits: Limits,
        attended_gain: float,
    ) -> None:
        super().__init__()
        self.edge_functions = edge_functions
        self.attention = attention
        self.product = product
        self.limits = limits
        self.mix_scalars = Linear(hidden_dim, num_channels, bias=True)
        self.mix_basis = TensorLinear(2 * num_channels, num_channels, l_max)
        for weight in self.mix_basis.weights:
            weight.data[:num_channels] *= attended_gain
        self.mix_tensors = TensorLinear(num_channels, num_channels, l_max, first=1) if has_tensors else None
        self.values_out = Linear(hidden_dim, hidden_dim, gain=attended_gain)
        self.scalars_out = Linear(correlation * num_channels, hidden_dim)
        self.tensors_out = TensorLinear(correlation * num_channels, num_channels, l_max, first=1)
        self.feed_forward = FeedForward(hidden_dim, num_channels, l_max, limits.feed_forward)
        self.scale_scalars = nn.Parameter(torch.full((2, hidden_dim), layer_scale))
        self.scale_tensors = nn.Parameter(torch.full((2, num_channels), layer_scale))

    def forward(
        self, s: Tensor, t: Tensor | None, basis: Tensor, envelope: Tensor, Y: Tensor, centre: Tensor, neighbour: Tensor
    ) -> tuple[Tensor, Tensor]:
        """s [N, F], t [N, L-1, K] or None, radial basis [N, M, num_radial], envelope [N, M], Y [N, M, L], element indices -> s, t."""
        edge = self.edge_functions(basis, centre, neighbour)
        return self.update(s, t, *self.attention(s, t, edge, envelope, Y))

    def update(
        self,
        s: Tensor,
        t: Tensor | None,
        values: Tensor,
        attended: Tensor,
        plain: Tensor,
        product: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What follows the attention: state, attended values [N, F], attended and plain basis [N, L, K] -> s, t.

        `product` stands in for the product basis, where a kernel computes it.
        """
        A = self.mix_basis(torch.cat([attended, plain], dim=-1))
        A0, A1 = A[:, :1] + self.mix_scalars(s).unsqueeze(1), A[:, 1:]
        if self.mix_tensors is not None and t is not None:
            A1 = A1 + self.mix_tensors(t)
        B = (product or self.product)(bounded(torch.cat([A0, A1], dim=1), self.limits.basis))

        s = s + self.scale_scalars[0] * (self.scalars_out(B[:, 0]) + self.values_out(values))
        update = self.scale_tensors[0] * self.tensors_out(B[:, 1:])
        t = update if t is None else t + update

        ds, gate = self.feed_forward(s, t)
        return s + self.scale_scalars[1] * ds, t + self.scale_tensors[1] * gate * t


class FeedForward(nn.Module):
    """Gated feed-forward on the invariants s and |t_l|² (Shazeer, arXiv:2002.05202): an update of s and a factor for each t_l.

    Each invariant is `bounded` by `limit` first.
    """

    def __init__(self, hidden_dim: int, num_channels: int, l_max: int, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.sizes = [2 * l + 1 for l in range(1, l_max + 1)]
        self.split = [hidden_dim, l_max * num_channels]
        self.gate_and_value = Linear(sum(self.split), 2 * hidden_dim, bias=True, blocks=2)
        self.out = Linear(hidden_dim, sum(self.split))

    def forward(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """s [N, F], t [N, L-1, K] -> update of s [N, F], factor [N, L-1, K]."""
        squares = [part.square().mean(1) for part in t.split(self.sizes, dim=1)]
        invariants = bounded(torch.cat([s, *squares], dim=-1).unsqueeze(1), self.limit).squeeze(1)
        gate, value = self.gate_and_value(invariants).chunk(2, dim=-1)
        ds, factors = self.out(silu(gate) * value).split(self.split, dim=-1)
        per_degree = factors.unflatten(-1, (len(self.sizes), -1))
        return ds, torch.cat([per_degree[:, i : i + 1].expand(-1, n, -1) for i, n in enumerate(self.sizes)], dim=1)
