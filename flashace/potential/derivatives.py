"""Any function graph → energies in; energy, forces, stress and per-atom stresses out. The only call of autograd at inference."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from flashace.errors import FlashACEError
from flashace.structure.graph import Graph, Part, take_part

T = TypeVar("T")

# neighbour pairs evaluated at once, about 16 kB each in float32: below 8 000 a CPU core becomes slower, above it gains nothing
MAX_EDGES = {"cpu": 16_000, "cuda": 500_000}


class Prediction(NamedTuple):
    """N atoms, the first C of them centres (see `Graph`), B structures.

    Stress has ASE's sign; it means something only where the cell has a volume, and is NaN elsewhere.
    """

    energies: Tensor  # [C] eV
    energy: Tensor  # [B] eV
    forces: Tensor  # [N, 3] eV/Å
    stress: Tensor  # [B, 3, 3] eV/Å³
    stresses: Tensor  # [C, 3, 3] eV/Å³, sum over the atoms of a structure = its stress
    features: Tensor | None = None  # [C, D], where the model returned them beside the energies
    of_members: tuple["Prediction", ...] | None = None  # of which this is the mean, where a committee made it


class Slopes(NamedTuple):
    """What one pass over the edges of a graph gives."""

    energies: Tensor  # [C] eV
    slopes: Tensor  # [E, 3] eV/Å, ∂E/∂r_ij
    features: Tensor | None  # [C, D]


Model = Callable[[Graph], Tensor] | Callable[[Graph], tuple[Tensor, Tensor]]  # energies [C]; or these and features [C, D]


def predict(model: Model, graph: Graph, dtype: torch.dtype, create_graph: bool = False) -> Prediction:
    """Everything that follows from one backward pass to the edge vectors.

    With g_ij = ∂E/∂r_ij: F_i = Σ_j (g_ij - g_ji) and σ = (1/V) Σ_ij r_ij ⊗ g_ij, which is the derivative along the six symmetric strain
    components divided by the volume (Knuth et al., Comput. Phys. Commun. 190, 33, 2015). Edge vectors enter the model in `dtype`.
    `create_graph` keeps what training needs to differentiate the result once more.
    """
    edge_vec = graph.edge_vec.detach().to(dtype).requires_grad_()
    with torch.enable_grad():
        returned = model(graph.with_edge_vec(edge_vec))
        energies, features = returned if isinstance(returned, tuple) else (returned, None)
        (g,) = torch.autograd.grad(energies.sum(), edge_vec, create_graph=create_graph)
    if not create_graph:
        return assemble(graph, Slopes(energies.detach(), g.double(), features))
    return assemble(graph.with_edge_vec(edge_vec.detach()), Slopes(energies, g, features))


def assemble(graph: Graph, found: Slopes) -> Prediction:
    """The sums over edges: everything that follows from energies and slopes, in the precision of the slopes."""
    energies, g, features = found
    centre, neighbour = graph.edge_index
    forces = g.new_zeros(graph.numbers.shape[0], 3).index_add(0, centre, g).index_add(0, neighbour, -g)
    virial = graph.edge_vec.to(g.dtype).unsqueeze(2) * g.unsqueeze(1)
    virials = g.new_zeros(graph.num_centres, 3, 3).index_add(0, centre, (virial + virial.transpose(1, 2)) / 2)
    structure = graph.structure[: graph.num_centres]
    a, b, c = graph.cell.unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(-1).abs().to(virials.dtype)[structure, None, None]
    # NaN is put in afterwards: divided by, it would come back in the gradients of a training step that masks the stress
    stresses = torch.where(volume > 0, virials / torch.where(volume > 0, volume, 1.0), torch.nan)
    return Prediction(
        energies=energies,
        energy=energies.new_zeros(graph.num_structures).index_add(0, structure, energies),
        forces=forces,
        stress=stresses.new_zeros(graph.num_structures, 3, 3).index_add(0, structure, stresses),
        stresses=stresses,
        features=features,
    )


class EdgeBudget:
    """How many neighbour pairs are computed at once; every atom counts as many as that one of its part which has most.

    Where memory runs out, `max_edges` is halved, for good.
    """

    def __init__(self, max_edges: int) -> None:
        self.max_edges = max_edges

    @classmethod
    def of(cls, device: torch.device, max_edges: int | None = None) -> "EdgeBudget":
        """A given size, or the one that suits the device."""
        return cls(max_edges or MAX_EDGES[device.type])

    def each_part(self, graph: Graph, compute: Callable[[Part], T]) -> Iterator[tuple[Part, T]]:
        """`compute` of part after part, each as large as the budget lets, and one atom at least.

        Raises FlashACEError where even one atom does not fit into the memory.
        """
        num_neighbors = graph.first.diff().tolist()
        begin = 0
        while begin < graph.num_centres:
            whole = begin == 0 and graph.slots.numel() <= self.max_edges
            end = graph.num_centres if whole else self._end(num_neighbors, begin)
            part = take_part(graph, begin, end)
            try:
                result = compute(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if end - begin == 1:
                    raise FlashACEError(
                        f"an atom with {num_neighbors[begin]} neighbours does not fit into the memory of {graph.edge_vec.device}; "
                        "free some of it, or fit a model with smaller r_max, num_layers or num_channels"
                    ) from error
            else:
                yield part, result
                begin = end
                continue
            self.halve(part.graph.slots.numel())

    def batches(self, graphs: Iterable[Graph]) -> Iterator[list[Graph]]:
        """Graphs in their order, as many together as the budget lets, and one at least."""
        batch: list[Graph] = []
        num_atoms = most = 0
        for graph in graphs:
            num_atoms, most = num_atoms + graph.num_centres, max(most, graph.max_neighbors)
            if batch and num_atoms * most > self.max_edges:
                yield batch
                batch, num_atoms, most = [], graph.num_centres, graph.max_neighbors
            batch.append(graph)
        if batch:
            yield batch

    def halve(self, num_edges: int) -> None:
        """So many did not fit."""
        self.max_edges = min(self.max_edges, max(num_edges // 2, 1))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _end(self, num_neighbors: list[int], begin: int) -> int:
        most = 1
        for end in range(begin, len(num_neighbors)):
            most = max(most, num_neighbors[end])
            if end > begin and (end + 1 - begin) * most > self.max_edges:
                return end
        return len(num_neighbors)


def is_out_of_memory(error: Exception) -> bool:
    """torch has an exception for GPUs and a sentence for CPUs."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def predict_in_parts(model: Model, graph: Graph, dtype: torch.dtype, budget: EdgeBudget) -> Prediction:
    """`predict` of a strictly local model with the memory of one part at a time."""
    return add_parts(lambda part: predict(model, part, dtype), graph, budget)


def add_parts(evaluate: Callable[[Graph], Prediction], graph: Graph, budget: EdgeBudget) -> Prediction:
    """What `evaluate` gives for part after part of a graph, put side by side and added up."""
    zeros = graph.cell.new_zeros  # float64
    energies, stresses, forces = zeros(graph.num_centres), zeros(graph.num_centres, 3, 3), zeros(graph.numbers.shape[0], 3)
    features = []
    for part, found in budget.each_part(graph, lambda part: evaluate(part.graph)):
        if part.graph is graph:
            return found
        centres = part.atoms[: part.graph.num_centres]
        energies[centres], stresses[centres] = found.energies, found.stresses
        forces.index_add_(0, part.atoms, found.forces)
        if found.features is not None:
            features.append(found.features)  # parts come in the order of their centres
    energy, stress = (zeros(graph.num_structures, *x.shape[1:]).index_add(0, graph.structure, x) for x in (energies, stresses))
    return Prediction(energies, energy, forces, stress, stresses, torch.cat(features) if features else None)


def added(a: Prediction, b: Prediction) -> Prediction:
    """Of a sum of two energies, what follows from each; with the features of the first."""
    return Prediction(
        a.energies + b.energies, a.energy + b.energy, a.forces + b.forces, a.stress + b.stress, a.stresses + b.stresses, a.features
    )


def split(whole: Prediction, graphs: Sequence[Graph]) -> list[Prediction]:
    """The prediction of each of the graphs, from that of all of them in one batch."""
    if len(graphs) == 1:
        return [whole]
    num_atoms = [len(g.numbers) for g in graphs]
    atomwise = (whole.energies, whole.forces, whole.stresses, whole.features)
    energies, forces, stresses, features = ([None] * len(graphs) if x is None else x.split(num_atoms) for x in atomwise)
    of_members = zip(*(split(member, graphs) for member in whole.of_members), strict=True) if whole.of_members else [None] * len(graphs)
    fields = energies, whole.energy.split(1), forces, whole.stress.split(1), stresses, features, of_members
    return [Prediction(*x) for x in zip(*fields, strict=True)]
