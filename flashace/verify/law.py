"""What a law is: a function `(calculator, atoms, precision)` that says whether it holds.

Where nothing else is said, `measured` is relative: the largest error of energy per atom, forces and virial per atom, divided by the
largest of force × 1 Å and virial per atom in the structure (and at least by 0.1 eV).
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed

P = ParamSpec("P")
C = TypeVar("C")

Law = Callable[..., "LawResult"]
DEFINED: list[Law] = []  # as `law` has met them


class Precision(NamedTuple):
    """What can be asked of a calculator that computes with so many digits."""

    eps: float  # relative spacing of its numbers
    symmetry: float  # tolerance of what should be equal
    difference: float  # tolerance of derivatives taken by differences
    step: float  # Å; for differences of energies
    force_step: float  # Å; for differences of forces: shorter, since their second derivative jumps at the cutoff
    jump: float  # smallest jump of a force, relative to it, that is told from a slope
    drift: float  # meV/atom/ns per eV of the structure's scale


PRECISIONS = {
    "float64": Precision(eps=2.2e-16, symmetry=1e-10, difference=1e-6, step=3e-4, force_step=1e-5, jump=1e-3, drift=10.0),
    "float32": Precision(eps=1.2e-7, symmetry=1e-3, difference=2e-2, step=1e-2, force_step=3e-3, jump=5e-2, drift=1e4),
}
FLOAT64 = PRECISIONS["float64"]


class LawResult(NamedTuple):
    """One row of the table. `passed` and the numbers are None where the law says nothing about the structure; `detail` says why."""

    law: str
    passed: bool | None
    measured: float | None
    tolerance: float | None
    unit: str
    meaning: str
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """What the body of a law returns; it holds when `measured` ≤ `tolerance` (NaN is not).

    No NamedTuple: `max` of several would be the largest value, whatever is tolerated; `worst_of` is the one that counts.
    """

    measured: float
    tolerance: float
    unit: str = "relative"
    detail: str = ""


class NotApplicable(Exception):
    """The law says nothing about this structure or calculator; the message is the reason."""


def law(body: Callable[Concatenate[C, Atoms, P], Finding]) -> Callable[Concatenate[C, Atoms, P], LawResult]:
    """Makes a law of `body`: its name is the law's name, the first line of its docstring is what the law means."""
    name, meaning = body.__name__.replace("_", " "), inspect.getdoc(body).splitlines()[0]  # type: ignore[union-attr]

    @functools.wraps(body)
    def checked(subject: C, atoms: Atoms, *args: P.args, **kwargs: P.kwargs) -> LawResult:
        try:
            found = body(subject, atoms, *args, **kwargs)
        except NotApplicable as reason:
            return LawResult(name, None, None, None, "", meaning, str(reason))
        except CalculationFailed as error:
            return LawResult(name, False, None, None, "", meaning, f"the calculator failed: {error}")
        passed = bool(found.measured <= found.tolerance)
        return LawResult(name, passed, float(found.measured), float(found.tolerance), found.unit, meaning, found.detail)

    DEFINED.append(checked)
    return checked


def laws_of(*files: ModuleType) -> tuple[Law, ...]:
    """The laws that stand in these files, in their order there."""
    return tuple(found for file in files for found in DEFINED if found.__module__ == file.__name__)


def worst_of(found: Sequence[Finding]) -> Finding:
    """The one that is farthest beyond its tolerance, in units of that; NaN goes before all."""
    return max(found, key=lambda finding: np.nan_to_num(finding.measured / abs(finding.tolerance), nan=np.inf))
