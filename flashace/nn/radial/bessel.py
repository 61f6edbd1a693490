"""Distance in, Bessel functions out."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flashace.nn.radial.positive import positive_parameter


class BesselBasis(nn.Module):
    """b_n(r) = sqrt(2/r_max) sin(k_n r) / r with k_n = n π / r_max at the start (Gasteiger et al., eq. 7).

    When trainable, the frequencies stay positive and ordered: their spacings are learned through a softplus.
    """

    def __init__(self, r_max: float, num_radial: int, trainable: bool) -> None:
        super().__init__()
        self.r_max = r_max
        self.raw_spacing = positive_parameter(torch.full((num_radial,), math.pi / r_max), trainable)

    @property
    def frequencies(self) -> Tensor:
        """[num_radial], 1/Å, ascending."""
        return softplus(self.raw_spacing).cumsum(0)

    def forward(self, r: Tensor) -> Tensor:
        """r [...] in Å -> [..., num_radial]."""
        return math.sqrt(2 / self.r_max) * torch.sin(r.unsqueeze(-1) * self.frequencies) / r.unsqueeze(-1)
