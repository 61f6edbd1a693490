"""Laws of answers: they are numbers, the same ones twice, and the same in parts."""

import sys
from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.verify.law import FLOAT64, Finding, NotApplicable, Precision, law
from flashace.verify.state import compared, evaluate, round_off, scale_of
from flashace.verify.structures import deformed, displaced, random_directions


@law
def finite_results(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Results are numbers, for the structure squeezed to 80 % and drawn out to 150 % of its lengths as well."""
    for strain in (0.0, -0.2, 0.5):
        evaluate(calculator, deformed(atoms, strain * np.eye(3)))
    return Finding(0, 0, "numbers")


@law
def repeatability(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Asked twice, it answers the same."""
    state = evaluate(calculator, atoms)
    evaluate(calculator, displaced(atoms, 0.3 * random_directions(atoms, 1)[0]))
    found = compared(evaluate(calculator, atoms), state, precision)
    return replace(found, tolerance=1e3 * precision.eps + round_off(state, precision) / scale_of(state))


@law
def chunked_equals_whole(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Computed one atom at a time, in little memory, the result is that of all atoms at once."""
    if "max_edges" not in getattr(calculator, "parameters", {}):
        raise NotApplicable("the calculator has no `max_edges`: it takes a structure as a whole")
    if len(atoms) < 2:
        raise NotApplicable("one atom cannot be divided")
    usual = calculator.parameters["max_edges"]
    try:
        calculator.set(max_edges=1)
        chunked = evaluate(calculator, atoms)
        calculator.set(max_edges=sys.maxsize)
        return compared(chunked, evaluate(calculator, atoms), precision)
    finally:
        calculator.set(max_edges=usual)
