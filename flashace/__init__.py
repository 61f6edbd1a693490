"""FlashACE: attention on the Atomic Cluster Expansion. `from flashace import FlashACE` is the ASE calculator."""

from importlib.metadata import version

from flashace.calculator import FlashACE
from flashace.errors import FlashACEError

__all__ = ["FlashACE", "FlashACEError", "__version__"]
__version__ = version("flashace")
