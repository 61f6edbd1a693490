"""A structure that was drawn in; the same with its labels out."""

from dataclasses import dataclass

from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.teach.task import labelled


@dataclass(frozen=True, eq=False)
class Drawn:
    """A task of one frame."""

    kind: str  # the `config_type` of its frame
    atoms: Atoms
    key: str = ""  # that of the plan

    def __call__(self, calculator: Calculator) -> list[Atoms]:
        return [labelled(self.atoms, calculator, config_type=self.kind)]
