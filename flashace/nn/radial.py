"""Distance in, radial basis and envelope out; both end smoothly at the cutoff. A new basis is one class here and one line in `model.py`."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


def polynomial_envelope(r: Tensor, r_max: float | Tensor, exponent: int) -> Tensor:
    """Envelope f(r): 1 at r = 0; value, first and second derivative vanish at `r_max`; 0 beyond.

    f = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) with x = r/r_max, p = `exponent` (Gasteiger et al.,
    arXiv:2003.03123, eq. 8). Written as (1-x)^3 Σ_{k<p} (k+1)(k+2)/2 x^k, which is the same polynomial without
    its cancellation at the cutoff: the result is never negative, in float32 too.
    """
    x = (r / r_max).clamp(max=1.0)
    tail = torch.zeros_like(x)
    for k in reversed(range(exponent)):
        tail = tail * x + (k + 1) * (k + 2) / 2
    return (1 - x) ** 3 * tail


def mean_envelope(exponent: int) -> float:
    """The mean of `polynomial_envelope` over the sphere of radius `r_max`, 3 ∫ f x² dx: 0.34 for an exponent of 6."""
    p = exponent
    return 1 - 1.5 * (p + 1) * (p + 2) / (p + 3) + 3 * p * (p + 2) / (p + 4) - 1.5 * p * (p + 1) / (p + 5)


def never_closer(r: Tensor, least: Tensor) -> Tensor:
    """r, flattened out to 0.95 `least` where it is less than 0.9 `least`, and as it is from `least` on; three times differentiable."""
    t = ((r / least.clamp(min=1e-3) - 0.9) / 0.1).clamp(0.0, 1.0)
    # the slope grows from 0 to 1 as the smoothstep 10 t³ - 15 t⁴ + 6 t⁵
    return torch.where(r < least, least * (0.95 + 0.1 * t**4 * (2.5 - 3 * t + t**2)), r)


class BesselBasis(nn.Module):
    """b_n(r) = sqrt(2/r_max) sin(k_n r) / r with k_n = n π / r_max at the start (Gasteiger et al., eq. 7).

    When trainable, the frequencies stay positive and ordered: their spacings are learned through a softplus.
    """

    def __init__(self, r_max: float, num_radial: int, trainable: bool) -> None:
        super().__init__()
        self.r_max = r_max
        self.raw_spacing = _positive_parameter(torch.full((num_radial,), math.pi / r_max), trainable)

    @property
    def frequencies(self) -> Tensor:
        """[num_radial], 1/Å, ascending."""
        return softplus(self.raw_spacing).cumsum(0)

    def forward(self, r: Tensor) -> Tensor:
        """r [...] in Å -> [..., num_radial]."""
        return math.sqrt(2 / self.r_max) * torch.sin(r.unsqueeze(-1) * self.frequencies) / r.unsqueeze(-1)


class GaussianBasis(nn.Module):
    """b_n(r) = exp(-(r - c_n)² / (2 w_n²)), centres evenly over (0, r_max]; widths in Å, one spacing where none is given.

    When trainable, centres stay positive and ordered and widths positive, through a softplus.
    """

    def __init__(self, r_max: float, num_radial: int, trainable: bool, width: float | None) -> None:
        super().__init__()
        spacing = r_max / num_radial
        self.raw_spacing = _positive_parameter(torch.full((num_radial,), spacing), trainable)
        self.raw_width = _positive_parameter(torch.full((num_radial,), width or spacing), trainable)

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


def _positive_parameter(value: Tensor, trainable: bool) -> nn.Parameter:
    """A parameter whose softplus is `value`."""
    raw = value.double() + torch.log(-torch.expm1(-value.double()))
    return nn.Parameter(raw.to(value.dtype), requires_grad=trainable)
