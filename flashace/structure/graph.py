"""One structure, or several, as tensors: who is whose neighbour, and by which vector. `neighbors.py` makes them of `Atoms`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """One structure, or several that do not see each other (B structures, N atoms, E edges, M neighbours at most).

    numbers [N], cell [B, 3, 3] Å (rows are lattice vectors) in float64, structure [N] (to which structure an atom belongs),
    edge_index [2, E] (centre i, neighbour j; sorted by centre), edge_vec [E, 3] Å from i to j, first [C + 1] (the edges of centre i stand
    from first[i] to before first[i + 1]), and slots [C, M]: the same edges, filled up with E.
    The first C atoms are the centres: all of them, but for a `Part`, whose other atoms are there as neighbours only.
    """

    numbers: Tensor
    cell: Tensor
    structure: Tensor
    edge_index: Tensor
    edge_vec: Tensor
    first: Tensor
    slots: Tensor

    @classmethod
    def of(cls, numbers: np.ndarray, cell: np.ndarray, i: np.ndarray, j: np.ndarray, edge_vec: np.ndarray) -> "Graph":
        """Of one structure: numbers [N], cell [3, 3] Å, and its pairs, with i ascending: i, j [E], vectors from i to j [E, 3] Å."""
        first = torch.from_numpy(np.searchsorted(i, np.arange(len(numbers) + 1)))
        return cls(
            numbers=torch.from_numpy(numbers.astype(np.int64)),
            cell=torch.from_numpy(np.array(cell)).unsqueeze(0),
            structure=torch.zeros(len(numbers), dtype=torch.int64),
            edge_index=torch.from_numpy(np.stack([i, j]).astype(np.int64)),
            edge_vec=torch.from_numpy(edge_vec),
            first=first,
            slots=_slots(first),
        )

    @property
    def num_structures(self) -> int:
        """B."""
        return self.cell.shape[0]

    @property
    def num_centres(self) -> int:
        """C: atoms with a neighbourhood, and so with an energy."""
        return self.slots.shape[0]

    @property
    def max_neighbors(self) -> int:
        """M, at least 1."""
        return self.slots.shape[1]

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def with_edge_vec(self, edge_vec: Tensor) -> "Graph":
        """The same graph with other edge vectors, for example a leaf of autograd or a rotated copy."""
        return replace(self, edge_vec=edge_vec)

    def within(self, r_max: float) -> "Graph":
        """The same graph without the pairs that are `r_max` Å apart or more."""
        near = (self.edge_vec.square().sum(1) < r_max**2).nonzero().squeeze(1)
        if len(near) == len(self.edge_vec):
            return self
        first = torch.searchsorted(near, self.first)  # as many near ones stand before
        return replace(self, edge_index=self.edge_index[:, near], edge_vec=self.edge_vec[near], first=first, slots=_slots(first))


class Part(NamedTuple):
    """The neighbourhoods of some atoms of a graph, as a graph of its own: first these C atoms, then for each edge its neighbour."""

    graph: Graph
    atoms: Tensor  # [C + E]: which atoms of the whole they are


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Several graphs as one; structures keep their order and do not see each other."""
    if len(graphs) == 1:
        return graphs[0]
    atoms, structures, edges = (
        np.cumsum([0, *sizes]).tolist()
        for sizes in ([len(g.numbers) for g in graphs], [g.num_structures for g in graphs], [len(g.edge_vec) for g in graphs])
    )
    first = torch.cat([g.first[: g.num_centres] + e for g, e in zip(graphs, edges, strict=False)] + [torch.tensor(edges[-1:])])
    return Graph(
        numbers=torch.cat([g.numbers for g in graphs]),
        cell=torch.cat([g.cell for g in graphs]),
        structure=torch.cat([g.structure + b for g, b in zip(graphs, structures, strict=False)]),
        edge_index=torch.cat([g.edge_index + n for g, n in zip(graphs, atoms, strict=False)], dim=1),
        edge_vec=torch.cat([g.edge_vec for g in graphs]),
        first=first,
        slots=_slots(first),
    )


def take_part(graph: Graph, begin: int, end: int) -> Part:
    """The neighbourhoods of the centres from `begin` to before `end`. Everything that a strictly local model needs for their energies."""
    if (begin, end) == (0, graph.num_centres):
        return Part(graph, torch.arange(len(graph.numbers), device=graph.numbers.device))
    first = graph.first[begin : end + 1]
    edges = slice(*first[[0, -1]].tolist())
    centre, neighbour = graph.edge_index[:, edges]
    atoms = torch.cat([torch.arange(begin, end, device=centre.device), neighbour])
    part = Graph(
        numbers=graph.numbers[atoms],
        cell=graph.cell,
        structure=graph.structure[atoms],
        edge_index=torch.stack([centre - begin, end - begin + torch.arange(len(neighbour), device=centre.device)]),
        edge_vec=graph.edge_vec[edges],
        first=first - first[0],
        slots=_slots(first - first[0]),
    )
    return Part(part, atoms)


def _slots(first: Tensor) -> Tensor:
    """[C, M]: the edges of each centre, filled up with E. M is at least 1."""
    begin, end = first[:-1, None], first[1:, None]
    slots = begin + torch.arange(max(int((end - begin).max()), 1), device=first.device)
    return torch.where(slots < end, slots, first[-1])
