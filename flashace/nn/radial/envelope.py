"""Distance in, out what ends everything smoothly at the cutoff, and the distance at which the network looks."""

import torch
from torch import Tensor


def polynomial_envelope(r: Tensor, r_max: float | Tensor, exponent: int) -> Tensor:
    """Envelope f(r): 1 at r = 0; value, first and second derivative vanish at `r_max`; 0 beyond.

    f = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) with x = r/r_max, p = `exponent` (Gasteiger et al.,
    arXiv:2003.03123, eq. 8). Written as (1-x)^3 Σ_{k<p} (k+1)(k+2)/2 x^k, which is the same polynomial without
    its cancellation at the cutoff: the result is never negative, in float32 too.

    >>> polynomial_envelope(torch.tensor([0.0, 2.5, 5.0, 6.0]), 5.0, exponent=6).tolist()
    [1.0, 0.85546875, 0.0, 0.0]
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
    """r, flattened out to 0.95 `least` where it is less than 0.9 `least`, and as it is from `least` on; three times differentiable.

    The slope falls from 1 to 0 over the last tenth of `least`, evenly about its middle, and so covers half of it: hence 0.95.
    """
    t = ((r / least.clamp(min=1e-3) - 0.9) / 0.1).clamp(0.0, 1.0)
    # the slope grows from 0 to 1 as the smoothstep 10 t³ - 15 t⁴ + 6 t⁵
    return torch.where(r < least, least * (0.95 + 0.1 * t**4 * (2.5 - 3 * t + t**2)), r)
