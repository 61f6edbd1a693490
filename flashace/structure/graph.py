"""`Atoms` in, `Graph` out: who is whose neighbour, and by which periodic image. Training and inference share this builder."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from matscipy.neighbours import neighbour_list
from scipy.spatial import cKDTree
from torch import Tensor

from flashace.errors import FlashACEError

FARTHEST = 1e9  # Å; float64 resolves 1e-7 Å there, and no more beyond
MOST_NEIGHBOURS = 20_000  # per atom; a thousand times what matter has within 3 Å
MOST_BINS = 100  # of the size of the cutoff, per atom; more are empty space that matscipy would spend memory on


@dataclass(frozen=True)
class Graph:
    """One structure, or several that do not see each other (B structures, N atoms, E edges, M neighbours at most).

    positions [N, 3] Å and cell [B, 3, 3] Å (rows are lattice vectors) in float64, numbers [N], structure [N] (to which structure
    an atom belongs), edge_index [2, E] (centre i, neighbour j; sorted by centre), unit_shifts [E, 3] (whole lattice vectors),
    edge_vec [E, 3] Å = positions[j] - positions[i] + unit_shifts @ cell, and slots [C, M]: the edges of each centre, filled up with E.
    The first C atoms are the centres: all of them, but for a `Part`, whose other atoms are there as neighbours only.
    """

    positions: Tensor
    numbers: Tensor
    cell: Tensor
    structure: Tensor
    edge_index: Tensor
    unit_shifts: Tensor
    edge_vec: Tensor
    slots: Tensor

    @property
    def num_structures(self) -> int:
        """B."""
        return self.cell.shape[0]

    @property
    def num_centres(self) -> int:
        """C: atoms with a neighbourhood, and so with an energy."""
        return self.slots.shape[0]

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
        edge_index, shifts, vectors = self.edge_index[:, near], self.unit_shifts[near], self.edge_vec[near]
        slots = _slots(edge_index[0], self.num_centres)
        return replace(self, edge_index=edge_index, unit_shifts=shifts, edge_vec=vectors, slots=slots)


class Part(NamedTuple):
    """The neighbourhoods of some atoms of a graph, as a graph of its own: first these C atoms, then for each edge its neighbour."""

    graph: Graph
    atoms: Tensor  # [C + E]: which atoms of the whole they are


def build_graph(atoms: Atoms, r_max: float) -> Graph:
    """The graph of one structure: every pair closer than `r_max` Å, through every periodic image.

    Atoms may lie outside the cell or very far apart; the cell may be smaller than `r_max`, left-handed, or missing where there is no
    periodicity. Raises FlashACEError for no atoms, positions or a cell that are not finite or beyond 10⁹ Å, a periodic direction without a
    lattice vector, and a cell so small that an atom would have more than 20 000 neighbours.
    """
    _check(atoms)
    return _graph(atoms, *_pairs(atoms, r_max))


class VerletList:
    """`build_graph` for a structure that moves little from call to call, as in molecular dynamics. The graph is the same, to rounding.

    Pairs closer than `r_max` + `skin` Å are kept (Verlet, Phys. Rev. 159, 98, 1967) and looked through at each call, until one that is not
    among them may have come closer than `r_max`. A cell that deforms, as in a barostat, may take its atoms with it. Where a skin would be
    too dense, there is none. Raises FlashACEError as `build_graph` does.
    """

    def __init__(self, r_max: float, skin: float) -> None:
        self.r_max, self.skin = r_max, skin
        self._candidates: _Candidates | None = None

    def __call__(self, atoms: Atoms) -> Graph:
        candidates = self._candidates  # another thread may replace them meanwhile
        if candidates is None or not candidates.hold_for(atoms, self.r_max):
            _check(atoms)
            self._candidates = candidates = self._find(atoms)
        _, _, i, j, shifts = candidates
        edge_vec = atoms.positions[j] - atoms.positions[i]
        if atoms.pbc.any():
            edge_vec += shifts @ atoms.cell.array
        near = np.flatnonzero(np.einsum("ec,ec->e", edge_vec, edge_vec) < self.r_max**2)
        return _graph(atoms, i[near], j[near], shifts[near], edge_vec[near])

    def _find(self, atoms: Atoms) -> "_Candidates":
        reach = self.r_max + self.skin
        try:
            i, j, shifts, _ = _pairs(atoms, reach)
        except FlashACEError:
            reach = self.r_max
            i, j, shifts, _ = _pairs(atoms, reach)
        before = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        return _Candidates(before, reach, i.astype(np.int32), j.astype(np.int32), shifts)


class _Candidates(NamedTuple):
    """All pairs that were closer than `reach`."""

    before: Atoms
    reach: float
    i: np.ndarray
    j: np.ndarray
    shifts: np.ndarray

    def hold_for(self, atoms: Atoms, r_max: float) -> bool:
        """Whether no other pair can be closer than `r_max` now."""
        before = self.before
        if len(atoms) != len(before) or (atoms.pbc != before.pbc).any() or (atoms.numbers != before.numbers).any():
            return False
        moved, smallest = atoms.positions - before.positions, 1.0
        if (atoms.cell.array != before.cell.array).any():
            _check(atoms)
            try:
                deformation = np.linalg.solve(before.cell.array, atoms.cell.array)
                smallest = np.linalg.svd(deformation, compute_uv=False)[-1]  # no vector shrinks by more
            except np.linalg.LinAlgError:  # no volume
                return False
            moved = atoms.positions - before.positions @ deformation
        farthest = np.sqrt(np.einsum("ic,ic->i", moved, moved).max())
        return bool(smallest * self.reach - 2 * farthest > r_max)


def _pairs(atoms: Atoms, r_max: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs closer than `r_max`, sorted by i and j: i, j [E], shifts [E, 3] in whole lattice vectors, vectors from i to j [E, 3] Å."""
    pbc, cell = atoms.pbc, np.asarray(atoms.cell)
    box, origin = _bounding_box(atoms.positions, cell, pbc)
    fractional = np.linalg.solve(box.T, (atoms.positions - origin).T).T
    wraps = np.where(pbc, np.floor(fractional), 0.0)
    inside = atoms.positions - origin - wraps @ box
    heights = 1 / np.linalg.norm(np.linalg.inv(box), axis=0)  # between opposite faces
    _check_density(atoms, box, heights, r_max)
    if np.prod(np.maximum(heights / r_max, 1.0)) <= MOST_BINS * len(atoms):
        i, j, shifts, edge_vec = neighbour_list("ijSD", pbc=pbc, cell=box, positions=inside, cutoff=float(r_max))
    else:
        i, j, shifts, edge_vec = _sparse_neighbour_list(inside, box, pbc * heights, r_max)
    order = np.lexsort((j, i))
    i, j = i[order], j[order]
    return i, j, shifts[order] + wraps[i] - wraps[j], edge_vec[order]


def _graph(atoms: Atoms, i: np.ndarray, j: np.ndarray, shifts: np.ndarray, edge_vec: np.ndarray) -> Graph:
    edge_index = torch.from_numpy(np.stack([i, j]).astype(np.int64))
    return Graph(
        positions=torch.from_numpy(atoms.positions.copy()),
        numbers=torch.from_numpy(atoms.numbers.astype(np.int64)),
        cell=torch.from_numpy(np.array(atoms.cell)).unsqueeze(0),
        structure=torch.zeros(len(atoms), dtype=torch.int64),
        edge_index=edge_index,
        unit_shifts=torch.from_numpy(shifts),
        edge_vec=torch.from_numpy(edge_vec),
        slots=_slots(edge_index[0], len(atoms)),
    )


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Several graphs as one; structures keep their order and do not see each other."""
    if len(graphs) == 1:
        return graphs[0]
    first_atom = np.cumsum([0] + [len(g.numbers) for g in graphs])
    first_structure = np.cumsum([0] + [g.num_structures for g in graphs])
    edge_index = torch.cat([g.edge_index + int(n) for g, n in zip(graphs, first_atom, strict=False)], dim=1)
    return Graph(
        positions=torch.cat([g.positions for g in graphs]),
        numbers=torch.cat([g.numbers for g in graphs]),
        cell=torch.cat([g.cell for g in graphs]),
        structure=torch.cat([g.structure + int(b) for g, b in zip(graphs, first_structure, strict=False)]),
        edge_index=edge_index,
        unit_shifts=torch.cat([g.unit_shifts for g in graphs]),
        edge_vec=torch.cat([g.edge_vec for g in graphs]),
        slots=_slots(edge_index[0], int(first_atom[-1])),
    )


def take_part(graph: Graph, first: int, last: int) -> Part:
    """The neighbourhoods of the centres from `first` to before `last`. Everything that a strictly local model needs for their energies."""
    if (first, last) == (0, graph.num_centres):
        return Part(graph, torch.arange(len(graph.numbers), device=graph.numbers.device))
    start, end = torch.searchsorted(graph.edge_index[0], graph.edge_index.new_tensor([first, last])).tolist()
    centre, neighbour = graph.edge_index[:, start:end]
    atoms = torch.cat([torch.arange(first, last, device=centre.device), neighbour])
    edge_vec, slots = graph.edge_vec[start:end], (graph.slots[first:last] - start).clamp(max=end - start)
    num_neighbors = max(int((slots < end - start).sum(1).max()), 1)
    part = Graph(
        positions=torch.cat([graph.positions[first:last], graph.positions[centre] + edge_vec]),
        numbers=graph.numbers[atoms],
        cell=graph.cell,
        structure=graph.structure[atoms],
        edge_index=torch.stack([centre - first, last - first + torch.arange(end - start, device=centre.device)]),
        unit_shifts=torch.zeros_like(graph.unit_shifts[start:end]),
        edge_vec=edge_vec,
        slots=slots[:, :num_neighbors],
    )
    return Part(part, atoms)


def _check(atoms: Atoms) -> None:
    if len(atoms) == 0:
        raise FlashACEError("structure: expected at least one atom, got none; look at the step that produced this structure")
    bad = np.flatnonzero(~(np.abs(atoms.positions) <= FARTHEST).all(axis=1))
    if len(bad):
        raise FlashACEError(
            f"positions: expected finite numbers, at most {FARTHEST:g} Å, got {atoms.positions[bad[0]]} at atom {bad[0]} "
            f"({len(bad)} of {len(atoms)} atoms); look at the step that produced this structure"
        )
    cell = np.asarray(atoms.cell)
    if not (np.abs(cell) <= FARTHEST).all():
        raise FlashACEError(
            f"cell: expected finite numbers, at most {FARTHEST:g} Å, got {cell.tolist()}; look at the step that produced this structure"
        )
    periodic = cell[atoms.pbc]
    if np.linalg.matrix_rank(periodic) < len(periodic):
        raise FlashACEError(
            f"cell: pbc={atoms.pbc.tolist()} needs {len(periodic)} independent lattice vectors along the periodic directions, "
            f"got {periodic.tolist()}; set the cell, or pbc=False for a molecule"
        )


def _check_density(atoms: Atoms, box: np.ndarray, heights: np.ndarray, r_max: float) -> None:
    """A cell that has collapsed is named before its neighbour list fills the memory. The estimate is a cube around an atom."""
    side = 2 * r_max
    filled = np.prod(np.minimum(heights / side, 1.0)[~atoms.pbc])
    neighbours = len(atoms) * filled * side**3 / abs(np.linalg.det(box))
    if atoms.pbc.any() and neighbours > MOST_NEIGHBOURS:
        raise FlashACEError(
            f"cell: expected room for at most {MOST_NEIGHBOURS} neighbours per atom within r_max={r_max:g} Å, got about {neighbours:.3g} "
            f"({len(atoms)} atoms, lattice vectors {np.asarray(atoms.cell).tolist()}); look for a cell that has collapsed, "
            "or for a unit other than Å"
        )


def _sparse_neighbour_list(
    positions: np.ndarray, box: np.ndarray, heights: np.ndarray, r_max: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """i, j, shifts and vectors of all pairs, at a cost that empty space adds nothing to. A direction of height 0 is not periodic."""
    reach = [int(np.ceil(r_max / h)) if h else 0 for h in heights]
    shifts = np.array(list(product(*(range(-n, n + 1) for n in reach))))
    images = (positions + (shifts @ box)[:, None]).reshape(-1, 3)
    found = cKDTree(positions).sparse_distance_matrix(cKDTree(images), r_max, output_type="ndarray")
    i, (image, j) = found["i"], np.divmod(found["j"], len(positions))
    keep = (found["v"] < r_max) & ((i != j) | shifts[image].any(axis=1))
    i, j, image = i[keep], j[keep], image[keep]
    return i, j, shifts[image], positions[j] + (shifts @ box)[image] - positions[i]


def _bounding_box(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cell of nonzero volume and its origin: the periodic vectors as they are, the others orthogonal to them and around all atoms."""
    if pbc.all():
        return cell, np.zeros(3)
    box = np.zeros((3, 3))
    box[pbc] = cell[pbc]
    _, _, basis = np.linalg.svd(cell[pbc]) if pbc.any() else (None, None, np.eye(3))
    origin = np.zeros(3)
    for direction, unit in zip(np.flatnonzero(~pbc), basis[pbc.sum() :], strict=True):
        along = positions @ unit
        margin = 1.0  # Å; keeps the outermost atoms off the faces of the box
        box[direction] = unit * (np.ptp(along) + 2 * margin)
        origin += unit * (along.min() - margin)
    return box, origin


def _slots(centre: Tensor, num_atoms: int) -> Tensor:
    """[N, M]: the edges of each atom, filled up with E. `centre` [E] ascends. M is at least 1."""
    ends = np.searchsorted(centre.numpy(), np.arange(num_atoms + 1))
    slots = ends[:-1, None] + np.arange(max(int(np.diff(ends).max()), 1))
    return torch.from_numpy(np.where(slots < ends[1:, None], slots, len(centre)))
