"""How far a calculator sees, where it does not tell."""

import re

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from flashace import verify
from flashace.verify import LawResult


def test_the_cutoff_of_a_calculator_that_does_not_tell_it_is_found() -> None:
    atoms, sigma, epsilon, rc = verify.shaken(bulk("Cu", cubic=True)), 2.3, 0.1, 5.0
    sharp, smooth = (LennardJones(sigma=sigma, epsilon=epsilon, rc=rc, smooth=smooth) for smooth in (False, True))
    force = 24 * epsilon * (sigma**6 / rc**7 - 2 * sigma**12 / rc**13)  # ASE's potential is shifted: its energy does not jump
    assert jumps(verify.cutoff_with_a_lone_neighbour(sharp, atoms))[:2] == pytest.approx([0, force], abs=1e-4)
    assert jumps(verify.cutoff_with_a_lone_neighbour(smooth, atoms))[:2] == pytest.approx([0, 0], abs=1e-9)
    assert jumps(verify.cutoff_with_a_lone_neighbour(smooth, atoms))[2] > 1e-3  # "smooth" holds for the force alone
    assert verify.additivity(EMT(), atoms).passed


def jumps(result: LawResult) -> list[float]:
    """Of energy, force and force derivative."""
    return [float(x) for x in re.findall(r"\d\.\de[+-]\d\d", result.detail)]


def test_a_long_range_calculator_has_no_cutoff_to_cross() -> None:
    atoms = verify.shaken(bulk("Cu", cubic=True))
    result = verify.cutoff_with_a_lone_neighbour(LennardJones(sigma=2.3, rc=30.0), atoms)
    assert (result.passed, result.detail) == (None, "no cutoff found up to 12 Å")
