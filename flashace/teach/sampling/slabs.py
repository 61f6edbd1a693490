"""Crystals in; slabs of them with vacuum, and crystals that a growing gap opens, out."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import surface

from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.seed import Seed

CUTS = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (2, 1, 0), (2, 1, 1)  # Miller indices
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


def slab_of(crystal: Atoms, cut: tuple[int, int, int], most: int, rng: np.random.Generator) -> Atoms:
    """Layers of the crystal between two faces of the cell, periodic, without a gap yet. The cut is at any height between two layers."""
    crystal = crystal.copy()
    crystal.positions += rng.random(3) @ crystal.cell.array
    crystal.wrap()
    layer = surface(crystal, cut, 1, periodic=True)
    height = layer.get_volume() / np.linalg.norm(np.cross(*layer.cell.array[:2]))
    layers = max(min(int(np.ceil(THICK / height)), most // len(layer)), 1)
    return moves.supercell(surface(crystal, cut, layers, periodic=True), most, directions=(0, 1))


def opened(slab: Atoms, gap: float) -> Atoms:
    """The two faces that the third lattice vector leads through moved apart by `gap` Å."""
    atoms = slab.copy()
    atoms.wrap()
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    cell = atoms.cell.array.copy()
    cell[2] += gap * normal / np.linalg.norm(normal) * np.sign(normal @ cell[2])
    atoms.set_cell(cell)
    return atoms
