"""Molecules in; the same with long and short bonds, protons on their way, and short contacts between molecules, out."""

from collections.abc import Callable, Sequence
from functools import partial

import networkx as nx
import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from flashace.structure.neighbors import find_pairs
from flashace.teach.bonds import Bond, acyclic_bonds
from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.seed import Seed

SHORT = 0.8, 1.0  # of its length
LONG = 1.0, 2.2
COMPRESSED = 0.3  # part of the bonds
SIZE = 0.03  # Å, of the displacements that come with it
CONTACT = 1.0, 2.0  # closest contact of two molecules, in sums of covalent radii
DONORS = {7, 8, 9, 16}
REACH = 3.2  # Å between donor and acceptor of a proton

Move = Callable[[np.random.Generator], Atoms]


def stretched(seeds: Sequence[Seed], num: int, rng: np.random.Generator, settings: SampleConfig) -> list[Drawn]:
    """Of the three kinds those that the seeds allow, in equal parts."""
    kinds: dict[str, list[Move]] = {"stretched": [], "proton": [], "contact": []}
    for seed in seeds:
        for kind, possible in (("stretched", bonds_of(seed)), ("proton", transfers_of(seed)), ("contact", contacts_of(seed))):
            kinds[kind] += possible
    kinds = {kind: possible for kind, possible in kinds.items() if possible}
    tasks = []
    for n in range(num if kinds else 0):
        kind = list(kinds)[n % len(kinds)]
        atoms = kinds[kind][rng.integers(len(kinds[kind]))](rng)
        tasks.append(Drawn(kind, moves.rattled(atoms, SIZE, rng)))
    return tasks


def bonds_of(seed: Seed) -> list[Move]:
    """Each bond in no ring, made shorter or longer, what hangs on one end of it moved as it is."""
    return [partial(_stretched, seed, bond) for bond in acyclic_bonds(seed.bonds)]


def _stretched(seed: Seed, bond: Bond, rng: np.random.Generator) -> Atoms:
    return bond.stretched(seed.atoms, rng.uniform(*(SHORT if rng.random() < COMPRESSED else LONG)))


def transfers_of(seed: Seed) -> list[Move]:
    """Each proton of O, N, F or S, somewhere on its way to another of these in reach."""
    numbers = seed.atoms.numbers
    found: list[Move] = []
    pairs = find_pairs(seed.atoms, REACH)
    for i, j, vector in zip(pairs.i.tolist(), pairs.j.tolist(), pairs.edge_vec, strict=True):
        if numbers[i] in DONORS and numbers[j] in DONORS:
            for proton in sorted(seed.bonds[i]):
                if numbers[proton] == 1 and (seed.atoms.positions[proton] - seed.atoms.positions[i]) @ vector > 0:
                    found.append(partial(_transferred, seed, i, proton, vector))
    return found


def _transferred(seed: Seed, donor: int, proton: int, vector: np.ndarray, rng: np.random.Generator) -> Atoms:
    atoms = seed.atoms.copy()
    length = np.linalg.norm(vector)
    start = atoms.positions[proton] - atoms.positions[donor]
    end = start - 2 * (start @ vector / length**2 - 0.5) * vector  # its mirror image at the acceptor
    part = rng.uniform(-0.1, 1.1)
    atoms.positions[proton] = atoms.positions[donor] + (1 - part) * start + part * end
    return atoms


def contacts_of(seed: Seed) -> list[Move]:
    """Each molecule but the first, turned at random and moved towards another until they touch or overlap a little."""
    if seed.shape != "molecule":
        return []
    molecules = [sorted(molecule) for molecule in nx.connected_components(seed.bonds)]
    return [partial(_in_contact, seed.atoms, molecule) for molecule in molecules[1:]]


def _in_contact(atoms: Atoms, molecule: list[int], rng: np.random.Generator) -> Atoms:
    atoms = atoms.copy()
    rest = np.setdiff1d(np.arange(len(atoms)), molecule)
    part = atoms[molecule]
    part.positions -= part.positions.mean(axis=0)
    axis = rng.normal(size=3)
    part.rotate(rng.uniform(0, 360), rng.normal(size=3))
    axis /= np.linalg.norm(axis)
    target = rng.uniform(*CONTACT)
    radii = covalent_radii[part.numbers][:, None] + covalent_radii[atoms.numbers[rest]][None]
    start = atoms.positions[rng.choice(rest)]
    distance = 0.0
    while (_distances(part.positions + start + distance * axis, atoms.positions[rest]) / radii).min() < target:
        distance += 0.05
    atoms.positions[molecule] = part.positions + start + distance * axis
    return atoms


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(one[:, None] - other[None], axis=2))
