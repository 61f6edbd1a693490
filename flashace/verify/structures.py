"""Small structures, and a structure moved, strained or shaken, for the laws."""

from collections.abc import Iterator
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

SEED = 0


def shaken(atoms: Atoms) -> Atoms:
    """A copy without constraints and calculator, every atom moved by about 0.05 Å, everything strained by about 1 %."""
    random = np.random.default_rng(SEED)
    copy = atoms.copy()
    copy.set_constraint()
    copy.positions += random.normal(scale=0.05, size=copy.positions.shape)
    strain = random.normal(scale=0.01, size=(3, 3))
    return deformed(copy, (strain + strain.T) / 2)


def displaced(atoms: Atoms, displacement: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.positions += displacement
    return copy


def deformed(atoms: Atoms, strain: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + strain))
    copy.positions = atoms.positions @ (np.eye(3) + strain)
    return copy


def random_directions(atoms: Atoms, count: int) -> np.ndarray:
    """[count, N, 3]: random directions of length √N, so that an atom moves by about 1."""
    return np.random.default_rng(SEED).normal(scale=3**-0.5, size=(count, len(atoms), 3))


def species_pairs(atoms: Atoms) -> Iterator[tuple[int, int]]:
    return combinations_with_replacement(np.unique(atoms.numbers).tolist(), 2)


def dimer(a: int, b: int, r: float) -> Atoms:
    return Atoms([a, b], positions=[[0, 0, 0], [r, 0, 0]])


def pair_name(a: int, b: int) -> str:
    return f"{chemical_symbols[a]}-{chemical_symbols[b]}"
