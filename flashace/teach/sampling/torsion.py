"""Molecules in; the same with turned acyclic bonds, which short dynamics never reach, as they are or partly relaxed, out."""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from ase import Atoms

from flashace.teach.bonds import Bond, acyclic_bonds
from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.relaxation import STEPS, Relaxation
from flashace.teach.sampling.seed import Seed, clashes
from flashace.teach.task import Task

TRIES = 50
OTHERS = 0.3  # of the other bonds are turned too
ROTOR = 0.3  # how often a methyl group and its like is drawn, for each time that another bond is
SIZE = 0.03  # Å, of the displacements that come with a turn
LINEAR = 0.3  # Å: atoms that are all closer to the axis are not changed by a turn
RELAXED = 0.6  # part of the frames that come from relaxations


def torsion(seeds: Sequence[Seed], num: int, rng: np.random.Generator, settings: SampleConfig) -> list[Task]:
    """Turned seeds, some of them as they are and some with the first steps of their relaxation; none where no bond can be turned."""
    seeds = [seed for seed in seeds if turnable(seed)]
    tasks: list[Task] = []
    tries = 0
    while num > 0 and tries < TRIES * max(num, 1) and seeds:
        atoms = turned_seed(seeds[tries % len(seeds)], rng)
        tries += 1
        if atoms is None:
            continue
        frames = min(num, len(STEPS))
        if rng.random() < RELAXED / (len(STEPS) - RELAXED * (len(STEPS) - 1)):  # so that RELAXED is a part of the frames
            tasks.append(Relaxation("torsion-relaxed", atoms, frames))
            num -= frames
        else:
            tasks.append(Drawn("torsion", atoms))
            num -= 1
    return tasks


def turned_seed(seed: Seed, rng: np.random.Generator) -> Atoms | None:
    """A bond, and each of the others perhaps, turned by any angle, and all atoms displaced a little; None where no bond can be turned.

    Which bond it is, is drawn before it is known whether there is room: else bonds in crowded places would hardly ever be turned.
    """
    bonds = turnable(seed)
    if not bonds:
        return None
    weights = np.array([ROTOR if _is_rotor(seed, b.root, b.tip) or _is_rotor(seed, b.tip, b.root) else 1.0 for b in bonds])
    first = rng.choice(len(bonds), p=weights / weights.sum())
    for _ in range(TRIES):
        atoms = seed.atoms
        for n in np.flatnonzero((np.arange(len(bonds)) == first) | (rng.random(len(bonds)) < OTHERS)):
            atoms = bonds[n].turned(atoms, rng.uniform(0, 360))
        atoms = moves.rattled(atoms, SIZE, rng)
        if not clashes(atoms, seed.bonds):
            return atoms
    return None


def turnable(seed: Seed) -> list[Bond]:
    """The bonds in no ring around which both sides can be turned."""
    return [
        bond for bond in acyclic_bonds(seed.bonds) if bond.turns and all(_off_axis(seed.atoms, bond, side) for side in _sides(seed, bond))
    ]


def _sides(seed: Seed, bond: Bond) -> tuple[list[int], list[int]]:
    molecule = nx.node_connected_component(seed.bonds, bond.root)
    return list(bond.moving), sorted(molecule.difference(bond.moving))


def _is_rotor(seed: Seed, a: int, b: int) -> bool:
    """Whether `b` has nothing but `a` and two or three atoms of one element, such as CH3, NH2 and CF3: half a turn shows all."""
    others = [n for n in seed.bonds[b] if n != a]
    alike = len({seed.atoms.numbers[n] for n in others}) == 1
    return len(others) > 1 and alike and all(seed.bonds.degree[n] == 1 for n in others)


def _off_axis(atoms: Atoms, bond: Bond, side: list[int]) -> bool:
    axis = atoms.positions[bond.tip] - atoms.positions[bond.root]
    away = np.cross(atoms.positions[side] - atoms.positions[bond.root], axis / np.linalg.norm(axis))
    return bool(np.linalg.norm(away, axis=1).max() > LINEAR)
