"""Energies and forces at places along a path in; slopes, and jumps between its two sides, out."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.verify.law import Precision
from flashace.verify.state import State, evaluate, scale_of

STENCIL = (-2, -1, 1, 2)


def slope_of(values: Sequence[float], h: float) -> float:
    """f'(0) to order h⁴ from f at -2h, -h, h, 2h."""
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)


def difference_tolerance(state: State, precision: Precision) -> float:
    return precision.difference + precision.eps * abs(state.energy) / precision.step / scale_of(state)


def jumps_at(calculator: Calculator, start: Atoms, moving: int, direction: np.ndarray, h: float) -> np.ndarray:
    """[3]: jump of energy (eV), force (eV/Å) and force derivative (eV/Å²) where `start` is on a path; parabolas through h, 2h, 3h."""
    sides = []
    for sign in (1, -1):
        states = []
        for n in (1, 2, 3):
            at = start.copy()
            at.positions[moving] += sign * n * h * direction
            states.append(evaluate(calculator, at))
        energy, F = np.array([s.energy for s in states]), np.array([s.forces for s in states])
        value, slope = np.array([3, -3, 1]), sign * np.array([-2.5, 4, -1.5]) / h
        sides.append((value @ energy, np.tensordot(value, F, 1), np.tensordot(slope, F, 1)))
    return np.array([np.abs(plus - minus).max() for plus, minus in zip(*sides, strict=True)])
