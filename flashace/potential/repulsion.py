"""The repulsion of the nuclei, a term: what holds atoms apart where no training data was."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashace.nn.linear import full_precision
from flashace.nn.radial import polynomial_envelope
from flashace.potential.term import Term
from flashace.structure.graph import Graph

COULOMB = 14.399645  # eV Å, e² / (4 π ε0)
SCREENING = 0.88534 * 0.529177  # Å, times the Bohr radius
AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)
EXPONENT = 6  # of the envelope


class Repulsion(Term):
    """E_i = ½ Σ_j V(r_ij) with V(r) = f(r) · COULOMB · Z_i Z_j / r · Σ_k A_k exp(-d_k r / a), a = SCREENING / (Z_i^0.23 + Z_j^0.23).

    The universal potential of Ziegler, Biersack and Littmark (The Stopping and Range of Ions in Solids, 1985), with an envelope f that ends
    it at `end` [S, S] in Å: value, first and second derivative vanish there. The species are those of `numbers`, by index. Always float64.
    """

    strength: Tensor  # [S, S] eV Å
    length: Tensor  # [S, S] Å, a
    end: Tensor  # [S, S] Å

    def __init__(self, numbers: Sequence[int], end: Tensor) -> None:
        super().__init__()
        z = torch.tensor(numbers, dtype=torch.float64)
        self.register_buffer("strength", COULOMB * torch.outer(z, z), persistent=False)
        self.register_buffer("length", SCREENING / (z**0.23 + z[:, None] ** 0.23), persistent=False)
        self.register_buffer("end", end.double(), persistent=False)

    def forward(self, graph: Graph, element: Tensor) -> Tensor:
        """[C] in eV."""
        centre, neighbour = graph.edge_index
        shares = self.of_edges(graph.edge_vec, element[centre], element[neighbour])
        return shares.new_zeros(graph.num_centres).index_add(0, centre, shares)

    @full_precision
    def of_edges(self, edge_vec: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        """edge_vec [E, 3] in Å, species [E] of both atoms -> [E] in eV: the share of the centre."""
        r = edge_vec.double().norm(dim=-1)
        x = r / self.length[centre, neighbour]
        screening = sum(a * torch.exp(-d * x) for a, d in zip(AMPLITUDES, DECAYS, strict=True))
        envelope = polynomial_envelope(r, self.end[centre, neighbour], EXPONENT)
        return 0.5 * self.strength[centre, neighbour] / r * screening * envelope
