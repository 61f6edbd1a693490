"""A calculator and a structure in; its energy, forces and virial, and how far they are from what a law expects, out."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.verify.law import Finding, NotApplicable, Precision

# What a calculator that is not ours may raise for a structure; a law then says what, and the next law goes on.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class State(NamedTuple):
    """Results for one structure of N atoms."""

    energy: float  # eV
    forces: np.ndarray  # [N, 3] eV/Å, constraints not applied
    virial: np.ndarray | None  # [3, 3] eV, stress times volume; None where there is no stress


def evaluate(calculator: Calculator, atoms: Atoms, with_stress: bool = True) -> State:
    """Energy, forces and, for a periodic structure whose cell has a volume, stress times volume.

    Raises CalculationFailed for what is not finite, so that no comparison meets a NaN, and for whatever the calculator raises.
    """
    atoms, virial = atoms.copy(), None
    try:
        atoms.calc = calculator
        energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces(apply_constraint=False))
        if with_stress and atoms.pbc.any() and atoms.cell.rank == 3:
            with contextlib.suppress(NotImplementedError):
                virial = atoms.get_stress(voigt=False, apply_constraint=False) * atoms.get_volume()
    except CalculationFailed:
        raise
    except FAILURES as error:
        raise CalculationFailed(f"{type(error).__name__}: {error}") from error
    for name, x in (("energy", energy), ("forces", forces), ("stress", virial)):
        if x is not None and not np.isfinite(x).all():
            raise CalculationFailed(f"{name} of {atoms.symbols} is not finite")
    return State(energy, forces, virial)


def energies_of_atoms(calculator: Calculator, atoms: Atoms) -> np.ndarray:
    """[N] eV: the energy of each atom. Raises NotApplicable where the calculator has none."""
    if "energies" not in calculator.implemented_properties:
        raise NotApplicable("the calculator has no energies of single atoms")
    evaluate(calculator, atoms)  # what it raises is told in one way
    return np.array(calculator.get_property("energies", atoms))


def same_results(
    calculator: Calculator,
    atoms: Atoms,
    precision: Precision,
    other: Atoms,
    expected: Callable[[State], State] = lambda state: state,
) -> Finding:
    """`other` against what the law makes of the results for `atoms`."""
    return compared(evaluate(calculator, other), expected(evaluate(calculator, atoms)), precision)


def compared(got: State, expected: State, precision: Precision) -> Finding:
    scale = scale_of(expected)
    return Finding(largest_error(got, expected) / scale, precision.symmetry + round_off(expected, precision) / scale)


def largest_error(got: State, expected: State) -> float:
    """Largest of energy per atom, force (× 1 Å) and virial per atom, in eV."""
    num_atoms = len(expected.forces)
    errors = [abs(got.energy - expected.energy) / num_atoms, np.abs(got.forces - expected.forces).max()]
    if got.virial is not None and expected.virial is not None:
        errors.append(np.abs(got.virial - expected.virial).max() / num_atoms)
    return float(np.max(errors))  # NaN where one of them is


def scale_of(state: State) -> float:
    """eV: what errors of this structure are measured by."""
    virial = 0.0 if state.virial is None else np.abs(state.virial).max() / len(state.forces)
    return float(max(np.abs(state.forces).max(), virial, 0.1))


def round_off(state: State, precision: Precision) -> float:
    """eV per atom: the last digits of a total energy, whose zero can be far away."""
    return 10 * precision.eps * abs(state.energy) / len(state.forces)
