"""`Atoms` in, `Graph` out: all pairs within a cutoff, through every periodic image. The only file that imports matscipy."""

from itertools import product
from typing import NamedTuple

import numpy as np
from ase import Atoms
from matscipy.neighbours import neighbour_list
from scipy.spatial import cKDTree

from flashace.errors import FlashACEError
from flashace.structure.graph import Graph

FARTHEST = 1e9  # Å; float64 resolves 1e-7 Å there, and no more beyond
MOST_NEIGHBOURS = 20_000  # per atom; a thousand times what matter has within 3 Å
MOST_BINS = 100  # of the size of the cutoff, per atom; more are empty space that matscipy would spend memory on


class Pairs(NamedTuple):
    """Pairs closer than some cutoff, sorted by i and j."""

    i: np.ndarray  # [E]
    j: np.ndarray  # [E]
    shifts: np.ndarray  # [E, 3] whole lattice vectors, from j to the image of it that i sees
    edge_vec: np.ndarray  # [E, 3] Å, positions[j] - positions[i] + shifts @ cell


def build_graph(atoms: Atoms, r_max: float) -> Graph:
    """The graph of one structure: every pair closer than `r_max` Å, through every periodic image.

    Atoms may lie outside the cell or very far apart; the cell may be smaller than `r_max`, left-handed, or missing where there is no
    periodicity. Raises FlashACEError for no atoms, positions or a cell that are not finite or beyond 10⁹ Å, a periodic direction without a
    lattice vector, and a cell so small that an atom would have more than 20 000 neighbours.

    >>> from ase.build import bulk
    >>> graph = build_graph(bulk("Si"), 2.5)  # two atoms with four neighbours each
    >>> graph.edge_index[0].tolist(), graph.first.tolist()
    ([0, 0, 0, 0, 1, 1, 1, 1], [0, 4, 8])
    """
    check_structure(atoms)
    i, j, _, edge_vec = find_pairs(atoms, r_max)
    return Graph.of(atoms.numbers, atoms.cell.array, i, j, edge_vec)


def check_structure(atoms: Atoms) -> None:
    """Raises FlashACEError as `build_graph` does, but for a cell that has collapsed."""
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


def find_pairs(atoms: Atoms, r_max: float) -> Pairs:
    """All pairs of a structure that `check_structure` has let pass. Raises FlashACEError for a cell that has collapsed."""
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
    return Pairs(i, j, shifts[order] + wraps[i] - wraps[j], edge_vec[order])


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
