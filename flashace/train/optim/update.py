"""Gradients in the weights of a model in; the next weights, and their average, out."""

from pathlib import Path
from typing import Any, cast

import torch
from torch.optim import Optimizer

from flashace.errors import FlashACEError
from flashace.potential.model import AttentionACE
from flashace.train.config import TrainConfig
from flashace.train.optim.average import make_average
from flashace.train.optim.optimizers import OPTIMIZERS, load_moments, moments_of, weights_of


def make_optimizers(model: AttentionACE, config: TrainConfig) -> list[Optimizer]:
    """Those of the option `optimizer`."""
    return OPTIMIZERS[config.optimizer](weights_of(model), config.learning_rate, config.weight_decay)


class Update:
    """Moves the weights of `model`, and the average of them; in float16 (`amp_dtype`) a scaler keeps the gradient within its range."""

    def __init__(self, model: AttentionACE, config: TrainConfig, device: torch.device, amp_dtype: torch.dtype | None) -> None:
        self.model, self.clip_grad_norm = model, config.clip_grad_norm
        self.average = make_average(model, config.ema_decay)
        self.optimizers = make_optimizers(model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    @property
    def averaged(self) -> AttentionACE:
        """The model with averaged weights."""
        return cast(AttentionACE, self.average.module)

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def clip(self) -> bool:
        """Take the gradient's scale away and limit its norm; whether it is finite.

        With a scaler it may not be, where the scale was too large for float16.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        return bool(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm).isfinite())

    def move(self, learning_rate: float, finite: bool) -> None:
        """One step of all optimizers; none where the gradient is not `finite`: then the next scale is smaller. Gradients are gone after."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            if finite:
                self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        if finite:
            self.average.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """Of the average, the optimizers and the scaler."""
        return {
            "average": dict(self.averaged.named_parameters()),
            "averaged_steps": int(self.average.n_averaged),
            "optimizers": moments_of(self.optimizers),
            "scaler": self.scaler.state_dict(),
        }

    def load_optimizers(self, saved: dict[str, Any], path: Path) -> None:
        """Raises FlashACEError that names `path` where these are not the same."""
        load_moments(self.optimizers, saved, path)

    def load_scaler(self, saved: dict[str, Any], path: Path) -> None:
        """Nothing where `saved` is empty: a fit without one. Raises FlashACEError that names `path`."""
        if not saved:
            return
        if self.scaler.is_enabled() and saved.keys() != self.scaler.state_dict().keys():
            raise FlashACEError(f"{path}: expected the state of a gradient scaler, got {', '.join(saved)}")
        self.scaler.load_state_dict(saved)
