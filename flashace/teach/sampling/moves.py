"""A structure in; a copy of it, disturbed at random, out. Lengths in Å."""

import networkx as nx
import numpy as np
from ase import Atoms

from flashace.structure.neighbors import find_pairs

STIFF = 200.0  # how much harder a bond is to stretch than an atom to move, in `bent`
ENOUGH = 7.5  # Å between opposite faces of a cell: more room than this shows nothing new


def rattled(atoms: Atoms, size: float, rng: np.random.Generator) -> Atoms:
    """Every coordinate moved by a Gaussian of standard deviation `size`."""
    return _moved(atoms, rng.normal(scale=size, size=(len(atoms), 3)))


def bent(atoms: Atoms, bonds: nx.Graph, size: float, rng: np.random.Generator) -> Atoms:
    """As `rattled`, but atoms that are bonded move together: bonds change less than angles, and these less than dihedrals."""
    laplacian = nx.laplacian_matrix(bonds, nodelist=range(len(atoms))).toarray()
    moves = np.linalg.solve(np.eye(len(atoms)) + STIFF * laplacian, rng.normal(size=(len(atoms), 3)))
    for molecule in nx.connected_components(bonds):  # a common shift of all its atoms shows nothing
        moves[list(molecule)] -= moves[list(molecule)].mean(axis=0)
    scale = np.sqrt((moves**2).mean())
    return _moved(atoms, moves * (size / scale) if scale > 0 else moves)


def strained(atoms: Atoms, volume: float, shear: float, rng: np.random.Generator, bonds: nx.Graph | None = None) -> Atoms:
    """The cell, and the atoms in it, changed to `volume` times its volume and by a random shear of this size.

    Where there are `bonds`, whole molecules move, and keep their shape.
    """
    return deformed(atoms, random_strain(volume, shear, np.eye(3), rng), bonds)


def random_strain(volume: float, shear: float, plane: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[3, 3] symmetric; acts only on the space that the rows of `plane` [D, 3], normal to each other, span. Its determinant is `volume`."""
    size = len(plane)
    strain = rng.normal(scale=shear, size=(size, size))
    strain = np.eye(size) + (strain + strain.T) / 2
    strain *= (volume / np.linalg.det(strain)) ** (1 / size)
    return np.asarray(np.eye(3) + plane.T @ (strain - np.eye(size)) @ plane)


def deformed(atoms: Atoms, strain: np.ndarray, bonds: nx.Graph | None = None) -> Atoms:
    """Cell and atoms times `strain`; where there are `bonds`, only the centres of the molecules."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ strain)
    copy.positions = atoms.positions @ strain
    for molecule in map(list, nx.connected_components(bonds) if bonds is not None else []):
        inside = atoms.positions[molecule] - atoms.positions[molecule].mean(axis=0)
        copy.positions[molecule] += inside - inside @ strain
    return copy


def supercell(atoms: Atoms, most: int, directions: tuple[int, ...] = (0, 1, 2)) -> Atoms:
    """Repeated along its shortest height again and again, until it is `ENOUGH` or would have more than `most` atoms."""
    repeats = np.ones(3, dtype=int)
    heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    while True:
        axis = min(directions, key=lambda a: heights[a] * repeats[a])
        longer = repeats + np.eye(3, dtype=int)[axis]
        if heights[axis] * repeats[axis] >= ENOUGH or len(atoms) * longer.prod() > most:
            return atoms.repeat(tuple(repeats.tolist()))
        repeats = longer


def nearest(atoms: Atoms) -> float:
    """The shortest distance between two atoms, through the cell too; 3 Å where there is no other atom within 6 Å."""
    vectors = find_pairs(atoms, 6.0).edge_vec
    return float(np.linalg.norm(vectors, axis=1).min()) if len(vectors) else 3.0


def _moved(atoms: Atoms, moves: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.positions += moves
    return copy
