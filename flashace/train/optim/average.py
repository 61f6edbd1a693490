"""A model in, whose weights move; one with their average out."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from flashace.potential.model import AttentionACE


def make_average(model: AttentionACE, decay: float) -> AveragedModel:
    """Exponential moving average of the weights; young averages forget faster, so that short fits do not keep their start."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor) -> None:
        n = float(num_averaged)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    average = AveragedModel(model, multi_avg_fn=update)  # type: ignore[arg-type]
    average.requires_grad_(False)
    return average
