"""A model and its training frames in; the same model without the constant that its energies are off by out."""

import math
from collections.abc import Sequence
from typing import cast

import torch

from flashace.data.frames import Labelled
from flashace.evaluate.calibrate import last_layer
from flashace.nn.readout import Readout
from flashace.potential.model import AttentionACE
from flashace.structure.graph import Graph

ROUNDS = 20  # of reweighted least squares; the last of them change nothing
RANK = 0.05  # of the largest singular value; below it, as where all frames have one composition, elements are not told apart


def remove_offset(model: AttentionACE, frames: Sequence[Labelled], graphs: Sequence[Graph], delta: float = math.inf) -> float:
    """Changes the last layer so that the energies of `frames` are right on the mean, element by element; returns by how much they were
    off, in eV/atom (0 where no frame has an energy).

    The reference energies stay, so an atom alone keeps its own to the last bit. What is added beside them has to vanish for an atom alone,
    as the features f of the last layer do (E = E0 + scale Σ w·f): the weights change by Σ_z c_z f̄_z, with f̄_z the mean features of the
    atoms of an element. That adds Σ_z c_z f·f̄_z to an atom: nearly the same to all that are like those in training, and less the fewer
    neighbours there are. Forces change by the slope of that, which is small where it is nearly the same. The c are least squares over the
    errors per atom, of which those above `delta` (eV) count linearly, as in the loss of a fit.
    """
    sums = torch.zeros(len(model.symbols), model.num_features, dtype=torch.float64, device=model.embedding.device)
    rows, errors = [], []
    for frame, features, error in last_layer(model, (frames, graphs)):
        element = model.element_index[torch.from_numpy(frame.atoms.numbers).to(sums.device)]
        sums.index_add_(0, element, features)
        rows.append(features.mean(0))
        errors.append(error / len(frame.atoms))
    known = sums.norm(dim=1) > 0
    if not known.any():
        return 0.0
    directions = sums[known] / sums[known].norm(dim=1, keepdim=True)
    X, y = (torch.stack(rows) @ directions.T).cpu(), -torch.tensor(errors, dtype=torch.float64)
    c = _least_squares(X, y, delta)
    change = (c.to(directions) @ directions) / model.scale
    maps = [linear for readout in cast(list[Readout], list(model.readouts)) for linear in (readout.linear, readout.out)]
    with torch.no_grad():
        for linear, own in zip(maps, change.split([linear.weight.numel() for linear in maps]), strict=True):
            linear.weight.add_(own.reshape_as(linear.weight))
    return float(-y.mean())


def _least_squares(X: torch.Tensor, y: torch.Tensor, delta: float) -> torch.Tensor:
    """c of the smallest Σ h(y - X c), h being Huber's function: X [B, S], y [B] -> [S]."""
    weights = torch.ones_like(y)
    c = torch.zeros(X.shape[1], dtype=X.dtype)
    for _ in range(ROUNDS):
        root = weights.sqrt().unsqueeze(1)
        c = torch.linalg.pinv(root * X, rtol=RANK) @ (root.squeeze(1) * y)
        weights = (delta / (y - X @ c).abs().clamp(min=1e-300)).clamp(max=1.0)
    return c
