"""The energy of a molecule over the length of its bonds, and over the angle around them."""

from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.teach.bonds import Bond, acyclic_bonds
from flashace.teach.properties.property import DoesNotApply, Measured, Panel, Subject, energies, is_molecule, rmse
from flashace.teach.sampling.seed import look_at
from flashace.verify.state import evaluate

ANGLES = np.arange(0.0, 360.0, 15.0)  # degrees
FACTORS = np.linspace(0.85, 1.5, 14)
WINDOW = {"turn": 2.0, "stretch": 5.0}  # eV above the lowest energy of the teacher; beyond it nothing is compared
MOST_BONDS = 12


def dihedral_scan(subject: Subject) -> Measured:
    """Around each bond that is in no ring, the parts as they are. Clashes, 2 eV above the minimum and more, are not compared."""
    bonds = [bond for bond in _bonds(subject) if bond.turns]
    return _scan(subject, bonds, Bond.turned, ANGLES, WINDOW["turn"], "angle, °")


def bond_scan(subject: Subject) -> Measured:
    """Each bond that is in no ring, from 0.85 to 1.5 of its length, the parts as they are; up to 5 eV above the minimum."""
    return _scan(subject, _bonds(subject), Bond.stretched, FACTORS, WINDOW["stretch"], "length / length at rest")


def _bonds(subject: Subject) -> list[Bond]:
    if not is_molecule(subject.atoms):
        raise DoesNotApply
    return acyclic_bonds(look_at(subject.atoms).bonds)


def _scan(
    subject: Subject, bonds: list[Bond], change: Callable[[Bond, Atoms, float], Atoms], places: np.ndarray, window: float, xlabel: str
) -> Measured:
    if not bonds:
        raise DoesNotApply
    atoms, panels, errors, spreads = subject.atoms, [], [], []
    chosen = [bonds[i] for i in sorted(set(np.linspace(0, len(bonds) - 1, min(MOST_BONDS, len(bonds))).astype(int)))]
    rest = energies(subject.teacher, [atoms])[0]
    for bond in chosen:
        structures = [change(bond, atoms, float(place)) for place in places]
        teacher = np.array([_energy(subject.teacher, structure) for structure in structures])
        near = teacher - min(rest, np.nanmin(teacher)) < window  # NaN, where the teacher failed, is not
        if near.sum() < 3:
            continue
        student = energies(subject.student, [structure for structure, kept in zip(structures, near, strict=True) if kept])
        student, teacher = 1e3 * student, 1e3 * teacher[near]
        errors.append(rmse(student, teacher))
        spreads.append(float(np.std(teacher)))
        own, of_teacher = student - student.mean(), teacher - teacher.mean()
        panels.append(Panel(f"{bond.name(atoms)}: RMSE {errors[-1]:.3g} meV", xlabel, "energy, meV", places[near], own, of_teacher))
    if not errors:
        raise CalculationFailed("the teacher has no three points of any scan within the window of energies")
    total, spread = (float(np.sqrt(np.mean(np.square(values)))) for values in (errors, spreads))
    words = f"{len(errors)} bonds, worst {max(errors):.3g} meV; the teacher's own spread is {spread:.3g} meV"
    return Measured(total, "meV", "RMSE over the scans", words, tuple(panels))


def _energy(calculator: Calculator, atoms: Atoms) -> float:
    """eV; NaN where the calculator failed, as where atoms clash."""
    try:
        return evaluate(calculator, atoms, with_stress=False).energy
    except CalculationFailed:
        return np.nan
