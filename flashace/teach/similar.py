"""Frames in; those that are nearly the same as an earlier one out, however they are turned, shifted or ordered."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from scipy.spatial.distance import cdist

from flashace.structure.neighbors import find_pairs

R_MAX = 5.0  # Å
WIDTH = 0.5  # Å, of the shells in which neighbours are counted
# divided by √(mass of the lightest atom): what 1 fs of dynamics changes. Measured at 300 and 1200 K: for acetylacetone (0.12)
# 0.06 and 0.11 in 1 fs, at least 0.14 and 0.27 in 20 fs; for 32 Cu (0.015) 0.007 and 0.014 in 1 fs, at least 0.032 and 0.082 in 20 fs
NEAR = 0.12
AT_ONCE = 500  # frames that are compared with all others


def near_duplicates(frames: Sequence[Atoms], near: float = NEAR) -> list[int]:
    """The indices of frames that are nearer than `near` to an earlier one that stays.

    Only frames of the same atoms, periodic in the same directions, are compared.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, atoms in enumerate(frames):
        groups.setdefault(_of_the_same_atoms(atoms), []).append(i)
    found = []
    for members in groups.values():
        prints = np.array([fingerprint(frames[i]) for i in members])
        gone: set[int] = set()
        limit = _limit(frames[members[0]], near)
        for start in range(0, len(members), AT_ONCE):
            close = cdist(prints[start : start + AT_ONCE], prints) < limit
            for a, row in enumerate(close, start):
                if a not in gone:
                    gone.update(b for b in np.flatnonzero(row).tolist() if b > a)
        found += [members[b] for b in gone]
    return sorted(found)


class Unlike:
    """Frames that come one by one, each of which stays unless it is nearer than `near` to one that has stayed."""

    def __init__(self, near: float = NEAR) -> None:
        self.near, self.refused = near, 0
        self._kept: dict[tuple[object, ...], list[np.ndarray]] = {}

    def takes(self, atoms: Atoms) -> bool:
        """Whether it stays."""
        own, alike = fingerprint(atoms), self._kept.setdefault(_of_the_same_atoms(atoms), [])
        if alike and (np.linalg.norm(np.array(alike) - own, axis=1) < _limit(atoms, self.near)).any():
            self.refused += 1
            return False
        alike.append(own)
        return True


def _of_the_same_atoms(atoms: Atoms) -> tuple[object, ...]:
    return (*np.sort(atoms.numbers), *atoms.pbc)


def _limit(atoms: Atoms, near: float) -> float:
    return float(near / np.sqrt(atoms.get_masses().min()))


def fingerprint(atoms: Atoms) -> np.ndarray:
    """How many neighbours of each element each atom has in smooth shells around it, each of these numbers sorted over the atoms.

    [N · S · R] for N atoms, S elements and R shells, divided by √N.
    """
    elements, species = np.unique(atoms.numbers, return_inverse=True)
    centres = np.arange(WIDTH, R_MAX, WIDTH)
    i, j, _, vectors = find_pairs(atoms, R_MAX)
    distance = np.linalg.norm(vectors, axis=1)
    fade = (1 - (distance / R_MAX) ** 2) ** 2
    counts = np.zeros((len(atoms), len(elements), len(centres)))
    np.add.at(counts, (i, species[j]), fade[:, None] * np.exp(-((distance[:, None] - centres) ** 2) / (2 * WIDTH**2)))
    ordered = [np.sort(counts[species == s], axis=0).ravel() for s in range(len(elements))]
    return np.concatenate(ordered) / np.sqrt(len(atoms))
