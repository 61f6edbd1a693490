"""State and edge functions in, attended and plain atomic basis out (steps 2 to 4 of a layer)."""

import torch
from torch import Tensor, nn

from flashace.nn.edge_functions import EdgeFeatures
from flashace.nn.linear import Linear, TensorLinear, full_precision


class NeighbourAttention(nn.Module):
    """Each atom attends over its neighbours, with one head per group of channels.

    score   a^h_ij = q^h(s_i)·κ_ij / √d + Σ_l c^h_l,ij ⟨Q^h_l(t_i), Y_l(r̂_ij)⟩ / √(2l+1)
    weight  α^h_ij = f_ij exp(a^h_ij) / (n + Σ_k f_ik exp(a^h_ik))
    basis   Σ_j α^h(k)_ij R_kl,ij Y_lm(r̂_ij)  and  Σ_j f_ij R_kl,ij Y_lm(r̂_ij) / √⟨N⟩
    """

    def __init__(
        self,
        hidden_dim: int,
        num_channels: int,
        num_heads: int,
        key_dim: int,
        l_max: int,
        avg_num_neighbors: float,
        has_tensors: bool,
        own_weight: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.key_dim = num_heads, key_dim
        self.sizes = [2 * l + 1 for l in range(l_max + 1)]
        self.plain_scale = avg_num_neighbors**-0.5
        self.own_weight = own_weight
        self.query = Linear(hidden_dim, num_heads * key_dim, bias=True, blocks=num_heads)
        self.direction_query = TensorLinear(num_channels, num_heads, l_max, first=1) if has_tensors and l_max else None

    @full_precision
    def forward(self, s: Tensor, t: Tensor | None, edge: EdgeFeatures, envelope: Tensor, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s [N, hidden_dim], t [N, (l_max+1)² - 1, K] or None, envelope [N, M], Y [N, M, (l_max+1)²].

        Returns attended values [N, hidden_dim], attended and plain basis [N, (l_max+1)², K].
        """
        weight = attention_weights(self._scores(s, t, edge, Y), envelope, self.own_weight)
        values = (weight.unsqueeze(-1) * edge.values.unflatten(-1, (self.num_heads, -1))).sum(1).flatten(1)
        num_channels = edge.radial.shape[-1]
        attended = weight.repeat_interleave(num_channels // self.num_heads, dim=-1) if num_channels != self.num_heads else weight
        per_channel = torch.cat([attended, (self.plain_scale * envelope).unsqueeze(-1).expand_as(attended)], dim=-1)
        basis = []
        for l, Y_l in enumerate(Y.split(self.sizes, dim=-1)):
            R_l = edge.radial[:, :, l]
            basis.append(Y_l.transpose(1, 2) @ (per_channel * torch.cat([R_l, R_l], dim=-1)))
        attended_basis, plain_basis = torch.cat(basis, dim=1).split(num_channels, dim=-1)
        return values, attended_basis, plain_basis

    def _scores(self, s: Tensor, t: Tensor | None, edge: EdgeFeatures, Y: Tensor) -> Tensor:
        """[N, M, H]."""
        query = self.query(s).unflatten(-1, (self.num_heads, self.key_dim))
        score = edge.keys @ query.mT * self.key_dim**-0.5
        if self.direction_query is not None and t is not None:
            looks = self.direction_query(t).split(self.sizes[1:], dim=1)
            for l, (look, Y_l) in enumerate(zip(looks, Y[..., 1:].split(self.sizes[1:], dim=-1), strict=True)):
                score = score + edge.direction_keys[:, :, l] * (Y_l @ look) * (2 * l + 3) ** -0.5
        return score


def attention_weights(score: Tensor, envelope: Tensor, own_weight: float = 1.0) -> Tensor:
    """α [N, M, H] of scores [N, M, H] and envelope [N, M]; `own_weight`, n in the denominator, is the atom itself.

    Exact for any shift of the exponent; the shift taken is the largest of 0 and log(f exp(a)), so nothing overflows.
    """
    envelope = envelope.unsqueeze(-1)
    score = torch.where(envelope > 0, score, 0.0)  # at the cutoff, where empty slots stand, exp must not reach infinity: 0 · ∞ is NaN
    with torch.no_grad():
        shift = (score + envelope.log()).amax(1, keepdim=True).clamp(min=0.0)
    weight = envelope * torch.exp(score - shift)
    return weight / (own_weight * torch.exp(-shift) + weight.sum(1, keepdim=True))
