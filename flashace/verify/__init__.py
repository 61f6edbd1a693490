"""Any ASE calculator and a structure in; the laws of physics that it obeys, and those that it breaks, out.

`verify` asks them all; each is a function here too, `verify.rotation(calculator, atoms)`, and stands in the file of its kind.
"""

from typing import Any

from flashace.verify.calculators import calculator_factory
from flashace.verify.law import FLOAT64, PRECISIONS, Finding, LawResult, NotApplicable, Precision
from flashace.verify.report import law_table
from flashace.verify.runner import LAWS, LAWS_BETWEEN_CALCULATORS, verify
from flashace.verify.state import State, evaluate
from flashace.verify.structures import shaken

__all__ = [
    "FLOAT64",
    "LAWS",
    "LAWS_BETWEEN_CALCULATORS",
    "PRECISIONS",
    "Finding",
    "LawResult",
    "NotApplicable",
    "Precision",
    "State",
    "calculator_factory",
    "evaluate",
    "law_table",
    "shaken",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Each law by its name."""
    for found in (*LAWS, *LAWS_BETWEEN_CALCULATORS):
        if found.__name__ == name:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
