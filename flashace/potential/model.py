"""`Graph` in, one energy per atom out. No autograd happens here; forces and stress are made in `derivatives.py`."""

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from torch import Tensor, nn

from flashace.errors import FlashACEError
from flashace.nn.attention import NeighbourAttention
from flashace.nn.bounds import Limits, saturated
from flashace.nn.edge_functions import EdgeFunctions
from flashace.nn.harmonics import SphericalHarmonics
from flashace.nn.layer import Layer
from flashace.nn.linear import full_precision, rows_of
from flashace.nn.product import ProductBasis
from flashace.nn.radial import BesselBasis, GaussianBasis, mean_envelope, never_closer, polynomial_envelope
from flashace.nn.readout import Readout
from flashace.potential.config import ModelConfig
from flashace.potential.repulsion import Repulsion
from flashace.potential.uncertainty import Uncertainty
from flashace.structure.coordination import Coordination
from flashace.structure.graph import Graph

TRUSTED = 0.9  # of the shortest distance in training: down to there the network is taken at its word
LIMITS = Limits(basis=5.0, product=20.0, feed_forward=40.0)
UNBOUNDED = Limits(basis=5.0, product=math.inf, feed_forward=math.inf)  # of models before `bounded`
UNKNOWN = 2**31  # no index of anything: using it is an error

# graph and element of each of its atoms -> energies [C + S] in units of the scale, of the centres and of one atom without neighbours per
# element; and the scalars [C + S, hidden_dim] that each readout read
Interaction = Callable[[Graph, Tensor], tuple[Tensor, list[Tensor]]]


RADIAL_BASES: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "bessel": lambda c: BesselBasis(c.r_max, c.num_radial, c.radial_trainable),
    "gaussian": lambda c: GaussianBasis(c.r_max, c.num_radial, c.radial_trainable, c.gaussian_width),
}


class AttentionACE(nn.Module):
    """Attention on the Atomic Cluster Expansion: strictly local, one energy per atom.

    E_i = E0(z_i) + S(scale · Σ_p [readout_p(s_i) - readout_p(s of the same atom without neighbours)]) + terms, so an atom alone has exactly
    its reference energy. `terms` has one today, ½ Σ_j ZBL(r_ij); another is a `Term` and a line in that list.
    `atomic_energies` maps symbols to E0 in eV and says which elements the model knows; `scale` is in eV.
    `free_atoms` tells whether these E0 are the energies of atoms alone; fitted to data without such atoms, they are not.
    S is `saturated` at `energy_bound` (eV): whatever the structure, the network gives an atom no more than that.
    `shortest_distances` of the training data, {"C-Si": 1.3} in Å, has no entry for a pair that is never within `r_max`.

    With ZBL, the network is taken at its word down to 0.9 of those. There ZBL begins, of which training sees nothing then, and there the
    network starts to take closer pairs for hardly closer ones (`never_closer`): beyond its data it is a polynomial of high degree, and no
    repulsion would make up for it. ZBL of a pair that the data does not have ends at the sum of the covalent radii.

    >>> from flashace.structure.neighbors import build_graph
    >>> from ase.build import molecule
    >>> model = AttentionACE(ModelConfig(num_channels=8, hidden_dim=16), {"H": -13.6, "O": -432.0})
    >>> graph = build_graph(molecule("H2O"), model.config.r_max)
    >>> model(graph.with_edge_vec(graph.edge_vec.to(model.dtype))).shape  # energies of three atoms
    torch.Size([3])
    """

    element_index: Tensor  # atomic number -> index among the S elements, UNKNOWN where it is none of them
    atomic_energies: Tensor  # [S] eV
    shortest: Tensor  # [S, S] Å; of the training data, at most r_max, and 0 where it is not known
    uncertainty: Uncertainty | None  # of the energies, from the end of a fit
    coordination: Coordination | None  # of the training data; nothing that the energies depend on

    def __init__(
        self,
        config: ModelConfig,
        atomic_energies: Mapping[str, float],
        scale: float = 1.0,
        avg_num_neighbors: float = 1.0,
        dtype: torch.dtype = torch.float32,
        shortest_distances: Mapping[str, float] | None = None,
        energy_bound: float = math.inf,
        free_atoms: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.energy_bound, self.free_atoms = float(energy_bound), free_atoms
        self.scale, self.avg_num_neighbors = float(scale), float(avg_num_neighbors)
        self.e0 = {symbol: float(atomic_energies[symbol]) for symbol in sorted(atomic_energies, key=atomic_numbers.__getitem__)}
        numbers = [atomic_numbers[symbol] for symbol in self.e0]
        element_index = torch.full((len(chemical_symbols),), UNKNOWN)
        element_index[numbers] = torch.arange(len(numbers))
        self.register_buffer("element_index", element_index, persistent=False)

        self.shortest_distances = None if shortest_distances is None else dict(shortest_distances)
        never = torch.full((len(numbers), len(numbers)), 0.0 if shortest_distances is None else config.r_max)
        self.register_buffer("shortest", _pair_table(shortest_distances, self.symbols, never), persistent=False)

        c = config
        self.radial_basis = RADIAL_BASES[c.radial_basis_type](c)
        self.harmonics = SphericalHarmonics(c.l_max)
        self.embedding = nn.Parameter(torch.randn(len(numbers), c.hidden_dim))
        self.layers = nn.ModuleList([_layer(c, len(numbers), self.avg_num_neighbors, has_tensors=p > 0) for p in range(c.num_layers)])
        self.readouts = nn.ModuleList([Readout(c.hidden_dim) for _ in range(c.num_layers)])
        self.to(dtype)
        # float64: total energies of thousands of eV have to be resolved to µeV
        self.register_buffer("atomic_energies", torch.tensor(list(self.e0.values()), dtype=torch.float64), persistent=False)
        radius = torch.from_numpy(covalent_radii[numbers])
        bond = (radius + radius[:, None]).clamp(max=c.r_max)
        trusted = {pair: TRUSTED * r for pair, r in (shortest_distances or {}).items()}
        self.terms = nn.ModuleList([Repulsion(numbers, _pair_table(trusted, self.symbols, bond))] if c.zbl else [])
        self.uncertainty = None
        self.coordination = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AttentionACE":
        """What `float()`, `half()` and `to(dtype)` do: energies in eV stay float64, and follow to another device alone."""
        exact = {name: buffer for name, buffer in self.named_buffers() if name.startswith(("atomic_energies", "terms.", "uncertainty."))}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            owner, _, own_name = name.rpartition(".")
            holder = self.get_submodule(owner)
            setattr(holder, own_name, before.to(getattr(holder, own_name).device))
        return self

    @property
    def symbols(self) -> list[str]:
        """The elements that the model knows, by atomic number."""
        return list(self.e0)

    @property
    def repulsion(self) -> Repulsion | None:
        """That of the nuclei, where it is among the terms."""
        return next((term for term in self.terms if isinstance(term, Repulsion)), None)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights; energies are float64 always."""
        return self.embedding.dtype

    def forward(self, graph: Graph, interaction: Interaction | None = None) -> Tensor:
        """Energies [C] in eV, float64. Raises FlashACEError for an element that the model does not know (check with `check_elements`).

        `interaction` stands in for the network, where a kernel computes it.
        """
        return self._energies(graph, interaction)[0]

    def with_features(self, graph: Graph, interaction: Interaction | None = None) -> tuple[Tensor, Tensor]:
        """Energies as by `forward`, and last-layer features [C, D]: what S saturates is linear in them, so an atom alone has zeros.

        The features carry no gradient.
        """
        energies, states = self._energies(graph, interaction)
        with torch.no_grad():
            features = torch.cat([readout.features(s) for readout, s in zip(self._readouts(), states, strict=True)], dim=1)
            return energies, self._beyond_alone(graph, features)

    def scalars(self, graph: Graph) -> list[Tensor]:
        """The invariants [C, hidden_dim] of each centre after each layer: what the readout of that layer reads."""
        return [s[: graph.num_centres] for s in self._interaction(graph, self.element_index[graph.numbers])[1]]

    def _energies(self, graph: Graph, interaction: Interaction | None) -> tuple[Tensor, list[Tensor]]:
        """[C] in eV, and the scalars [C + S, hidden_dim] that each readout read."""
        element = self.element_index[graph.numbers]
        energy, states = (interaction or self._interaction)(graph, element)
        beyond = self.scale * self._beyond_alone(graph, energy).double()
        energy = self.atomic_energies[element[: graph.num_centres]] + saturated(beyond, self.energy_bound)
        for term in self.terms:
            energy = energy + term(graph, element)
        return energy, states

    def _beyond_alone(self, graph: Graph, x: Tensor) -> Tensor:
        """[C + S, ...] -> [C, ...]: what each centre has more than the same atom without neighbours."""
        element = self.element_index[graph.numbers[: graph.num_centres]]
        own, empty = x.split([element.shape[0], len(self.e0)])
        is_alone = graph.slots[:, 0] == graph.edge_vec.shape[0]  # exactly zero then: equal rows of a matrix product may round differently
        return torch.where(is_alone.view(-1, *[1] * (x.dim() - 1)), 0.0, own - empty[element])

    def _interaction(self, graph: Graph, element: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[C + S]: the summed readouts of all centres, and of one atom without neighbours per element; and what each readout read."""
        vec, neighbour = self._neighbourhoods(graph, element)
        element = torch.cat([element[: graph.num_centres], torch.arange(len(self.e0), device=element.device)])
        shortest = self.shortest[element.unsqueeze(-1), neighbour] if self.config.zbl else None
        r, Y, envelope = self.geometry(vec, shortest)
        basis = self._basis(r, envelope)
        s, t = rows_of(self.embedding, element), None
        energy, states = torch.zeros_like(s[:, 0]), []
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            s, t = layer(s, t, basis, envelope, Y, element.unsqueeze(-1), neighbour)
            energy = energy + readout(s)
            states.append(s)
        return energy, states

    @full_precision
    def geometry(self, vec: Tensor, shortest: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Distances [...] as the network sees them, harmonics [..., L] and envelope [...] of vectors [..., 3]; `shortest` is [...]."""
        r = vec.norm(dim=-1)
        Y = self.harmonics(vec / r.unsqueeze(-1))
        if shortest is not None:
            r = never_closer(r, TRUSTED * shortest)
        envelope = polynomial_envelope(r, self.config.r_max, self.config.envelope_exponent)
        return r, Y, envelope

    @full_precision
    def _basis(self, r: Tensor, envelope: Tensor) -> Tensor:
        """[N, M, num_radial], of distances and envelope [N, M]."""
        return self.radial_basis(r) * envelope.unsqueeze(-1)

    def _neighbourhoods(self, graph: Graph, element: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [C + S, M, 3] and elements [C + S, M] of the neighbours.

        A slot without a neighbour holds a pair at the cutoff, where the envelope and its derivatives are exactly zero; the last S atoms
        have nothing else.
        """
        at_cutoff = graph.edge_vec.new_tensor([[self.config.r_max, 0.0, 0.0]])
        vec = torch.cat([graph.edge_vec, at_cutoff])
        neighbour = torch.cat([element[graph.edge_index[1]], element.new_zeros(1)])
        alone = graph.slots.new_full((len(self.e0), graph.slots.shape[1]), graph.edge_vec.shape[0])
        slots = torch.cat([graph.slots, alone])
        return vec[slots], neighbour[slots]

    @property
    def num_features(self) -> int:
        """D of `with_features`."""
        return sum(readout.linear.weight.numel() + readout.out.weight.numel() for readout in self._readouts())

    def _readouts(self) -> list[Readout]:
        return cast(list[Readout], list(self.readouts))

    def check_elements(self, numbers: Tensor) -> None:
        """Raises FlashACEError that names the elements which the model does not know."""
        last = len(self.element_index) - 1
        unknown = {z for z in numbers.tolist() if not 0 <= z <= last or self.element_index[z] == UNKNOWN}
        if unknown:
            names = sorted(chemical_symbols[z] if 0 <= z <= last else f"the atomic number {z}" for z in unknown)
            raise FlashACEError(
                f"elements: this model knows {', '.join(self.symbols)}; the structure also has {', '.join(names)}. "
                "Use a model fitted to data with these elements"
            )


def _pair_table(distances: Mapping[str, float] | None, symbols: list[str], elsewhere: Tensor) -> Tensor:
    """[S, S] of {"C-Si": 1.3}, and of `elsewhere` [S, S] for pairs without an entry."""
    table = elsewhere.clone()
    for pair, distance in (distances or {}).items():
        a, b = map(symbols.index, pair.split("-"))
        table[a, b] = table[b, a] = float(distance)
    return table


def _layer(c: ModelConfig, num_elements: int, avg_num_neighbors: float, has_tensors: bool) -> Layer:
    limits = LIMITS if c.bounded else UNBOUNDED
    # an atom weighs as much as its typical neighbours together, so that a lone neighbour weighs as one of many
    own_weight, attended_gain = (avg_num_neighbors * mean_envelope(c.envelope_exponent), 2.0) if c.bounded else (1.0, 1.0)
    return Layer(
        edge_functions=EdgeFunctions(
            num_elements, c.num_radial, c.edge_hidden_dim, c.key_dim, c.heads, c.hidden_dim, c.num_channels, c.l_max
        ),
        attention=NeighbourAttention(c.hidden_dim, c.num_channels, c.heads, c.key_dim, c.l_max, avg_num_neighbors, has_tensors, own_weight),
        product=ProductBasis(c.num_channels, c.l_max, c.correlation, limits.product),
        hidden_dim=c.hidden_dim,
        num_channels=c.num_channels,
        l_max=c.l_max,
        correlation=c.correlation,
        has_tensors=has_tensors,
        layer_scale=0.5 * c.num_layers**-0.5,
        limits=limits,
        attended_gain=attended_gain,
    )
