"""Gradients of weight matrices in, orthogonal updates out: Muon, for many small matrices at once."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al., https://kellerjordan.github.io/posts/muon/


class Muon(Optimizer):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` (Jordan et al. 2024; Liu et al., arXiv:2502.16982).

    Matrices of one shape are orthogonalised together, in their own precision: with a few dozen small matrices, torch's
    version (which is the test of this one) spends its time in the overhead of single products, and that is as much as the
    gradient itself takes. Parameters may have leading dimensions: [..., a, b] are so many matrices of their own.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95, ns_steps: int = 5
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    a, b = p.shape[-2:]
                    shapes[a, b].append(p)
            for parameters in shapes.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Parameters whose last two dimensions agree."""
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        a, b = parameters[0].shape[-2:]
        stacked = torch.cat([d.reshape(-1, a, b) for d in directions])
        orthogonal = orthogonalize(stacked, group["ns_steps"]).split([p.numel() // (a * b) for p in parameters])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(a, b) ** 0.5
        torch._foreach_add_(
            parameters, [o.reshape(p.shape) for o, p in zip(orthogonal, parameters, strict=True)], alpha=-group["lr"] * size
        )


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """[k, a, b] -> the nearest (semi-)orthogonal matrices, roughly: singular values end within about 0.7 to 1.2 of 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    X = matrices.mT if tall else matrices
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X
