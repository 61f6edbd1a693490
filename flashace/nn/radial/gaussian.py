"""Distance in, Gaussians out."""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flashace.nn.radial.positive import positive_parameter


class GaussianBasis(nn.Module):
    """b_n(r) = exp(-(r - c_n)² / (2 w_n²)), centres evenly over (0, r_max]; widths in Å, one spacing where none is given.

    When trainable, centres stay positive and ordered and widths positive, through a softplus.
    """

    def __init__(self, r_max: float, num_radial: int, trainable: bool, width: float | None) -> None:
        super().__init__()
        spacing = r_max / num_radial
        self.raw_spacing = positive_parameter(torch.full((num_radial,), spacing), trainable)
        self.raw_width = positive_parameter(torch.full((num_radial,), width or spacing), trainable)

    @property
    def centres(self) -> Tensor:
        """[num_radial], Å, ascending."""
        return softplus(self.raw_spacing).cumsum(0)

    @property
    def widths(self) -> Tensor:
        """[num_radial], Å."""
        return softplus(self.raw_width)

    def forward(self, r: Tensor) -> Tensor:
        """r [...] in Å -> [..., num_radial]."""
        return torch.exp(-0.5 * ((r.unsqueeze(-1) - self.centres) / self.widths) ** 2)
