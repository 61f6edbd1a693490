"""A structure in; what it is and how it is bonded, which decides what can be done with it, out."""

from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from flashace.structure.neighbors import Pairs, find_pairs

Shape = Literal["molecule", "crystal", "slab", "molecules"]

BONDED = 1.2  # times the sum of the covalent radii: two atoms that are closer are bonded
VACUUM = 6.0  # Å along a lattice vector without any atom: the structure is not periodic there


@dataclass(frozen=True, eq=False)
class Seed:
    """A structure without labels, information and constraints. Molecules are whole, even where they go through a side of the cell."""

    atoms: Atoms
    shape: Shape  # `molecules`: a liquid or a molecular crystal, no bond goes on for ever
    bonds: nx.Graph  # of the indices of the atoms; empty for crystals and slabs
    dense: np.ndarray  # [3] whether it is periodic along a lattice vector, without a vacuum


def look_at(atoms: Atoms) -> Seed:
    """What `atoms` are, by their vacuum and their bonds."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    pairs = bonded(atoms)
    bonds = nx.Graph()
    bonds.add_nodes_from(range(len(atoms)))
    bonds.add_edges_from(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))
    offsets = _offsets(bonds, pairs)
    dense = atoms.pbc & ~_has_vacuum(atoms)
    bare = nx.create_empty_copy(bonds)
    if dense.any() and not dense.all():
        return Seed(atoms, "slab", bare, dense)
    if offsets is None or (dense.all() and not bonds.edges):
        return Seed(atoms, "crystal", bare, dense)
    atoms.positions += offsets @ atoms.cell.array
    return Seed(atoms, "molecules" if dense.all() else "molecule", bonds, dense)


def is_alone(seed: Seed) -> bool:
    """An atom by itself, around which there is nothing to explore; a crystal may have one atom too."""
    return len(seed.atoms) == 1 and seed.shape == "molecule"


def bonded(atoms: Atoms) -> Pairs:
    """All pairs of atoms that are near enough for a bond, each of them twice."""
    radii = BONDED * covalent_radii[atoms.numbers]
    pairs = find_pairs(atoms, 2 * radii.max())
    near = np.linalg.norm(pairs.edge_vec, axis=1) < radii[pairs.i] + radii[pairs.j]
    return Pairs(*(part[near] for part in pairs))


def clashes(atoms: Atoms, bonds: nx.Graph) -> bool:
    """Whether two atoms that are not bonded in the seed are as close as if they were."""
    pairs = bonded(atoms)
    return any(not bonds.has_edge(a, b) for a, b in zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))


def _offsets(bonds: nx.Graph, pairs: Pairs) -> np.ndarray | None:
    """[N, 3] lattice vectors that bring bonded atoms side by side; None where a chain of bonds goes on through the cell for ever."""
    offsets = np.zeros((len(bonds), 3), dtype=int)
    step = {(a, b): shift for a, b, shift in zip(pairs.i.tolist(), pairs.j.tolist(), pairs.shifts, strict=True)}
    for molecule in nx.connected_components(bonds):
        for a, b in nx.bfs_edges(bonds, min(molecule)):
            offsets[b] = offsets[a] + step[a, b]
    return offsets if (offsets[pairs.j] - offsets[pairs.i] == pairs.shifts).all() else None


def _has_vacuum(atoms: Atoms) -> np.ndarray:
    """[3]: whether a periodic direction has a slice of `VACUUM` without atoms."""
    found = np.zeros(3, dtype=bool)
    for axis in np.flatnonzero(atoms.pbc):
        along = np.sort(atoms.get_scaled_positions()[:, axis])
        height = atoms.get_volume() / np.linalg.norm(np.cross(*np.delete(atoms.cell.array, axis, axis=0)))
        found[axis] = np.diff(along, append=along[0] + 1).max() * height > VACUUM
    return found
