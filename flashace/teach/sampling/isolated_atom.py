"""An element in; one atom of it alone, the zero of energy of a teacher, out."""

from dataclasses import dataclass

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.teach.task import labelled

BOX = 15.0  # Å, for a teacher that only knows periodic structures


@dataclass(frozen=True, eq=False)
class IsolatedAtom:
    """Without a cell, and where the teacher cannot do that, in a large periodic one."""

    atoms: Atoms
    key: str = ""  # that of the plan
    kind: str = "isolated_atom"

    def __call__(self, calculator: Calculator) -> list[Atoms]:
        try:
            return [labelled(self.atoms, calculator, config_type=self.kind)]
        except CalculationFailed:
            boxed = Atoms(self.atoms.numbers, [(BOX / 2, BOX / 2, BOX / 2)], cell=[BOX, BOX, BOX], pbc=True)
            return [labelled(boxed, calculator, config_type=self.kind)]
