"""`Graph` in, one energy per atom out: what every part of a model's energy is, beside the network and the reference energies."""

from abc import abstractmethod

from torch import Tensor, nn

from flashace.structure.graph import Graph


class Term(nn.Module):
    """A part of the energy that the model adds to that of its network (`AttentionACE.terms`), as the repulsion of the nuclei is one.

    The energy of an atom follows from its neighbours within `r_max` alone, is zero without any, and ends smoothly at `r_max`. It is
    float64, and so is what the term holds. Derivatives are made elsewhere, of all terms alike; a backend without code of its own for a
    term takes it from here.
    """

    @abstractmethod
    def forward(self, graph: Graph, element: Tensor) -> Tensor:
        """Energies [C] in eV of the centres; `element` [N] says which element of the model each atom is."""
