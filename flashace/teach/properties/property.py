"""What a property is: a function of a `Subject` that says how far student and teacher are apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.teach.locality import heights_of
from flashace.verify.state import evaluate

GAP = 4.0  # Å without any atom: a surface, not a crystal


@dataclass(frozen=True)
class Subject:
    """Who is compared on what. A property neither changes the structure nor keeps the calculators."""

    student: Calculator
    teacher: Calculator
    atoms: Atoms  # at rest, by the teacher
    make_student: Callable[[str], Calculator]  # of a precision, as `verify` asks for
    precisions: tuple[str, ...] = ("float64", "float32")  # that `make_student` knows
    temperature: float = 1000.0  # K, of hot molecular dynamics

    @property
    def both(self) -> tuple[Calculator, Calculator]:
        """Student and teacher, in this order."""
        return self.student, self.teacher


@dataclass(frozen=True)
class Panel:
    """Curves to draw: values [P] or, for several curves, [P, C] over x [P]."""

    title: str
    xlabel: str
    ylabel: str
    x: np.ndarray
    student: np.ndarray
    teacher: np.ndarray | None
    joined: bool = True  # by lines


@dataclass(frozen=True)
class Measured:
    """`number` is what a bound is asked of: less is better."""

    number: float
    unit: str
    meaning: str  # of the number
    words: str = ""  # student against teacher
    panels: tuple[Panel, ...] = ()


class DoesNotApply(Exception):
    """The structure has no such property: it is left out. What should have been measured and was not raises CalculationFailed."""


Property = Callable[[Subject], Measured]


def is_crystal(atoms: Atoms) -> bool:
    """Periodic in three directions, without a gap of 4 Å."""
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        return False
    places = np.sort(atoms.get_scaled_positions(), axis=0)
    gaps = np.diff(np.concatenate([places, places[:1] + 1]), axis=0).max(axis=0)
    return bool((gaps * heights_of(atoms))[gaps < 1].max(initial=0.0) < GAP)


def is_molecule(atoms: Atoms) -> bool:
    """Several atoms and no periodic direction."""
    return len(atoms) > 1 and not atoms.pbc.any()


def energies(calculator: Calculator, structures: Sequence[Atoms]) -> np.ndarray:
    """[P] eV. Raises CalculationFailed as `evaluate` does."""
    return np.array([evaluate(calculator, atoms, with_stress=False).energy for atoms in structures])


def rmse(student: np.ndarray, teacher: np.ndarray) -> float:
    """Root mean square difference, without its mean: the zero of an energy means nothing."""
    return float(np.std(np.asarray(student) - np.asarray(teacher)))
