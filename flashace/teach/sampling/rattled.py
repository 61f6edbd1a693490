"""Seeds in; structures with displaced atoms, and crystals with a strained cell, out."""

from collections.abc import Sequence

import numpy as np

from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.seed import Seed

STIFF_SIZES = 0.01, 0.05  # Å, of molecules: every atom for itself
SOFT_SIZES = 0.03, 0.18  # Å, of molecules: bonded atoms together
PARTS = 0.01, 0.11  # of the nearest-neighbour distance, in crystals: at 2.5 Å, 0.03 to 0.28 Å
VOLUMES = 0.85, 1.2
SHEAR = 0.03


def rattled(seeds: Sequence[Seed], num: int, rng: np.random.Generator, settings: SampleConfig) -> list[Drawn]:
    """Displacements of all sizes between the smallest and the largest; a crystal as it was given, or repeated."""
    return [_drawn(seeds[n % len(seeds)], rng, settings) for n in range(num)]


def _drawn(seed: Seed, rng: np.random.Generator, settings: SampleConfig) -> Drawn:
    atoms, kind = seed.atoms, "rattled"
    if seed.shape in ("molecule", "molecules"):
        atoms = moves.bent(moves.rattled(atoms, rng.uniform(*STIFF_SIZES), rng), seed.bonds, rng.uniform(*SOFT_SIZES), rng)
    else:
        if seed.shape == "crystal" and rng.random() < 0.5:
            atoms = moves.supercell(atoms, settings.max_atoms)
        atoms = moves.rattled(atoms, moves.nearest(atoms) * rng.uniform(*PARTS) * rng.random(), rng)
    if seed.shape == "crystal":
        atoms, kind = moves.strained(atoms, rng.uniform(*VOLUMES), SHEAR * rng.random(), rng), "strained"
    return Drawn(kind, atoms)
