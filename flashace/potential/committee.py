"""What several models predict for the same graph in; their mean, and how far they differ, out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashace.potential.derivatives import Prediction


class CommitteeSpread(NamedTuple):
    """Standard deviations over the members of a committee (their squares are divided by the number of members less one)."""

    energy: float  # eV, of the energy of the structure
    energies: np.ndarray  # [N] eV, of what each atom contributes to it
    forces: np.ndarray  # [N, 3] eV/Å, of each component


def mean(predictions: Sequence[Prediction]) -> Prediction:
    """Of each number. Features belong to a single model, so there are none; what was given stands beside, as `of_members`."""
    energies, energy, forces, stress, stresses = (
        torch.stack([getattr(member, name) for member in predictions]).mean(0)
        for name in ("energies", "energy", "forces", "stress", "stresses")
    )
    return Prediction(energies, energy, forces, stress, stresses, None, tuple(predictions))


def spread(prediction: Prediction) -> CommitteeSpread:
    """Of a prediction of one structure, made by `mean` of two or more."""

    def over_members(name: str) -> Tensor:
        return torch.stack([getattr(member, name) for member in prediction.of_members or ()]).std(0)

    return CommitteeSpread(over_members("energy").item(), over_members("energies").cpu().numpy(), over_members("forces").cpu().numpy())
