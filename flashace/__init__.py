"""FlashACE: attention on the Atomic Cluster Expansion. `from flashace import FlashACE` is the ASE calculator."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from flashace.calculator import FlashACE

__all__ = ["FlashACE", "FlashACEError", "__version__"]
__version__ = version("flashace")


def __getattr__(name: str) -> Any:
    """The calculator when it is asked for: PyTorch takes seconds to import, and the processes of a LAMMPS run have no use for it."""
    if name != "FlashACE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flashace.calculator import FlashACE

    return FlashACE
