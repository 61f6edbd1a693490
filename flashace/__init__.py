"""FlashACE: attention on the Atomic Cluster Expansion. `from flashace import FlashACE` is the ASE calculator."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flashace.errors import (
    CoordinationWarning,
    FlashACEError,
    FreeAtomsWarning,
    PrecisionWarning,
    ShortDistanceWarning,
    UncertaintyWarning,
    UnfamiliarWarning,
)

if TYPE_CHECKING:
    from flashace.calculator import FlashACE
    from flashace.engines.many import batched, evaluate_many

__all__ = [
    "CoordinationWarning",
    "FlashACE",
    "FlashACEError",
    "FreeAtomsWarning",
    "PrecisionWarning",
    "ShortDistanceWarning",
    "UncertaintyWarning",
    "UnfamiliarWarning",
    "__version__",
    "batched",
    "evaluate_many",
]
__version__ = version("flashace")

WHERE = {"FlashACE": "flashace.calculator", "batched": "flashace.engines.many", "evaluate_many": "flashace.engines.many"}


def __getattr__(name: str) -> Any:
    """Names that need PyTorch, when they are asked for: it takes seconds to import, and a LAMMPS run has no use for it."""
    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(WHERE[name]), name)
