"""Batch and prediction in, loss out; labels that a frame does not have count nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from flashace.data.frames import Labelled
from flashace.data.statistics import LossUnits
from flashace.potential.derivatives import Prediction
from flashace.structure.graph import Graph, batch_graphs


@dataclass(frozen=True)
class Batch:
    """Structures and their labels. Where a label is missing, its weight is 0 and its value, which then means nothing, is 0 too."""

    graph: Graph
    num_atoms: Tensor  # [B]
    energy: Tensor  # [B] eV, float64
    forces: Tensor  # [N, 3] eV/Å
    stress: Tensor  # [B, 3, 3] eV/Å³
    has_energy: Tensor  # [B] 0 or 1
    has_forces: Tensor  # [N] 0 or 1
    has_stress: Tensor  # [B] 0 or 1
    counts: Tensor  # [3] energies, atoms with forces and stresses that the loss is a mean over: those of this batch, or of all its group

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def make_item(graph: Graph, frame: Labelled, dtype: torch.dtype) -> Batch:
    """One frame as a batch of one, in the precision of the fit (energies in float64)."""
    n = len(frame.atoms)
    forces = np.zeros((n, 3)) if frame.forces is None else frame.forces
    stress = np.zeros((3, 3)) if frame.stress is None else frame.stress
    has = [frame.energy is not None, n * (frame.forces is not None), frame.stress is not None]
    return Batch(
        graph=graph.with_edge_vec(graph.edge_vec.to(dtype)),
        num_atoms=torch.tensor([n]),
        energy=torch.tensor([0.0 if frame.energy is None else frame.energy], dtype=torch.float64),
        forces=torch.as_tensor(forces).to(dtype),
        stress=torch.as_tensor(stress).to(dtype).unsqueeze(0),
        has_energy=torch.tensor([frame.energy is not None]).to(dtype),
        has_forces=torch.full((n,), frame.forces is not None).to(dtype),
        has_stress=torch.tensor([frame.stress is not None]).to(dtype),
        counts=torch.tensor(has).to(dtype),
    )


def collate(items: Sequence[Batch]) -> Batch:
    """Several items as one batch."""
    labels = {f.name: torch.cat([getattr(item, f.name) for item in items]) for f in fields(Batch) if f.name not in ("graph", "counts")}
    return Batch(graph=batch_graphs([item.graph for item in items]), counts=label_counts(items), **labels)


def label_counts(items: Sequence[Batch]) -> Tensor:
    """[3]: the labels of all items together. Given to each of several batches, it makes their losses add up to that of one large batch."""
    return torch.stack([item.counts for item in items]).sum(0)


def loss_terms(prediction: Prediction, batch: Batch, units: LossUnits, huber_delta: float | None = None) -> Tensor:
    """[3]: mean squared error of energy per atom, force components and stress components, each in its unit.

    A term is the sum over the labels that are there, divided by `batch.counts`, and 0 where there is none. With `huber_delta`, errors x
    above it count δ (2|x| - δ) instead of x² (twice Huber's loss, so that both agree on small errors).
    """

    def square(x: Tensor) -> Tensor:
        return x.square() if huber_delta is None else 2 * huber_loss(x, torch.zeros_like(x), reduction="none", delta=huber_delta)

    dtype = batch.forces.dtype
    energy = ((prediction.energy - batch.energy) / batch.num_atoms).to(dtype) / units.energy
    forces = (prediction.forces - batch.forces) / units.forces
    stress = torch.where(batch.has_stress[:, None, None] > 0, prediction.stress - batch.stress, 0.0) / units.stress
    return torch.stack([
        (square(energy) * batch.has_energy).sum(),
        (square(forces).mean(-1) * batch.has_forces).sum(),
        (square(stress).mean((-2, -1)) * batch.has_stress).sum(),
    ]) / batch.counts.clamp(min=1.0)  # fmt: skip
