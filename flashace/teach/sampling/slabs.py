"""Crystals in; slabs of them with vacuum, and crystals that a growing gap opens, out."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from ase import Atoms
from ase.build import make_supercell

from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.seed import Seed

Cut = tuple[int, int, int]

CUTS: list[Cut] = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (2, 1, 0), (2, 1, 1)]  # Miller indices
THICK = 7.0  # Å
VACUUM = 5.0  # Å on either side
GAPS = 0.2, 6.0  # Å
PARTS = 0.01, 0.07  # displacements, of the nearest-neighbour distance


def slabs(seeds: Sequence[Seed], num: int, rng: np.random.Generator, settings: SampleConfig) -> list[Drawn]:
    """In turn a slab and an opened crystal, cut along a low index."""
    return [_drawn(seeds[n % len(seeds)], ("surface", "opened")[n % 2], rng, settings) for n in range(num)]


def _drawn(seed: Seed, kind: str, rng: np.random.Generator, settings: SampleConfig) -> Drawn:
    slab = slab_of(seed.atoms, CUTS[rng.integers(len(CUTS))], settings.max_atoms, rng)
    gap = 2 * VACUUM if kind == "surface" else rng.uniform(*GAPS)
    atoms = moves.rattled(opened(slab, gap), moves.nearest(slab) * rng.uniform(*PARTS), rng)
    return Drawn(kind, atoms)


def slab_of(crystal: Atoms, cut: Cut, most: int, rng: np.random.Generator) -> Atoms:
    """The crystal in a cell of which two faces are the `cut`, without a gap yet. It lies at any height between two layers of atoms.

    `ase.build.surface` makes slabs too, but forgets how their two faces would fit together.
    """
    crystal = crystal.copy()
    crystal.positions += rng.random(3) @ crystal.cell.array
    in_plane, other, out = _basis(crystal.cell.array, np.array(cut))
    height = crystal.get_volume() / np.linalg.norm(np.cross(in_plane @ crystal.cell.array, other @ crystal.cell.array))
    layers = max(min(int(np.ceil(THICK / height)), most // len(crystal)), 1)
    return moves.supercell(make_supercell(crystal, [in_plane, other, layers * out]), most, directions=(0, 1))


def _basis(cell: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shortest lattice vectors, in units of `cell`, of which two span the plane `cut` and the third leads to the next such plane."""
    vectors = np.array(list(product(range(-3, 4), repeat=3)))
    vectors = vectors[np.argsort(np.linalg.norm(vectors @ cell, axis=1), kind="stable")]
    flat = vectors[(vectors @ cut == 0) & vectors.any(axis=1)]
    one, other = next((a, b) for b in flat for a in flat if np.array_equal(np.cross(a, b), cut))
    return one, other, vectors[vectors @ cut == 1][0]


def opened(slab: Atoms, gap: float) -> Atoms:
    """The two faces that the third lattice vector leads through moved apart by `gap` Å."""
    atoms = slab.copy()
    atoms.wrap()
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    cell = atoms.cell.array.copy()
    cell[2] += gap * normal / np.linalg.norm(normal) * np.sign(normal @ cell[2])
    atoms.set_cell(cell)
    return atoms
