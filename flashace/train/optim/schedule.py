"""The progress of a fit and the scores of its validations in; learning rate and loss weights out."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flashace.data.labels import LABELS
from flashace.train.config import TrainConfig


class Schedule:
    """The learning rate over a fit, and when to end it early; it hears the score of every validation.

    Not torch's schedulers, which count steps: the progress of a fit may be its time, and several optimizers share one rate. `plateau`
    follows torch's ReduceLROnPlateau (which is the test of it) without a threshold.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.best = math.inf
        self.not_better = 0  # validations since the best
        self.borne = 0  # of these, since the last reduction
        self.factor = 1.0

    def learning_rate(self, progress: float) -> float:
        """`progress` runs from 0 to 1 over the fit."""
        rate = self.config.learning_rate * self.factor
        if progress < self.config.warmup or self.config.lr_scheduler == "cosine":
            return rate * learning_rate_factor(progress, self.config.warmup)
        return rate

    def validated(self, score: float) -> None:
        """Take note of a validation; lower is better."""
        better = score < self.best
        self.best = min(score, self.best) if better else self.best
        self.not_better, self.borne = (0, 0) if better else (self.not_better + 1, self.borne + 1)
        if self.config.lr_scheduler == "plateau" and self.borne > self.config.lr_patience:
            self.factor, self.borne = self.factor * self.config.lr_factor, 0

    @property
    def ends(self) -> bool:
        """Nothing got better for as long as `early_stopping` bears."""
        return self.config.early_stopping is not None and self.not_better >= self.config.early_stopping

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"best": self.best, "not_better": self.not_better, "borne": self.borne, "factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best, self.not_better = state["best"], state["not_better"]
        self.borne, self.factor = state["borne"], state["factor"]


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 1/200 of the peak; `progress` runs from 0 to 1 over the fit."""
    if progress < warmup:
        return max(progress / warmup, 1e-2)
    end = 0.005
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def loss_weights(progress: float, config: TrainConfig) -> Tensor:
    """[L]: weights of the labels, in the order of the table; a schedule {start: weight} changes at each start."""
    weights = []
    for weight in (getattr(config, f"{label}_weight") for label in LABELS):
        steps = weight if isinstance(weight, dict) else {0.0: weight}
        weights.append(steps[max(start for start in steps if start <= progress)])
    return torch.tensor(weights)
