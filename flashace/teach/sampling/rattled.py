"""Seeds in; structures with displaced atoms and, where they are periodic, strained cells, out."""

from collections.abc import Sequence

import numpy as np

from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.seed import Seed, Shape
from flashace.teach.sampling.torsion import turned_seed

STIFF_SIZES = 0.01, 0.05  # Å, of molecules: every atom for itself
SOFT_SIZES = 0.03, 0.18  # Å, of molecules: bonded atoms together
TURNED = 0.4  # part of the molecules that have turned bonds too
PARTS = 0.0, 0.11  # of the nearest-neighbour distance, in crystals: at 2.5 Å, up to 0.28 Å
VOLUMES: dict[Shape, tuple[float, float]] = {"crystal": (0.85, 1.2), "slab": (0.92, 1.1), "molecules": (0.9, 1.15)}  # areas, of slabs
SHEAR = 0.03


def rattled(seeds: Sequence[Seed], num: int, rng: np.random.Generator, settings: SampleConfig) -> list[Drawn]:
    """Displacements of all sizes up to the largest; what is periodic is strained too, a crystal as it was given, or repeated."""
    draw = {"molecule": _molecule, "molecules": _molecules, "crystal": _crystal, "slab": _slab}
    return [draw[seed.shape](seed, rng, settings) for seed in (seeds[n % len(seeds)] for n in range(num))]


def _molecule(seed: Seed, rng: np.random.Generator, settings: SampleConfig) -> Drawn:
    atoms = (turned_seed(seed, rng) if rng.random() < TURNED else None) or seed.atoms
    atoms = moves.bent(atoms, seed.bonds, rng.uniform(*SOFT_SIZES), rng)
    return Drawn("rattled", moves.rattled(atoms, rng.uniform(*STIFF_SIZES), rng))


def _molecules(seed: Seed, rng: np.random.Generator, settings: SampleConfig) -> Drawn:
    atoms = moves.strained(seed.atoms, rng.uniform(*VOLUMES[seed.shape]), SHEAR * rng.random(), rng, seed.bonds)
    atoms = moves.bent(atoms, seed.bonds, rng.uniform(*SOFT_SIZES), rng)
    return Drawn("strained", moves.rattled(atoms, rng.uniform(*STIFF_SIZES), rng))


def _crystal(seed: Seed, rng: np.random.Generator, settings: SampleConfig) -> Drawn:
    atoms = moves.supercell(seed.atoms, settings.max_atoms) if rng.random() < 0.5 else seed.atoms
    atoms = moves.rattled(atoms, moves.nearest(atoms) * rng.uniform(*PARTS) * rng.random(), rng)
    return Drawn("strained", moves.strained(atoms, rng.uniform(*VOLUMES[seed.shape]), SHEAR * rng.random(), rng))


def _slab(seed: Seed, rng: np.random.Generator, settings: SampleConfig) -> Drawn:
    plane = np.linalg.svd(seed.atoms.cell.array[seed.dense], full_matrices=False)[2]
    strain = moves.random_strain(rng.uniform(*VOLUMES[seed.shape]), SHEAR * rng.random(), plane, rng)
    size = moves.nearest(seed.atoms) * rng.uniform(*PARTS) * rng.random()
    return Drawn("strained", moves.rattled(moves.deformed(seed.atoms, strain), size, rng))
