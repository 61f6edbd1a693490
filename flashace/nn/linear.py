"""Linear maps of scalars and of tensors, and rows of tables; weights start at variance 1 / fan-in, so outputs keep their inputs' scale."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """x [..., fan_in] -> [..., fan_out]; no bias unless asked for.

    `blocks` says of how many matrices side by side the weight consists (one per head, say): [blocks, fan_in, fan_out / blocks].
    """

    def __init__(self, fan_in: int, fan_out: int, bias: bool = False, gain: float = 1.0, blocks: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(blocks, fan_in, fan_out // blocks) * gain * fan_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """The map along the last axis."""
        y = (x @ self.weight.movedim(0, 1).flatten(1)).to(x.dtype)
        return y if self.bias is None else y + self.bias


class TensorLinear(nn.Module):
    """Tensors [N, (l_max+1)², fan_in] -> [N, (l_max+1)², fan_out]: one matrix per degree l, which mixes channels and no components.

    With `first` = 1 the degrees start at l = 1, and neither input nor output has a row for l = 0.
    """

    def __init__(self, fan_in: int, fan_out: int, l_max: int, first: int = 0) -> None:
        super().__init__()
        self.sizes = [2 * l + 1 for l in range(first, l_max + 1)]
        self.weights = nn.ParameterList([torch.randn(fan_in, fan_out) * fan_in**-0.5 for _ in self.sizes])

    def forward(self, x: Tensor) -> Tensor:
        """The map, degree by degree."""
        return torch.cat([part @ w for part, w in zip(x.split(self.sizes, dim=1), self.weights, strict=True)], dim=1).to(x.dtype)


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """table[index], exactly, as a product: table [S, W], index [...] -> [..., W].

    Where weights are looked up by index, torch adds up their gradient with as many threads as there are, in the order in which these
    happen to come: two fits of one seed then differ. A product has one order.
    """
    with torch.autocast(table.device.type, enabled=False):
        return (index.unsqueeze(-1) == torch.arange(table.shape[0], device=index.device)).to(table.dtype) @ table


def full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method that mixed precision leaves alone: geometry, attention, products of harmonics, energies.

    What is left are the linear maps between them: autocast takes their products in half precision, and what comes out, and everything
    that is added up, has the precision of the weights again.
    """

    @wraps(function)
    def in_full_precision(self: nn.Module, x: Tensor, *others: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return function(self, x, *others)

    return in_full_precision
