"""Parameters and options in; optimizers, the schedule of learning rate and weights, and the average of the weights out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from flashace.model import AttentionACE
from flashace.nn.linear import Linear, TensorLinear
from flashace.train.config import TrainConfig
from flashace.train.muon import Muon


def make_optimizers(model: AttentionACE, config: TrainConfig) -> list[Optimizer]:
    """Muon (Jordan et al. 2024; updates scaled to AdamW's size, Liu et al., arXiv:2502.16982) for the matrices of linear maps inside the
    layers, AdamW for everything else: embeddings, path weights, biases, layer scales, readouts. With `optimizer: adamw`, AdamW for all."""
    matrices = _hidden_matrices(model) if config.optimizer == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    optimizers: list[Optimizer] = [AdamW(rest, lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.99), fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay))
    return optimizers


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 1/200 of the peak; `progress` runs from 0 to 1 over the fit."""
    if progress < warmup:
        return max(progress / warmup, 1e-2)
    end = 0.005
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def loss_weights(progress: float, config: TrainConfig) -> Tensor:
    """[3]: weights of energy, forces and stress; the energy is heavier in the last stage."""
    energy = config.last_energy_weight if progress >= 1 - config.last_stage else config.energy_weight
    return torch.tensor([energy, config.forces_weight, config.stress_weight])


def make_average(model: AttentionACE, decay: float) -> AveragedModel:
    """Exponential moving average of the weights; young averages forget faster, so that short fits do not keep their start."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor) -> None:
        n = float(num_averaged)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    average = AveragedModel(model, multi_avg_fn=update)  # type: ignore[arg-type]
    average.requires_grad_(False)
    return average


def _hidden_matrices(model: AttentionACE) -> list[nn.Parameter]:
    maps = [m for m in model.layers.modules() if isinstance(m, Linear | TensorLinear)]
    return [p for m in maps for p in m.parameters() if p.ndim > 1 and min(p.shape[-2:]) > 1]
