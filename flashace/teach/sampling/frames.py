"""A calculator at work on a structure in; labelled frames of what it has just computed out."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.teach.task import labelled
from flashace.verify.state import FAILURES


def frames_of(steps: Iterable[Any], atoms: Atoms, calculator: Calculator, kind: str) -> list[Atoms]:
    """A frame of `atoms`, which has `calculator`, after each of `steps`; no label is computed twice.

    Where a step fails, the last frame says why (info `ended`). Raises CalculationFailed where that is before the first frame.
    """
    frames: list[Atoms] = []
    try:
        for _ in steps:
            frames.append(labelled(atoms, _Answered(calculator), config_type=kind))  # type: ignore[arg-type]
    except FAILURES as error:
        if not frames:
            raise error if isinstance(error, CalculationFailed) else CalculationFailed(f"{type(error).__name__}: {error}") from error
        frames[-1].info["ended"] = str(error)
    return frames


def check_forces(atoms: Atoms, most: float) -> None:
    """Raises CalculationFailed for a force on an atom that is above `most` eV/Å, or no number."""
    largest = np.linalg.norm(atoms.get_forces(apply_constraint=False), axis=1).max()
    if not largest <= most:
        raise CalculationFailed(f"force of {largest:.3g} eV/Å: expected at most {most:g}")


class _Answered:
    """A calculator that has already answered for the structure, as `labelled` asks it."""

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator
        self.implemented_properties = calculator.implemented_properties
        self.results: dict[str, Any] = {}

    def reset(self) -> None:
        """What it has found holds."""

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        for name in properties:
            self.calculator.get_property(name, atoms)
        self.results = self.calculator.results
