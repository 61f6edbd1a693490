"""Crystals in; supercells with vacancies, interstitial and exchanged atoms out."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.geometry import get_distances

from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.relaxation import STEPS, Relaxation
from flashace.teach.sampling.seed import Seed
from flashace.teach.task import Task

PLACES = 200  # random ones, of which the roomiest is taken for an interstitial atom
VOLUMES = 0.96, 1.06
SHEAR = 0.01
PARTS = 0.01, 0.06  # displacements, of the nearest-neighbour distance


def defects(seeds: Sequence[Seed], num: int, rng: np.random.Generator, settings: SampleConfig) -> list[Task]:
    """About half of the frames are vacancies; the others interstitial atoms and, where there are several elements, two atoms exchanged.

    An interstitial atom has no room where it is put: what is labelled are the steps in which it makes room.
    """
    tasks: list[Task] = []
    while num > 0:
        crystal = moves.supercell(seeds[len(tasks) % len(seeds)].atoms, settings.max_atoms)
        several = len(set(crystal.numbers)) > 1
        kind = str(rng.choice(KINDS if several else KINDS[:5]))
        size = moves.nearest(crystal) * rng.uniform(*PARTS)
        atoms = moves.rattled(MAKE[kind](crystal, rng), size, rng)
        atoms = moves.strained(atoms, rng.uniform(*VOLUMES), SHEAR * rng.random(), rng)
        if kind == "interstitial":
            tasks.append(Relaxation(kind, atoms, min(num, len(STEPS))))
            num -= min(num, len(STEPS))
        else:
            tasks.append(Drawn(kind, atoms))
            num -= 1
    return tasks


def with_vacancies(crystal: Atoms, rng: np.random.Generator) -> Atoms:
    """One or two atoms less; never the last one."""
    atoms = crystal.copy()
    number = min(int(rng.integers(1, 3)), len(atoms) - 1)
    del atoms[rng.choice(len(atoms), number, replace=False).tolist()]
    return atoms


def with_interstitial(crystal: Atoms, rng: np.random.Generator) -> Atoms:
    """One more atom of an element that is there, in a large hole."""
    places = rng.random((PLACES, 3)) @ crystal.cell.array
    distances = get_distances(places, crystal.positions, cell=crystal.cell, pbc=crystal.pbc)[1]
    atoms = crystal.copy()
    atoms.append(int(rng.choice(crystal.numbers)))
    atoms.positions[-1] = places[distances.min(axis=1).argmax()]
    return atoms


def with_exchanged(crystal: Atoms, rng: np.random.Generator) -> Atoms:
    """Two atoms of different elements in each other's place."""
    atoms = crystal.copy()
    one = rng.integers(len(atoms))
    other = rng.choice(np.flatnonzero(atoms.numbers != atoms.numbers[one]))
    atoms.positions[[one, other]] = atoms.positions[[other, one]]
    return atoms


MAKE = {"vacancy": with_vacancies, "interstitial": with_interstitial, "antisite": with_exchanged}
KINDS = ["vacancy"] * 4 + ["interstitial"] + ["antisite"] * 3  # an interstitial atom gives several frames
