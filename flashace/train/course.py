"""How far a fit has come, and what its steps have added up since the last validation."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from flashace.data.labels import LABELS


class Means(NamedTuple):
    """Over steps, per label: the terms of the loss, and the mean squares of the same errors, each in its loss unit."""

    terms: list[float]
    squares: list[float]


class Tally:
    """What the steps since the last validation have added up. One row of numbers, so that checkpoints and ranks pass it on as a whole."""

    SIZE = 2 * len(LABELS) + 1  # the terms of the loss, the squared errors, and the number of steps

    def __init__(self, numbers: Tensor | None = None) -> None:
        self.numbers = torch.zeros(self.SIZE, dtype=torch.float64) if numbers is None else numbers.detach().double()

    def add(self, errors: Tensor) -> None:
        """[2, labels] of a step: what `TrainStep` gives."""
        self.numbers += torch.tensor([*errors.flatten().tolist(), 1.0], dtype=torch.float64)

    @property
    def steps(self) -> int:
        """How many have been added."""
        return int(self.numbers[-1])

    def take(self) -> Means:
        """The means (zeros of no steps); the tally begins again."""
        means = self.numbers[:-1] / self.numbers[-1].clamp(min=1.0)
        self.numbers.zero_()
        return Means(*means.view(2, len(LABELS)).tolist())


@dataclass
class Course:
    """Where a fit stands; it changes with every step, and comes back from a checkpoint."""

    per_epoch: int  # steps
    epoch: int = 0
    position: int = 0  # steps of this epoch that are done
    tally: Tally = field(default_factory=Tally)
    ended: bool = False  # trained to the end, in this session or before

    @property
    def steps(self) -> int:
        """Done since the first."""
        return self.epoch * self.per_epoch + self.position

    @property
    def epochs(self) -> float:
        """Done since the first, parts of one counted."""
        return self.epoch + self.position / self.per_epoch
