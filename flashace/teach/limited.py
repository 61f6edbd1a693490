"""A calculator and a time in; the same calculator, which says that it failed once the time is over, out."""

import time
from collections.abc import Sequence

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes


class Limited(Calculator):
    """Nobody knows beforehand how often a law asks a calculator, and how long a teacher needs."""

    def __init__(self, calculator: Calculator, seconds: float) -> None:
        super().__init__()
        self.calculator, self.seconds, self.end = calculator, seconds, time.monotonic() + seconds
        self.implemented_properties = list(calculator.implemented_properties)
        if hasattr(calculator, "r_max"):
            self.r_max = calculator.r_max  # laws look for it

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
    ) -> None:
        """Raises CalculationFailed once the time is over, and whatever the calculator raises."""
        super().calculate(atoms, properties, system_changes)
        if time.monotonic() > self.end:
            raise CalculationFailed(f"it takes longer than the {self.seconds:.0f} s that there were for it")
        for name in properties:
            self.calculator.get_property(name, self.atoms)  # it knows by itself what has changed since somebody asked it last
        self.results = dict(self.calculator.results)
