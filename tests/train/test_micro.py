"""One gradient in many parts: whatever the parts are, it is that of the whole."""

import numpy as np
import pytest
import torch

from flashace.data.frames import Labelled
from flashace.data.statistics import LossUnits
from flashace.errors import FlashACEError
from flashace.potential.derivatives import EdgeBudget
from flashace.structure.neighbors import build_graph
from flashace.train.loss import collate, make_item
from flashace.train.micro import MicroBatches
from flashace.train.step import TrainStep

UNITS = LossUnits(energy=0.1, forces=2.0, stress=0.05)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
SAME = 1e-10  # of the largest component, in float64
MESSAGES = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    "python": MemoryError(),
}


@pytest.fixture
def items(structure):
    """Seven structures of 1 to 10 atoms; each label is missing somewhere, the stress in whole parts."""
    names = ("crystal", "molecule", "primitive", "atom", "one atom per cell", "slab in vacuum", "wire")
    rng, items = np.random.default_rng(0), []
    for i, name in enumerate(names):
        atoms = structure(name)
        energy = None if i == 2 else -6.0 * len(atoms)
        forces = None if i in (0, 5) else rng.normal(size=(len(atoms), 3))
        stress = np.eye(3) * 0.1 if i in (0, 5) else None
        items.append(make_item(build_graph(atoms, 4.0), Labelled(atoms, energy, forces, stress, "", "x#0"), torch.float64))
    return items


@pytest.fixture
def whole(make_model, items):
    """A model, and errors and gradients of all items as one batch."""
    model = make_model(num_layers=1)
    errors = TrainStep(model, UNITS, compiled=False)(collate(items), WEIGHTS)
    return model, errors, taken(model)


def taken(model):
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return gradients


def same(one, other):
    largest = max(float(g.abs().max()) for g in other.values())
    return all((g - other[name]).abs().max() <= SAME * largest for name, g in one.items())


def micro_batches(model, batch_size, max_edges=10**9, step=None):
    said = []
    step = step or TrainStep(model, UNITS, compiled=False)
    return MicroBatches(step, batch_size, EdgeBudget(max_edges), torch.device("cpu"), said.append), said


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
def test_micro_batches_give_the_gradient_of_one_large_batch(whole, items, batch_size):
    model, errors, gradients = whole
    parts, said = micro_batches(model, batch_size)
    torch.testing.assert_close(parts(items, WEIGHTS), errors)
    assert same(taken(model), gradients)
    assert not said


def test_a_plain_mean_over_micro_batches_would_be_caught(whole, items):
    model, _, gradients = whole
    step = TrainStep(model, UNITS, compiled=False)
    for part in (items[:4], items[4:]):
        step(collate(part), WEIGHTS / 2)
    assert not same(taken(model), gradients)


@pytest.fixture
def sizes(whole):
    """Structures, atoms and slots of each graph that the model is given."""
    model, sizes = whole[0], []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append((inputs[0].num_structures, *inputs[0].slots.shape)))
    return sizes


@pytest.mark.parametrize("max_edges", [1, 100, 200])
def test_too_many_edges_are_divided(whole, items, sizes, max_edges):
    """Batches into structures, and structures into atoms."""
    model, errors, gradients = whole
    assert max(len(item.graph.edge_vec) for item in items) > 200
    parts, said = micro_batches(model, 100, max_edges)
    torch.testing.assert_close(parts(items, WEIGHTS), errors)
    assert same(taken(model), gradients)
    assert all(structures > 1 or atoms * slots <= max_edges or atoms == 1 for structures, atoms, slots in sizes)
    assert len(said) == 1
    assert f"more than {max_edges} neighbour pairs (max_edges_per_step)" in said[0]


@pytest.mark.parametrize(("kind", "fits"), [("cuda", 3), ("cpu", 3), ("python", 3), ("cuda", 1)])
def test_running_out_of_memory_divides_the_batch(whole, items, kind, fits):
    model, errors, gradients = whole
    failures = []

    class Small(TrainStep):
        def __call__(self, batch, weights):
            if batch.num_atoms.shape[0] > fits:
                failures.append(batch)
                raise MESSAGES[kind]
            return super().__call__(batch, weights)

    parts, said = micro_batches(model, 7, step=Small(model, UNITS, compiled=False))
    torch.testing.assert_close(parts(items, WEIGHTS), errors)
    assert same(taken(model), gradients)
    first = len(failures)
    parts(items, WEIGHTS)
    assert len(failures) - first < first  # it has learned
    assert len(said) == 1
    assert "7 structures" in said[0]


def test_one_structure_that_does_not_fit_is_divided(whole, items, sizes):
    """Halving ends at its atoms, not at the structure."""
    model, errors, gradients = whole
    most = 3 * items[0].graph.slots.shape[1]

    def fail(module, inputs):
        if inputs[0].slots.numel() > most:
            raise MESSAGES["cpu"]

    model.register_forward_pre_hook(fail)
    parts, said = micro_batches(model, 2)
    torch.testing.assert_close(parts(items, WEIGHTS), errors)
    assert same(taken(model), gradients)
    assert parts.budget.max_edges <= most
    sizes.clear()
    parts(items, WEIGHTS)
    assert max(atoms * slots for structures, atoms, slots in sizes if structures == 1) <= most
    assert len(said) == 1


def test_one_atom_that_does_not_fit_is_named(make_model, items):
    model = make_model(num_layers=1)

    def fail(module, inputs):
        raise MESSAGES["cpu"]

    model.register_forward_pre_hook(fail)
    with pytest.raises(FlashACEError, match=r"an atom with [0-9]+ neighbours does not fit into the memory of cpu"):
        micro_batches(model, 2)[0](items[:1], WEIGHTS)
    assert all(p.grad is None for p in model.parameters())


def test_other_errors_are_not_hidden(make_model, items):
    def step(batch, weights):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    parts, _ = micro_batches(make_model(num_layers=1), 2, step=step)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        parts(items, WEIGHTS)
