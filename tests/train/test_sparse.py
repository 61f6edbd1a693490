"""Made-up sparse structures: free atoms, no bond among them, and none of them in anything that a fit counts."""

import csv

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols, covalent_radii
from ase.io import read

from flashace.potential.model_file import load_model
from flashace.train import loop
from flashace.train.sparse import sparse_batch

E0 = {"H": -13.6, "C": -1027.0, "Cs": -0.5}  # two Cs have no room: bonds of 4.9 Å


def drawn(seed):
    return sparse_batch(E0, 5.0, torch.float64, np.random.default_rng(seed))


def test_atoms_are_free_near_each_other_and_not_bonded():
    elements = set()
    for seed in range(20):
        batch = drawn(seed)
        graph = batch.graph
        radii = torch.from_numpy(covalent_radii)[graph.numbers]
        i, j = graph.edge_index
        assert (graph.edge_vec.norm(dim=1) - radii[i] - radii[j]).min() > 2.0 - 1e-6
        assert (graph.first.diff() > 0).all()  # each atom is near another one
        for k, energy in enumerate(batch.labels["energy"].tolist()):
            symbols = [chemical_symbols[z] for z in graph.numbers[graph.structure == k]]
            elements.update(symbols)
            assert 2 <= len(symbols) <= 4
            assert energy == pytest.approx(sum(E0[symbol] for symbol in symbols))
    assert elements == set(E0)
    assert batch.has["forces"].all()
    assert not batch.labels["forces"].any()


def test_the_same_structures_for_the_same_numbers():
    assert torch.equal(drawn(0).graph.edge_vec, drawn(0).graph.edge_vec)
    assert drawn(0).graph.numbers.tolist() != drawn(1).graph.numbers.tolist()


def test_elements_without_room_make_none():
    assert sparse_batch({"Cs": 0.0}, 5.0, torch.float64, np.random.default_rng(0)) is None


@pytest.fixture
def fit_options(data_file):
    """A cutoff that leaves room, and energies of free atoms."""
    e0 = dict.fromkeys({symbol for atoms in read(data_file, ":") for symbol in atoms.symbols}, -1.0)
    return {"optimizer": "adamw", "r_max": 5.0, "atomic_energies": e0}


def test_they_are_learned_and_counted_nowhere(fit, tmp_path):
    silent, told = (fit(name, free_atoms_weight=weight).output for name, weight in (("without", 0.0), ("with", 1.0)))
    without, taught = (load_model(tmp_path / name / "model.pt") for name in ("without", "with"))
    assert "free atoms" in told
    assert "free atoms" not in silent
    assert any(not torch.equal(p, q) for p, q in zip(taught.parameters(), without.parameters(), strict=True))
    for name in ("avg_num_neighbors", "scale", "energy_bound", "shortest_distances"):
        assert getattr(taught, name) == getattr(without, name)
    assert taught.coordination.of_pairs == without.coordination.of_pairs
    rows = [next(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("without", "with")]
    assert rows[1].keys() == rows[0].keys()


def test_energies_of_least_squares_are_not_taken_for_those_of_free_atoms(fit, monkeypatch):
    monkeypatch.setattr(loop, "sparse_batch", lambda *arguments: pytest.fail("made-up structures"))
    fit("run", atomic_energies=None, solve_atomic_energies=True)


def test_elements_without_room_are_named(fit):
    assert "not taught: within r_max, no two elements have room" in fit("run", "--dry-run", r_max=3.0).output
