"""A function in; the same function out, which computes as if nothing around it had changed how PyTorch computes.

A calculator is one of several things in a program. What the others switch on for themselves (inference mode, autocast, another default
device or precision, anomaly detection) must not change its numbers, nor the weights that it shares.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

AUTOCAST = "cpu", "cuda"
MATMUL: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
FULL = "none", "ieee"  # none is nothing that anybody has asked for
_forked = False  # and not looked after yet


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """Within it, tensors are ordinary ones of float32 on the CPU unless asked for otherwise, and nothing is rounded that need not be.

    Where everything is as usual, this costs some microseconds. Default precision, anomaly detection and the precision of matrix products
    belong to the process: where they are not as usual, other threads see them changed meanwhile.
    """

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        if _forked:
            _tend_to_fork()
        if _as_usual():
            return function(*args, **kwargs)
        with _usual():
            return function(*args, **kwargs)

    return inside


def _as_usual() -> bool:
    made = torch.empty(0)
    return (
        made.dtype == torch.float32
        and made.device.type == "cpu"
        and not made.is_inference()
        and not any(torch.is_autocast_enabled(device) for device in AUTOCAST)
        and not torch.is_anomaly_enabled()
        and all(backend.fp32_precision in FULL for backend in MATMUL)
    )


@contextmanager
def _usual() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in AUTOCAST:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for backend in MATMUL:
            if backend.fp32_precision not in FULL:
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        yield


def _note_fork() -> None:
    global _forked
    _forked = True


def _tend_to_fork() -> None:
    """A forked process has none of the threads of the one it comes from. OpenMP would wait for them for ever, and does not tell whether
    there were any."""
    global _forked
    _forked = False
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_note_fork)
