"""Seeds in; trajectories of molecular dynamics from disturbed seeds, at several temperatures and volumes, out."""

import math
from collections.abc import Sequence

import numpy as np
from ase import Atoms, units

from flashace.teach.config import SampleConfig
from flashace.teach.sampling import moves
from flashace.teach.sampling.defects import with_vacancies
from flashace.teach.sampling.seed import Seed, Shape
from flashace.teach.sampling.torsion import turned_seed
from flashace.teach.sampling.trajectory import Trajectory

# K, by the shape of the seeds; of crystals and slabs, where the energy of cohesion tells, these parts of the melting point
TEMPERATURES: dict[Shape, tuple[float, ...]] = {
    "molecule": (300.0, 600.0, 900.0, 1200.0, 1800.0),
    "molecules": (200.0, 350.0, 500.0, 800.0),
    "crystal": (300.0, 700.0, 1200.0, 2000.0),
    "slab": (300.0, 600.0, 1000.0),
}
OF_MELTING = {"crystal": (0.25, 0.6, 1.0, 1.6), "slab": (0.25, 0.5, 0.8)}
COHESION = 33.0  # energy of cohesion by k_B times the melting point: 42 of Al, 30 of Cu, 32 of Si, 28 of W, 35 of Na, 36 of NaCl
APART = 15.0  # fs at least, and as many time steps, between frames
LONGEST = 20  # frames of a trajectory: many short ones show more than few long ones
SHORTEST = 5
VOLUMES = 0.92, 1.15
STARTED = 0.5  # part of the trajectories of molecules that start from turned bonds
VACANT = 0.25  # part of the trajectories of crystals that start with vacancies


def temperatures_of(shape: Shape, cohesion: float | None) -> tuple[float, ...]:
    """K; `cohesion` is the energy in eV that it takes to part the atoms of the seeds, per atom."""
    if shape not in OF_MELTING or cohesion is None or cohesion <= 0:
        return TEMPERATURES[shape]
    return tuple(max(round(part * cohesion / (COHESION * units.kB), -1), 10.0) for part in OF_MELTING[shape])


def dynamics(seeds: Sequence[Seed], num: int, rng: np.random.Generator, settings: SampleConfig) -> list[Trajectory]:
    """Trajectories with `num` frames together, over the temperatures of the settings and seeds of one shape."""
    temperatures = settings.temperatures
    length = min(max(num // (2 * len(temperatures)), SHORTEST), LONGEST)
    tasks: list[Trajectory] = []
    while num > 0:
        n = len(tasks)
        again = n // math.lcm(len(seeds), len(temperatures))  # each seed meets each temperature
        seed, temperature = seeds[(n + again) % len(seeds)], temperatures[n % len(temperatures)]
        tasks.append(_trajectory(seed, temperature, min(length, num), rng, settings))
        num -= length
    return tasks


def _trajectory(seed: Seed, temperature: float, frames: int, rng: np.random.Generator, settings: SampleConfig) -> Trajectory:
    step = timestep(seed.atoms)
    interval = max(round(APART / step), round(APART))
    atoms = _start(seed, rng, settings)
    number = int(rng.integers(2**31))
    return Trajectory(atoms, temperature, step, interval, frames, settings.max_force, number)


def _start(seed: Seed, rng: np.random.Generator, settings: SampleConfig) -> Atoms:
    atoms = seed.atoms
    if seed.shape == "crystal":
        atoms = moves.supercell(atoms, settings.max_atoms)
        if rng.random() < VACANT:
            atoms = with_vacancies(atoms, rng)
        atoms = moves.strained(atoms, rng.uniform(*VOLUMES), 0.01, rng)
    elif seed.shape == "molecules":
        atoms = moves.strained(atoms, rng.uniform(*VOLUMES), 0.01, rng, seed.bonds)
    elif seed.shape == "molecule" and rng.random() < STARTED:
        atoms = turned_seed(seed, rng) or atoms
    return moves.rattled(atoms, 0.02, rng)


def timestep(atoms: Atoms) -> float:
    """fs: a twentieth of the fastest vibration that the lightest atom can have, between 0.5 (hydrogen) and 2."""
    return float(np.clip(0.5 * np.sqrt(atoms.get_masses().min()), 0.5, 2.0).round(1))
