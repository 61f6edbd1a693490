"""Frames in; pairs of frames that hold the same structure out, whatever the order of the atoms, their wrapping and a common shift."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

TOLERANCE = 1e-4  # Å; printed digits of positions
WAVES = [q for q in product((-1, 0, 1, 2), repeat=3) if q > (0, 0, 0)][:12]


def same_structures(structures: Sequence[Atoms]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(i, j, order) for each structure j that equals an earlier one i: atom `order[a]` of j is atom a of i.

    A duplicate of several frames is reported with the first of them. Turned copies are not looked for.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, atoms in enumerate(structures):
        groups.setdefault((*np.sort(atoms.numbers), *atoms.pbc), []).append(i)
    for members in groups.values():
        if len(members) == 1:
            continue
        prints = np.array([_fingerprint(structures[i]) for i in members])
        first: dict[int, int] = {}
        for a, b in sorted(cKDTree(prints).query_pairs(1e-3 * len(structures[members[0]]) ** 0.5)):
            i, j = members[first.get(a, a)], members[b]
            order = None if b in first else _matching(structures[i], structures[j])
            if order is not None:
                first[b] = first.get(a, a)
                yield i, j, order


def _fingerprint(atoms: Atoms) -> np.ndarray:
    """The cell, and |Σ_j z_j exp(2πi q·s_j)| / √Σ z_j² for waves q of the cell. Order, wrapping and a shift of the atoms do not matter."""
    cell = _full_cell(atoms)
    phase = np.exp(2j * np.pi * np.linalg.solve(cell.T, atoms.positions.T).T @ np.array(WAVES).T)
    return np.concatenate([cell.ravel(), np.abs(atoms.numbers @ phase) / np.linalg.norm(atoms.numbers)])


def _full_cell(atoms: Atoms) -> np.ndarray:
    """The periodic vectors; in the other directions any length will do, as long as it is the same for all."""
    cell = atoms.cell.copy()
    cell[~atoms.pbc] = 0.0
    full = np.array(cell.complete())
    full[~atoms.pbc] *= 7.3
    return full


def _matching(one: Atoms, other: Atoms) -> np.ndarray | None:
    """[N]: which atom of `other` is which of `one`; None where the structures differ."""
    if not np.allclose(_full_cell(one), _full_cell(other), atol=TOLERANCE):
        return None
    numbers, counts = np.unique(one.numbers, return_counts=True)
    rarest = numbers[counts.argmin()]
    anchor = one.positions[one.numbers == rarest][0]
    for candidate in other.positions[other.numbers == rarest]:
        order = _nearest(one, other.positions - candidate + anchor, other.numbers)
        if order is not None:
            return order
    return None


def _nearest(one: Atoms, positions: np.ndarray, numbers: np.ndarray) -> np.ndarray | None:
    cell, periodic = _full_cell(one), one.pbc
    scaled = [np.linalg.solve(cell.T, x.T).T for x in (one.positions, positions)]
    box = np.where(periodic, 1.0, 0.0)  # 0 is no period
    inside = [np.where(periodic, x % 1.0 % 1.0, x) for x in scaled]  # twice: -1e-17 % 1.0 is 1.0
    distance, order = cKDTree(inside[1], boxsize=box).query(inside[0])
    reach = TOLERANCE / np.linalg.norm(cell, axis=1).min()
    same = distance.max() < reach and len(set(order)) == len(order) and (numbers[order] == one.numbers).all()
    return np.asarray(order) if same else None
