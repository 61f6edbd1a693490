"""Model and the user's wish in, the backend that evaluates it out."""

import warnings
from weakref import WeakSet

from flashace.backends.backend import Backend
from flashace.backends.c import backend as c
from flashace.backends.plain import Plain
from flashace.errors import FlashACEError
from flashace.potential.model import AttentionACE

KERNELS = "auto", "compiled", "plain"


_refused: "WeakSet[AttentionACE]" = WeakSet()  # models that compiled code could not be had for


def backend_of(model: AttentionACE, kernel: str = "auto") -> Backend:
    """What `kernel` asks for: "compiled" code (C for a model on a CPU, Triton for one on a GPU), the "plain" path, or "auto".

    Auto is compiled code; where that cannot be had, the plain path, which a warning tells once for a model. Raises FlashACEError, with the
    reason, where "compiled" cannot be had.
    """
    if kernel == "plain" or (kernel == "auto" and model in _refused):
        return Plain(model)
    try:
        return _compiled(model)
    except FlashACEError as error:
        if kernel == "compiled":
            raise
        warnings.warn(f"{error}. The plain path is taken, which is many times slower", stacklevel=2)
        _refused.add(model)
        return Plain(model)


def _compiled(model: AttentionACE) -> Backend:
    if model.embedding.device.type == "cpu":
        return c.kernel_of(model)
    try:
        from flashace.backends.triton.backend import kernel_of
    except ImportError as error:
        raise FlashACEError(f"kernel: expected Triton, got {error}; `pip install triton`, or use the plain path") from error
    return kernel_of(model)
