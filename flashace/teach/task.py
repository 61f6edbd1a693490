"""A piece of a teacher's work: a calculator in, labelled frames out."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from flashace.verify.state import FAILURES

SAME = 1e-3  # eV/atom: `free_energy` and `energy` that differ by less are one
APART = "free_energy_minus_energy"  # in `info` of a frame whose two energies are not one, eV


class Task(Protocol):
    """It can be sent to another process, and does the same there as here."""

    @property
    def key(self) -> str:
        """The same for the same work in any run: a run that goes on knows by it what is done. No spaces."""

    def __call__(self, calculator: Calculator) -> list[Atoms]:
        """The frames, each `labelled`. Raises CalculationFailed where the teacher cannot do it."""


@dataclass(frozen=True)
class Failure:
    """What became of a task that has no frames: why, and the structure that it was about, where there is one."""

    key: str
    reason: str
    atoms: Atoms | None = None


@dataclass(frozen=True, eq=False)
class Label:
    """One structure, as it is."""

    key: str
    atoms: Atoms

    def __call__(self, calculator: Calculator) -> list[Atoms]:
        return [labelled(self.atoms, calculator)]


def labelled(atoms: Atoms, calculator: Calculator, **info: Any) -> Atoms:
    """A copy of `atoms` that holds its energy (eV), forces [N, 3] (eV/Å) and, where it is periodic with a volume, stress [6] (eV/Å³).

    The energy is `free_energy`, whose derivative the forces are, where the calculator gives one; where that is not its `energy`, `info` of
    the frame has the difference as `APART`. Constraints are left out of the copy and of the forces; `info` is added to that of the frame.
    Raises CalculationFailed for whatever the calculator raises, and for what is not finite or of another shape.
    """
    frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info={**atoms.info, **info})
    asked = ["energy", "forces"]
    if frame.pbc.any() and frame.cell.rank == 3 and "stress" in calculator.implemented_properties:
        asked.append("stress")
    try:
        calculator.reset()  # nothing of the structure before may be taken for a result of this one
        calculator.calculate(frame, asked, ["positions", "numbers", "cell", "pbc", "initial_charges", "initial_magmoms"])
    except CalculationFailed:
        raise
    except FAILURES as error:
        raise CalculationFailed(f"{type(error).__name__}: {error}") from error
    found = dict(calculator.results)
    if np.shape(found.get("stress", ())) == (3, 3):  # ASE lets a calculator choose
        found["stress"] = full_3x3_to_voigt_6_stress(found["stress"])
    found.setdefault("free_energy", found.get("energy"))
    shapes = {"energy": (), "free_energy": (), "forces": (len(frame), 3), "stress": (6,)}
    results = {}
    for name in ("free_energy", *asked):
        value = np.array(found.get(name), dtype=float)
        if value.shape != shapes[name] or not np.isfinite(value).all():
            raise CalculationFailed(f"{name}: expected finite numbers of shape {shapes[name]}, got {value!r:.80}")
        results[name] = value if shapes[name] else float(value)
    apart = results["free_energy"] - results["energy"]
    if abs(apart) > SAME * len(frame):
        frame.info[APART] = apart
    results["energy"] = results.pop("free_energy")
    frame.calc = SinglePointCalculator(frame, **results)
    return frame
