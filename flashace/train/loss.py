"""Batch and prediction in, loss out; labels that a frame does not have count nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from flashace.data.frames import Labelled
from flashace.data.labels import LABELS, Label
from flashace.data.statistics import LossUnits
from flashace.potential.derivatives import Prediction
from flashace.structure.graph import Graph, batch_graphs


@dataclass(frozen=True)
class Batch:
    """N atoms of B structures, and the L labels of the table. Where a label is missing, its weight is 0 and its value, which then means
    nothing, is 0 too."""

    graph: Graph
    num_atoms: Tensor  # [B]
    labels: Mapping[str, Tensor]  # in the order of the table: [N, …] of atoms, [B, …] of structures; energy [B] eV, float64
    has: Mapping[str, Tensor]  # in the same order: [N] or [B], 0 or 1
    counts: Tensor  # [L] atoms or structures with each label, which the loss is a mean over: those of this batch, or of all its group

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        labels, has = ({name: x.to(device) for name, x in tensors.items()} for tensors in (self.labels, self.has))
        return Batch(self.graph.to(device), self.num_atoms.to(device), labels, has, self.counts.to(device))


def make_item(graph: Graph, frame: Labelled, dtype: torch.dtype) -> Batch:
    """One frame as a batch of one, in the precision of the fit (energies in float64)."""
    n = len(frame.atoms)
    labels, has = {}, {}
    for name, label in LABELS.items():
        value = frame.label(name)
        known = torch.as_tensor(np.zeros(label.shape_in(n)) if value is None else value, dtype=precision(label, dtype))
        labels[name] = known if label.per_atom else known.unsqueeze(0)
        has[name] = torch.full((n if label.per_atom else 1,), value is not None).to(dtype)
    return Batch(
        graph=graph.with_edge_vec(graph.edge_vec.to(dtype)),
        num_atoms=torch.tensor([n]),
        labels=labels,
        has=has,
        counts=torch.stack([mask.sum() for mask in has.values()]),
    )


def precision(label: Label, dtype: torch.dtype) -> torch.dtype:
    """Of a label in a fit with this precision: what grows with the structure has too many digits for float32."""
    return torch.float64 if label.extensive else dtype


def collate(items: Sequence[Batch]) -> Batch:
    """Several items as one batch."""
    return Batch(
        graph=batch_graphs([item.graph for item in items]),
        num_atoms=torch.cat([item.num_atoms for item in items]),
        labels={name: torch.cat([item.labels[name] for item in items]) for name in LABELS},
        has={name: torch.cat([item.has[name] for item in items]) for name in LABELS},
        counts=label_counts(items),
    )


def label_counts(items: Sequence[Batch]) -> Tensor:
    """[L]: the labels of all items together. Given to each of several batches, it makes their losses add up to that of one large batch."""
    return torch.stack([item.counts for item in items]).sum(0)


def loss_terms(prediction: Prediction, batch: Batch, units: LossUnits, huber_delta: float | None = None) -> Tensor:
    """[L]: mean squared error of each label of the table, of energies per atom, of the others component by component, each in its unit.

    A term is the sum over the labels that are there, divided by `batch.counts`, and 0 where there is none. With `huber_delta`, errors x
    above it count δ (2|x| - δ) instead of x² (twice Huber's loss, so that both agree on small errors).
    """

    def square(x: Tensor) -> Tensor:
        return x.square() if huber_delta is None else 2 * huber_loss(x, torch.zeros_like(x), reduction="none", delta=huber_delta)

    terms = []
    for name, label in LABELS.items():
        has = batch.has[name]
        error = getattr(prediction, name) - batch.labels[name]
        if label.extensive:
            error = (error / batch.num_atoms).to(has.dtype)
        if label.per_volume:
            error = torch.where(has[:, None, None] > 0, error, 0.0)
        squares = square(error / units[name])
        terms.append(((squares.mean(tuple(range(-label.rank, 0))) if label.rank else squares) * has).sum())
    return torch.stack(terms) / batch.counts.clamp(min=1.0)
