"""The weights of a model in; the optimizers that move them, and what these keep of each weight, out.

A new one is a function here with its name in OPTIMIZERS, and its class with what it keeps in MOMENTS.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from flashace.errors import FlashACEError
from flashace.nn.linear import Linear, TensorLinear
from flashace.potential.model import AttentionACE
from flashace.train.optim.muon import Muon

ADAMW: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.0, "fused": True}


class Weights(NamedTuple):
    """All weights of a model that are fitted."""

    matrices: list[nn.Parameter]  # of linear maps inside the layers, [..., a, b]; these alone decay
    rest: list[nn.Parameter]  # embeddings, path weights, biases, layer scales, readouts


def weights_of(model: AttentionACE) -> Weights:
    """Those of `model`, in its order."""
    maps = [m for m in model.layers.modules() if isinstance(m, Linear | TensorLinear)]
    matrices = [p for m in maps for p in m.parameters() if p.ndim > 1 and min(p.shape[-2:]) > 1]
    taken = {id(p) for p in matrices}
    return Weights(matrices, [p for p in model.parameters() if p.requires_grad and id(p) not in taken])


def muon(weights: Weights, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """Muon (Jordan et al. 2024; updates scaled to AdamW's size, Liu et al., arXiv:2502.16982) for the matrices, AdamW for the rest."""
    return [AdamW(weights.rest, lr=learning_rate, **ADAMW), Muon(weights.matrices, lr=learning_rate, weight_decay=weight_decay)]


def adamw(weights: Weights, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """AdamW for all."""
    groups: list[dict[str, Any]] = [{"params": weights.rest}, {"params": weights.matrices, "weight_decay": weight_decay}]
    return [AdamW(groups, lr=learning_rate, **ADAMW)]


OPTIMIZERS: dict[str, Callable[[Weights, float, float], list[Optimizer]]] = {"muon": muon, "adamw": adamw}
MOMENTS: dict[str, dict[str, torch.Size | None]] = {  # what an optimizer keeps of each weight; None: of the weight's own shape
    "AdamW": {"step": torch.Size([]), "exp_avg": None, "exp_avg_sq": None},
    "Muon": {"momentum_buffer": None},
}


def moments_of(optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What each keeps of its weights, by their numbers; learning rate, decay and the like are those of the options."""
    return {type(optimizer).__name__: optimizer.state_dict()["state"] for optimizer in optimizers}


def load_moments(optimizers: Sequence[Optimizer], saved: dict[str, Any], path: Path) -> None:
    """Give back what `moments_of` gave. Raises FlashACEError that names `path` where it is of other optimizers or weights."""
    mine = {type(optimizer).__name__: optimizer for optimizer in optimizers}
    if saved.keys() != mine.keys():
        raise FlashACEError(
            f"{path}: expected the state of {' and '.join(mine)}, got {' and '.join(saved)}; "
            "choose the same `optimizer`, or leave out resume_load_optimizer"
        )
    for name, optimizer in mine.items():
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in saved[name].items():
            expected = {}
            if i < len(weights):
                expected = {key: list(weights[i].shape if shape is None else shape) for key, shape in MOMENTS[name].items()}
            got = {key: list(moment.shape) for key, moment in moments.items()}
            if got != expected or not all(moment.dtype.is_floating_point and moment.isfinite().all() for moment in moments.values()):
                raise FlashACEError(
                    f"{path}: {name}: expected finite numbers {expected} for weights {i}, got {got}: this checkpoint is damaged; "
                    "name another, or leave out resume_load_optimizer"
                )
        optimizer.load_state_dict({**optimizer.state_dict(), "state": saved[name]})
