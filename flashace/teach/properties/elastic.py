"""The elastic constants of a crystal."""

from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from flashace.teach.properties.property import DoesNotApply, Measured, Panel, Subject, is_crystal
from flashace.verify.state import evaluate
from flashace.verify.structures import deformed

STRAIN = 0.005
VOIGT = (0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)
STEPS, FORCE = 50, 0.005  # at most, and eV/Å at most at the end, of the ions' relaxation


def elastic(subject: Subject) -> Measured:
    """From stresses at small strains to both sides, each with ions that its own calculator relaxed."""
    if not is_crystal(subject.atoms):
        raise DoesNotApply
    student, teacher = (constants(calculator, subject.atoms) for calculator in subject.both)
    pairs = list(combinations_with_replacement(range(6), 2))
    own, of_teacher = (np.array([C[pair] for pair in pairs]) for C in (student, teacher))
    words = ", ".join(f"C{i}{j} {student[i - 1, j - 1]:.4g} ({teacher[i - 1, j - 1]:.4g})" for i, j in ((1, 1), (1, 2), (4, 4))) + " GPa"
    panel = Panel("Elastic constants", "11, 12, … 16, 22, … 66", "GPa", np.arange(1, len(pairs) + 1), own, of_teacher, joined=False)
    return Measured(float(np.sqrt(np.mean((own - of_teacher) ** 2))), "GPa", "RMSE of the 21 constants", words, (panel,))


def constants(calculator: Calculator, atoms: Atoms) -> np.ndarray:
    """[6, 6] GPa, symmetric. Raises CalculationFailed where the calculator has no stress."""
    C = np.zeros((6, 6))
    for i, (a, b) in enumerate(VOIGT):
        strain = np.zeros((3, 3))
        strain[a, b] = strain[b, a] = 1.0 if a == b else 0.5
        plus, minus = (_stress(calculator, deformed(atoms, sign * STRAIN * strain)) for sign in (1, -1))
        C[i] = (plus - minus) / (2 * STRAIN * units.GPa)
    return (C + C.T) / 2


def _stress(calculator: Calculator, atoms: Atoms) -> np.ndarray:
    """[6] eV/Å³, ions relaxed."""
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=FORCE, steps=STEPS)
    virial = evaluate(calculator, atoms).virial
    if virial is None:
        raise CalculationFailed("the calculator has no stress")
    return np.asarray(full_3x3_to_voigt_6_stress(virial / atoms.get_volume()))
