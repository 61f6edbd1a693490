"""A calculator in; how far its atoms see, out."""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.verify.state import evaluate
from flashace.verify.structures import dimer, species_pairs

LONGEST = 12.0  # Å; how far a cutoff is looked for where the calculator does not tell it
SHORTEST = 0.5  # Å; where the curves of two atoms begin


def cutoff_of(calculator: Calculator, atoms: Atoms) -> float:
    """Å: what the calculator tells, or else where no pair feels anything any more."""
    told = told_cutoff(calculator)
    if told is not None:
        return told
    return max([r for a, b in species_pairs(atoms) for r in cutoffs_of_pair(calculator, a, b)], default=LONGEST)


def cutoffs_of_pair(calculator: Calculator, a: int, b: int) -> list[float]:
    """Å: the cutoff that the calculator tells, and that of a lone pair of these species, if it is another."""
    told = told_cutoff(calculator)
    reach = _reach(calculator, a, b, told)
    return [r for r in (told, reach if reach != told else None) if r is not None]


def told_cutoff(calculator: Calculator) -> float | None:
    told = getattr(calculator, "r_max", None)
    return None if told is None else float(told)


def pair_span(calculator: Calculator, atoms: Atoms) -> tuple[float, float]:
    """Å: from where two atoms nearly sit on each other to where they feel nothing."""
    return SHORTEST, cutoff_of(calculator, atoms) + 0.5


def _reach(calculator: Calculator, a: int, b: int, told: float | None) -> float | None:
    """Å: the largest distance at which a lone pair feels anything; None where it does still at the longest or not at all."""
    width, longest = 0.2, LONGEST if told is None else told + 1.0
    far = evaluate(calculator, dimer(a, b, longest)).energy

    def feels(r: float) -> bool:
        state = evaluate(calculator, dimer(a, b, r))
        return bool(state.forces.any() or abs(state.energy - far) > 1e-9 + 1e-12 * abs(far))

    lowest = 1.0 if told is None else told
    inside = next((r for r in np.arange(longest, lowest, -width) if feels(r)), None)
    if told is not None and inside is None and feels(told - 1e-3):
        return told
    inside = inside or next((r for r in np.arange(lowest, 1.0, -width) if feels(r)), None)
    if inside is None or inside == longest:
        return None
    outside = inside + width
    while outside - inside > 1e-9:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if feels(middle) else (inside, middle)
    return float(inside)
