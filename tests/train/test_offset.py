"""The constant that energies are off by goes away, and an atom alone keeps its reference energy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from flashace.data.frames import Labelled
from flashace.potential.derivatives import predict
from flashace.structure.neighbors import build_graph
from flashace.train.offset import remove_offset

OFFSET = {"C": 0.003, "Si": -0.002}  # eV


@pytest.fixture
def labelled(structure, make_model):
    """A model, and frames with its own energies but for a constant per element; of three compositions."""
    model = make_model()
    frames = []
    for i in range(12):
        atoms = structure("crystal")
        atoms.rattle(0.03, seed=i)
        atoms.numbers[: i % 3] = 6
        energy = model(build_graph(atoms, 4.0)).sum().item() - sum(OFFSET[symbol] for symbol in atoms.symbols)
        frames.append(Labelled(atoms, energy, None, None, "", "x#0"))
    return model, frames, [build_graph(frame.atoms, 4.0) for frame in frames]


def errors(model, frames, graphs):
    return np.array([(model(g).sum().item() - f.energy) / len(f.atoms) for f, g in zip(frames, graphs, strict=True)])


def test_a_constant_per_element_goes_away(labelled):
    model, frames, graphs = labelled
    forces = predict(model, graphs[0], torch.float64).forces
    before = errors(model, frames, graphs)
    told = remove_offset(model, frames, graphs)
    after = errors(model, frames, graphs)
    assert told == pytest.approx(before.mean())
    assert abs(after.mean()) < 0.05 * abs(before.mean())
    assert np.sqrt((after**2).mean()) < 0.3 * np.sqrt((before**2).mean())
    assert (predict(model, graphs[0], torch.float64).forces - forces).abs().max() < 0.01
    for symbol, energy in model.e0.items():
        assert model(build_graph(Atoms(symbol), 4.0)).item() == energy


def test_wrong_labels_count_as_little_as_in_the_loss(labelled):
    model, frames, graphs = labelled
    frames[3] = replace(frames[3], energy=frames[3].energy + 8 * 5.0)
    remove_offset(model, frames, graphs, delta=1e-4)
    assert abs(np.median(errors(model, frames, graphs))) < 5e-4


def test_one_composition_tells_nothing_of_two_elements(labelled):
    """And yet the offset goes away, by weights that change as little as they have to."""
    model, frames, graphs = labelled
    same = [i for i in range(12) if i % 3 == 0]
    frames, graphs = [frames[i] for i in same], [graphs[i] for i in same]
    before = [p.clone() for p in model.parameters()]
    remove_offset(model, frames, graphs)
    assert abs(errors(model, frames, graphs).mean()) < 1e-5
    assert max((p - q).abs().max().item() for p, q in zip(model.parameters(), before, strict=True)) < 1e-3


def test_frames_without_energies_change_nothing(labelled):
    model, frames, graphs = labelled
    before = [p.clone() for p in model.parameters()]
    assert remove_offset(model, [replace(frame, energy=None) for frame in frames], graphs) == 0.0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
