"""Batch in, loss and gradients out: the plain training step and the same step traced and compiled."""

import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from flashace.data.labels import LABELS
from flashace.data.statistics import LossUnits
from flashace.potential.derivatives import EdgeBudget, Prediction, predict, predict_in_parts
from flashace.potential.model import UNKNOWN, AttentionACE
from flashace.structure.graph import Graph, Part
from flashace.train.loss import Batch, loss_terms, precision

GRAPH_FIELDS = [f.name for f in fields(Graph)]


class TrainStep:
    """Adds the gradient of Σ weights · loss_terms to `.grad` of the model's parameters; returns the terms, and below them the mean squares
    of the same errors, [2, L].

    Compiled, energies, forces, loss and gradients are one traced graph (`make_fx`, then inductor), for any sizes of the batch. Shapes that
    a compiler would specialise on (a single structure, atom or neighbour where several are usual) take the plain path.
    With "auto" it is plain, and whoever knows how long a fit takes sets `compiled`.
    With `amp_dtype` (float16 or bfloat16) the linear maps of the network take their products in it; see `full_precision` for what does not.
    """

    def __init__(
        self,
        model: AttentionACE,
        units: LossUnits,
        compiled: bool | Literal["auto"],
        amp_dtype: torch.dtype | None = None,
        huber_delta: float | None = None,
    ) -> None:
        self.model, self.units, self.amp_dtype, self.huber_delta = model, units, amp_dtype, huber_delta
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._fast: Any = None
        self.compiled, self.undecided = compiled is True, compiled == "auto"
        self.compiling = False  # at this moment

    def __call__(self, batch: Batch, weights: Tensor) -> Tensor:
        """weights [L] of the labels, in the order of the table."""
        tensors = _flatten(batch)
        if self.compiled and self._fast is None:
            self._compile(weights)
        usual = min(batch.num_atoms.shape[0], *batch.graph.slots.shape, batch.graph.edge_vec.shape[0]) > 1
        if self.compiled and usual:
            with torch.no_grad():
                errors, *gradients = self._fast(weights, *tensors)
        else:
            errors, *gradients = self._plain(weights, *tensors)
        self._add(gradients)
        return errors

    def in_parts(self, batch: Batch, weights: Tensor, budget: EdgeBudget) -> Tensor:
        """What a call does, with the memory of one part of the graph at a time; always on the plain path.

        The loss sees energies, forces and stress alone, and each of them is a sum over parts. Computed once, they give the slopes of the
        loss along them, which are plain numbers; the gradient of slopes · (energy, forces, stress) then adds up part by part.
        """
        dtype = self.model.dtype
        found = predict_in_parts(self._energies, batch.graph, dtype, budget)
        seen = {name: getattr(found, name).to(precision(label, dtype)).requires_grad_() for name, label in LABELS.items()}
        terms, errors = self._terms(found._replace(**seen), batch)
        along = torch.autograd.grad((weights * terms).sum(), list(seen.values()))

        def gradient(part: Part) -> tuple[Tensor, ...]:
            own = predict(self._energies, part.graph, dtype, create_graph=True)
            slopes = [slope[part.atoms] if label.per_atom else slope for label, slope in zip(LABELS.values(), along, strict=True)]
            return torch.autograd.grad([getattr(own, name) for name in LABELS], self.parameters, slopes, materialize_grads=True)

        gradients = [torch.zeros_like(p) for p in self.parameters]
        for _, own in budget.each_part(batch.graph, gradient):
            for total, share in zip(gradients, own, strict=True):
                total += share
        self._add(gradients)
        return errors

    def gradients(self) -> list[Tensor]:
        """`.grad` of the parameters in their order; zeros where no step has added any yet."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [cast(Tensor, parameter.grad) for parameter in self.parameters]

    def _add(self, gradients: Sequence[Tensor]) -> None:
        gradients = [gradient.contiguous() for gradient in gradients]  # as the weights lie in memory: fused AdamW takes that for granted
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient  # in place: needs no memory, so that a step is added as a whole or not at all

    def _plain(self, weights: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        batch = _unflatten(tensors)
        prediction = predict(self._energies, batch.graph, self.model.dtype, create_graph=True)
        terms, errors = self._terms(prediction, batch)
        gradients = torch.autograd.grad((weights * terms).sum(), self.parameters, materialize_grads=True)
        return errors, *gradients

    def _terms(self, prediction: Prediction, batch: Batch) -> tuple[Tensor, Tensor]:
        """The terms of the loss [L] with their graph, and what a call returns."""
        terms = loss_terms(prediction, batch, self.units, self.huber_delta)
        return terms, torch.stack([terms, loss_terms(prediction, batch, self.units)]).detach()

    def _energies(self, graph: Graph) -> Tensor:
        """The model; autocast holds for the way forward alone, backward passes keep the precision that each operation had there."""
        with torch.autocast(graph.edge_vec.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.model(graph)

    def _compile(self, weights: Tensor) -> None:
        self.compiling = True
        try:
            fast = torch.compile(self._trace(), dynamic=True)
            with torch.no_grad():  # first on sizes that all differ: sizes equal by chance would be tied, and the next batch compiled again
                fast(torch.ones_like(weights), *_flatten(_example(self.model)))
            self._fast = fast
        finally:
            self.compiling = False

    def _trace(self) -> Any:
        """The step as one graph of tensor operations, with symbolic sizes for B, N, E and M."""
        example = _example(self.model)
        weights = torch.ones_like(example.counts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make_fx(self._plain, tracing_mode="symbolic", _allow_non_fake_inputs=True)(weights, *_flatten(example))


def _flatten(batch: Batch) -> list[Tensor]:
    graph = [getattr(batch.graph, name) for name in GRAPH_FIELDS]
    return [*graph, batch.num_atoms, *batch.labels.values(), *batch.has.values(), batch.counts]


def _unflatten(tensors: tuple[Tensor, ...]) -> Batch:
    graph = Graph(**dict(zip(GRAPH_FIELDS, tensors, strict=False)))
    num_atoms, *rest, counts = tensors[len(GRAPH_FIELDS) :]
    L = len(LABELS)
    return Batch(graph, num_atoms, dict(zip(LABELS, rest[:L], strict=True)), dict(zip(LABELS, rest[L:], strict=True)), counts)


def _example(model: AttentionACE) -> Batch:
    """A made-up batch whose sizes differ from each other and from every size in the model, so that tracing ties none of them together."""
    taken = {size for p in [*model.parameters(), *model.buffers()] for size in p.shape}
    B, M, N, E = [n for n in (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79) if n not in taken][:4]
    dtype, device = model.dtype, model.embedding.device
    some = torch.Generator().manual_seed(0)
    graph = Graph(
        numbers=torch.full((N,), int((model.element_index != UNKNOWN).nonzero()[0])),
        cell=torch.eye(3, dtype=torch.float64).repeat(B, 1, 1),
        structure=torch.arange(N) % B,
        edge_index=torch.arange(2 * E).reshape(2, E) % N,
        edge_vec=torch.rand(E, 3, generator=some).to(dtype) + 1,
        first=torch.arange(N + 1),
        slots=torch.arange(N * M).reshape(N, M) % (E + 1),
    )
    batch = Batch(
        graph=graph,
        num_atoms=torch.full((B,), 2),
        labels={
            name: torch.zeros(N if label.per_atom else B, *label.shape, dtype=precision(label, dtype)) for name, label in LABELS.items()
        },
        has={name: torch.ones(N if label.per_atom else B, dtype=dtype) for name, label in LABELS.items()},
        counts=torch.ones(len(LABELS), dtype=dtype),
    )
    return batch.to(device)
