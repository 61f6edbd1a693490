"""Any ASE calculator and a structure in; the laws of physics that it obeys, and those that it breaks, out.

`verify` asks them all; each is a function here too, `verify.rotation(calculator, atoms)`, and stands in the file of its kind.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flashace.verify.calculators import calculator_factory
from flashace.verify.law import FLOAT64, PRECISIONS, Finding, LawResult, NotApplicable, Precision
from flashace.verify.state import State, evaluate

if TYPE_CHECKING:
    from flashace.verify.report import law_table
    from flashace.verify.runner import LAWS, LAWS_BETWEEN_CALCULATORS, verify
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

# the files of the laws need PyTorch, which takes seconds to import; a teacher's worker only makes a calculator
WHERE = {"law_table": "report", "LAWS": "runner", "LAWS_BETWEEN_CALCULATORS": "runner", "verify": "runner", "shaken": "structures"}


def __getattr__(name: str) -> Any:
    """The names above, and each law by its name, when they are asked for."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in WHERE:
        return getattr(import_module(f"{__name__}.{WHERE[name]}"), name)
    runner = import_module(f"{__name__}.runner")
    for found in (*runner.LAWS, *runner.LAWS_BETWEEN_CALCULATORS):
        if found.__name__ == name:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
