"""Where the laws of slopes have nothing to say."""

from typing import Any

from ase.build import bulk
from ase.calculators.lj import LennardJones

from flashace import verify


def test_a_calculator_without_stress_is_told_so() -> None:
    class NoStress(LennardJones):
        def calculate(self, *args: Any, **kwargs: Any) -> None:
            super().calculate(*args, **kwargs)
            self.results.pop("stress", None)

    result = verify.stress(NoStress(sigma=2.3, rc=5.0), verify.shaken(bulk("Cu", cubic=True)))
    assert (result.passed, result.detail) == (None, "the calculator has no stress")
