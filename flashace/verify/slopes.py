"""Laws of slopes: forces, stress and second derivatives against differences."""

from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii

from flashace.verify.differences import STENCIL, difference_tolerance, jumps_at, slope_of
from flashace.verify.law import FLOAT64, Finding, NotApplicable, Precision, law, worst_of
from flashace.verify.state import evaluate, scale_of
from flashace.verify.structures import deformed, displaced, random_directions, species_pairs


@law
def forces(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Forces are minus the slope of the energy (central differences along random directions)."""
    return _forces_against_slopes(calculator, atoms, precision, 4)


@law
def atoms_in_a_line(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Where three atoms stand exactly in a line, along whichever axis, forces are minus the slope of the energy and do not jump."""
    found = []
    for (a, b), axis in product(species_pairs(atoms), np.eye(3)):
        bond = covalent_radii[a] + covalent_radii[b]
        line = Atoms([a, b, a], [-bond * axis, 0 * axis, bond * axis])
        slopes = _forces_against_slopes(calculator, line, precision, num_directions=1)
        jumps = jumps_at(calculator, line, 1, np.roll(axis, 1), precision.force_step)
        found.append(replace(slopes, measured=max(slopes.measured, jumps.max() / scale_of(evaluate(calculator, line)))))
    return worst_of(found)


@law
def stress(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Stress is the slope of the energy along each of the six strains, per volume (central differences)."""
    state = evaluate(calculator, atoms)
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    if atoms.cell.rank < 3:
        raise NotApplicable("the cell has no volume")
    if state.virial is None:
        raise NotApplicable("the calculator has no stress")
    h, worst = precision.step, 0.0
    for a, b in combinations_with_replacement(range(3), 2):
        strain = np.zeros((3, 3))
        strain[a, b] = strain[b, a] = 1.0 if a == b else 0.5
        energies = [evaluate(calculator, deformed(atoms, n * h * strain)).energy for n in STENCIL]
        worst = max(worst, abs(slope_of(energies, h) - (state.virial * strain).sum()))
    detail = f"largest component {np.abs(state.virial).max() / atoms.get_volume() / units.GPa:.3g} GPa"
    return Finding(worst / len(atoms) / scale_of(state), difference_tolerance(state, precision), detail=detail)


@law
def hessian_symmetry(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Second derivatives commute: how one atom's force answers to another's move goes both ways."""
    if len(atoms) < 2:
        raise NotApplicable("one atom has no second derivatives")
    directions = random_directions(atoms, 4)
    answers = np.array([_force_slope(calculator, atoms, u, precision.force_step) for u in directions])
    matrix = np.tensordot(directions, answers, axes=([1, 2], [1, 2]))
    return Finding(np.abs(matrix - matrix.T).max() / np.abs(answers).max(), precision.difference)


def _forces_against_slopes(calculator: Calculator, atoms: Atoms, precision: Precision, num_directions: int) -> Finding:
    state = evaluate(calculator, atoms)
    h, worst = precision.step, 0.0
    for direction in random_directions(atoms, num_directions):
        energies = [evaluate(calculator, displaced(atoms, n * h * direction)).energy for n in STENCIL]
        worst = max(worst, abs(slope_of(energies, h) + (state.forces * direction).sum()))
    return Finding(worst / scale_of(state), difference_tolerance(state, precision))


def _force_slope(calculator: Calculator, atoms: Atoms, direction: np.ndarray, h: float) -> np.ndarray:
    """[N, 3] eV/Å²: change of the forces along `direction`."""
    plus, minus = (evaluate(calculator, displaced(atoms, sign * h * direction)).forces for sign in (1, -1))
    return (plus - minus) / (2 * h)
