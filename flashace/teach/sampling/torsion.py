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
    weights = np.array([ROTOR if _is_rotor(seed, a, b) or _is_rotor(seed, b, a) else 1.0 for a, b, _ in bonds])
    first = rng.choice(len(bonds), p=weights / weights.sum())
    for _ in range(TRIES):
        atoms = seed.atoms
        for n in np.flatnonzero((np.arange(len(bonds)) == first) | (rng.random(len(bonds)) < OTHERS)):
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


def _is_rotor(seed: Seed, a: int, b: int) -> bool:
    """Whether `b` has nothing but `a` and two or three atoms of one element, such as CH3, NH2 and CF3: half a turn shows all."""
    others = [n for n in seed.bonds[b] if n != a]
    alike = len({seed.atoms.numbers[n] for n in others}) == 1
    return len(others) > 1 and alike and all(seed.bonds.degree[n] == 1 for n in others)


def _off_axis(atoms: Atoms, a: int, b: int, side: list[int]) -> bool:
    axis = atoms.positions[b] - atoms.positions[a]
    away = np.cross(atoms.positions[side] - atoms.positions[a], axis / np.linalg.norm(axis))
    return bool(np.linalg.norm(away, axis=1).max() > LINEAR)
