"""Molecules in; the same with turned acyclic bonds, which short dynamics never reach, as they are or partly relaxed, out."""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from ase import Atoms

from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.relaxation import STEPS, Relaxation
from flashace.teach.sampling.seed import Seed, clashes
from flashace.teach.task import Task

TRIES = 50
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
    """One bond or several turned by any angle, and all atoms displaced a little; None where there is no bond, or no room."""
    bonds = turnable(seed)
    for _ in range(TRIES if bonds else 0):
        atoms = seed.atoms
        number = min(int(rng.geometric(0.5)), len(bonds))
        for n in rng.choice(len(bonds), number, replace=False):
            atoms = moves.turned(atoms, *bonds[n], angle=rng.uniform(0, 360))
        atoms = moves.rattled(atoms, SIZE, rng)
        if not clashes(atoms, seed.bonds):
            return atoms
    return None


def turnable(seed: Seed) -> list[tuple[int, int, list[int]]]:
    """(a, b, atoms on the side of b) of each bond in no ring around which both sides can be turned."""
    found = []
    for a, b in sorted(map(sorted, nx.bridges(seed.bonds))):
        if seed.bonds.degree[a] > 1 and seed.bonds.degree[b] > 1:
            one, other = side_of(seed.bonds, a, b), side_of(seed.bonds, b, a)
            if _off_axis(seed.atoms, a, b, one) and _off_axis(seed.atoms, a, b, other):
                found.append((b, a, other) if len(other) < len(one) else (a, b, one))
    return found


def side_of(bonds: nx.Graph, a: int, b: int) -> list[int]:
    """The atoms that stay with `b` when its bond to `a`, which is in no ring, is cut."""
    cut = nx.restricted_view(bonds, [], [(a, b)])
    return sorted(nx.node_connected_component(cut, b))


def _off_axis(atoms: Atoms, a: int, b: int, side: list[int]) -> bool:
    axis = atoms.positions[b] - atoms.positions[a]
    away = np.cross(atoms.positions[side] - atoms.positions[a], axis / np.linalg.norm(axis))
    return bool(np.linalg.norm(away, axis=1).max() > LINEAR)
