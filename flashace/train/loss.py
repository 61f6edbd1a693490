"""Batch and prediction in, loss out; labels that a frame does not have count nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from flashace.derivatives import Prediction
from flashace.graph import Graph, batch_graphs
from flashace.train.data import Labelled
from flashace.train.statistics import LossUnits


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

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def make_item(graph: Graph, frame: Labelled, dtype: torch.dtype) -> Batch:
    """One frame as a batch of one, in the precision of the fit (energies in float64)."""
    n = len(frame.atoms)
    forces = np.zeros((n, 3)) if frame.forces is None else frame.forces
    stress = np.zeros((3, 3)) if frame.stress is None else frame.stress
    return Batch(
        graph=graph.with_edge_vec(graph.edge_vec.to(dtype)),
        num_atoms=torch.tensor([n]),
        energy=torch.tensor([0.0 if frame.energy is None else frame.energy], dtype=torch.float64),
        forces=torch.as_tensor(forces).to(dtype),
        stress=torch.as_tensor(stress).to(dtype).unsqueeze(0),
        has_energy=torch.tensor([frame.energy is not None]).to(dtype),
        has_forces=torch.full((n,), frame.forces is not None).to(dtype),
        has_stress=torch.tensor([frame.stress is not None]).to(dtype),
    )


def collate(items: Sequence[Batch]) -> Batch:
    """Several items as one batch."""
    labels = {f.name: torch.cat([getattr(item, f.name) for item in items]) for f in fields(Batch) if f.name != "graph"}
    return Batch(graph=batch_graphs([item.graph for item in items]), **labels)


def loss_terms(prediction: Prediction, batch: Batch, units: LossUnits) -> Tensor:
    """[3]: mean squared error of energy per atom, force components and stress components, each in its unit.

    A term is the mean over the labels that are there, and 0 where none is.
    """
    dtype = batch.forces.dtype
    energy = ((prediction.energy - batch.energy) / batch.num_atoms).to(dtype) / units.energy
    forces = (prediction.forces - batch.forces) / units.forces
    stress = torch.where(batch.has_stress[:, None, None] > 0, prediction.stress - batch.stress, 0.0) / units.stress
    return torch.stack([
        _mean(energy.square(), batch.has_energy),
        _mean(forces.square().mean(-1), batch.has_forces),
        _mean(stress.square().mean((-2, -1)), batch.has_stress),
    ])  # fmt: skip


def _mean(squares: Tensor, has: Tensor) -> Tensor:
    return (squares * has).sum() / has.sum().clamp(min=1.0)
