"""FlashACE: attention on the Atomic Cluster Expansion. `from flashace import FlashACE` is the ASE calculator."""

from importlib.metadata import version

from ase.calculators.calculator import external_calculators, register_calculator_class

from flashace.calculator import FlashACE
from flashace.errors import FlashACEError
from flashace.many import batched, evaluate_many

__all__ = ["FlashACE", "FlashACEError", "__version__", "batched", "evaluate_many"]
__version__ = version("flashace")

if "flashace" not in external_calculators:  # an import may happen twice, and ASE takes a name once
    register_calculator_class("flashace", FlashACE)
