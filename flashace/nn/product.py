"""Atomic basis in, product basis out: the many-body part of ACE (Drautz, Phys. Rev. B 99, 014104, 2019, eqs. 27-30)."""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from flashace.nn.bounds import bounded
from flashace.nn.linear import full_precision, rows_of


class ProductBasis(nn.Module):
    """Channelwise Clebsch-Gordan powers of the atomic basis, built up one factor at a time.

    B¹ = A,  B^ν_kl = Σ_(l1,l2) w^ν_k,(l1,l2,l) [B^(ν-1)_kl1 ⊗ A_kl2]_l, over paths of even parity (l1 + l2 + l even); for ν = 2 only
    l1 ≤ l2, since the factors commute. Cost is linear in the order, so any `correlation` ≥ 1 can be asked for. Each B^ν is `bounded` by
    `limit` before it goes on.
    """

    def __init__(self, num_channels: int, l_max: int, correlation: int, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.contractions = nn.ModuleList([Contraction(num_channels, l_max, symmetric=order == 2) for order in range(2, correlation + 1)])

    @full_precision
    def forward(self, A: Tensor) -> Tensor:
        """A [N, (l_max+1)², K] -> [N, (l_max+1)², correlation · K], orders side by side."""
        orders = [A]
        for contraction in self.contractions:
            orders.append(bounded(contraction(orders[-1], A), self.limit))
        return torch.cat(orders, dim=-1)


class Contraction(nn.Module):
    """[a ⊗ b]_l summed over paths (l1, l2, l), with a weight per path and channel; unit inputs give unit outputs at the start."""

    coupling: Tensor  # [rows, L²], one row per path and component m of its l
    collect: Tensor  # [L, rows], adds each row to its (l, m)
    path_of_row: Tensor  # [rows]

    def __init__(self, num_channels: int, l_max: int, symmetric: bool) -> None:
        super().__init__()
        degrees = range(l_max + 1)
        paths = [
            (l1, l2, l)
            for l in degrees
            for l1 in degrees
            for l2 in degrees
            if abs(l1 - l2) <= l <= l1 + l2 and (l1 + l2 + l) % 2 == 0 and (l1 <= l2 or not symmetric)
        ]
        coupling, collect, path_of_row = _coupling(paths, (l_max + 1) ** 2)
        self.register_buffer("coupling", coupling, persistent=False)
        self.register_buffer("collect", collect, persistent=False)
        self.register_buffer("path_of_row", path_of_row, persistent=False)
        paths_into = torch.tensor([sum(l == path[2] for path in paths) for _, _, l in paths])
        self.weight = nn.Parameter(torch.randn(len(paths), num_channels) * paths_into.unsqueeze(-1) ** -0.5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b [N, L, K] -> [N, L, K] with L = (l_max+1)²."""
        outer = (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1, 2)
        return self.collect @ ((self.coupling @ outer) * rows_of(self.weight, self.path_of_row))


def _coupling(paths: list[tuple[int, int, int]], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clebsch-Gordan coefficients of all paths in float64, as the three buffers of `Contraction`."""
    with torch.device("cpu"):  # also where a model is built without memory, on "meta"
        return _rows(paths, size)


def _rows(paths: list[tuple[int, int, int]], size: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, targets, owners = [], [], []
    for p, (l1, l2, l) in enumerate(paths):
        cg = o3.wigner_3j(l1, l2, l, dtype=torch.float64) * (2 * l + 1) ** 0.5
        for m in range(2 * l + 1):
            row = torch.zeros(size, size, dtype=torch.float64)
            row[l1**2 : (l1 + 1) ** 2, l2**2 : (l2 + 1) ** 2] = cg[:, :, m]
            rows.append(row.flatten())
            targets.append(l**2 + m)
            owners.append(p)
    collect = torch.zeros(size, len(rows), dtype=torch.float64)
    collect[targets, range(len(rows))] = 1.0
    return torch.stack(rows), collect, torch.tensor(owners)
