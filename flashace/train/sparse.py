"""Elements in; a few of their atoms, farther apart than any bond reaches, out: their energy is known without a calculation."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from flashace.data.frames import Labelled
from flashace.data.origin import Origin
from flashace.structure.neighbors import build_graph
from flashace.train.loss import Batch, collate, make_item

STRETCHED = 2.0  # Å beyond the sum of covalent radii; a Morse curve has 4 % of its depth left there
EVERY = 10  # steps of a fit; each of them would cost a third of a step of nine small molecules
STRUCTURES, MOST_ATOMS = 8, 4
TAUGHT = {"energy", "forces"}
TRIES = 100  # to place an atom


def least_distances(symbols: Sequence[str]) -> np.ndarray:
    """[S, S] Å: how near a made-up structure has each pair of these elements."""
    radii = covalent_radii[[atomic_numbers[symbol] for symbol in symbols]]
    return radii[:, None] + radii + STRETCHED


def sparse_batch(atomic_energies: Mapping[str, float], r_max: float, dtype: torch.dtype, random: np.random.Generator) -> Batch | None:
    """Structures of two to four atoms of these elements: energies are sums of `atomic_energies` (those of free atoms, in eV), forces zero.

    Each atom is within `r_max` Å of another one, and no two are closer than the sum of their covalent radii and 2 Å. None where no two of
    the elements have room between both.
    """
    symbols, numbers = list(atomic_energies), np.array([atomic_numbers[symbol] for symbol in atomic_energies])
    least = least_distances(symbols)
    if least.min() >= r_max:
        return None
    items = []
    for k in range(STRUCTURES):
        species, positions = _place(2 + k % (MOST_ATOMS - 1), least, r_max, random)
        energy = sum(atomic_energies[symbols[s]] for s in species)
        frame = Labelled(Atoms(numbers[species], positions), energy, np.zeros((len(species), 3)), None, "", Origin("free atoms", k))
        items.append(make_item(build_graph(frame.atoms, r_max), frame, dtype))
    return collate(items)


def _place(most: int, least: np.ndarray, r_max: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Species [n] and positions [n, 3] Å of two to `most` atoms; an atom that finds no place is left out."""
    a, b = np.argwhere(least < r_max)[random.integers((least < r_max).sum())]
    species, positions = np.array([a]), np.zeros((1, 3))
    for s in (b, *random.integers(len(least), size=most - 2)):
        for _ in range(TRIES):
            beside = random.integers(len(species))
            near = least[s, species[beside]]
            if near >= r_max:
                continue
            direction = random.normal(size=3)
            position = positions[beside] + random.uniform(near, r_max) * direction / np.linalg.norm(direction)
            if (np.linalg.norm(positions - position, axis=1) >= least[s, species] - 1e-9).all():
                species, positions = np.append(species, s), np.vstack([positions, position])
                break
    return species, positions
