"""A teacher and a structure in; how far its answers to the same structure, told in other ways, are apart, out."""

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from scipy.spatial.transform import Rotation

from flashace.verify.state import evaluate

WAYS = 4  # in which a structure is told, beside the two times that it is told as it is


class Noise(NamedTuple):
    """Root mean squares of the deviations from the mean answer."""

    energy: float  # meV/atom
    forces: float  # meV/Å, of a component


def noise_of(calculator: Calculator, atoms: Atoms) -> Noise:
    """The structure as it is, twice, and turned and shifted in four ways: a periodic cell turns too, its atoms are shifted through it.

    Raises CalculationFailed as `evaluate` does.
    """
    random = np.random.default_rng(0)
    turns = [np.eye(3), np.eye(3), *Rotation.random(WAYS, rng=random).as_matrix()]
    shifts = [np.zeros(3), np.zeros(3), *random.uniform(-10, 10, (WAYS, 3))]
    energies, forces = [], []
    for Q, shift in zip(turns, shifts, strict=True):
        other = atoms.copy()
        other.positions += shift
        if other.pbc.any():
            other.wrap()
        other.set_cell(np.asarray(other.cell) @ Q.T)
        other.positions = other.positions @ Q.T
        state = evaluate(calculator, other, with_stress=False)
        calculator.reset()  # none of the answers shall be remembered
        energies.append(state.energy / len(atoms))
        forces.append(state.forces @ Q)
    deviations = np.array(forces) - np.mean(forces, axis=0)
    return Noise(1e3 * float(np.std(energies)), 1e3 * float(np.sqrt(np.mean(deviations**2))))
