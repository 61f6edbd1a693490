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

MATMUL: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
FULL = "none", "ieee"  # none is nothing that anybody has asked for
_forked = False  # and not looked after yet


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """Within it, tensors are ordinary ones of float32 on the CPU unless asked for otherwise, and operations compute in their precision.

    Where everything is as usual, this costs two microseconds. Default precision and anomaly detection belong to the process: where they
    are not as usual, other threads see them changed meanwhile.
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


@contextmanager
def exact_products() -> Iterator[None]:
    """Within it, matrix products of float32 are computed in float32, not in TF32 or bfloat16. The setting belongs to the process, too.

    Apart from `undisturbed`, since to look at it costs as much again, and compiled C has no such products.
    """
    with ExitStack() as stack:
        for backend in MATMUL:
            if backend.fp32_precision not in FULL:
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        yield


def _as_usual() -> bool:
    made = torch.empty(0)
    return (
        made.dtype == torch.float32
        and made.device.type == "cpu"
        and not made.is_inference()
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
        and not torch.is_anomaly_enabled()
    )


@contextmanager
def _usual() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.device("cpu"),
            torch.autograd.set_detect_anomaly(False),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


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
