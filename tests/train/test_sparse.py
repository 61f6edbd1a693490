"""Made-up sparse structures: free atoms, no bond among them, and none of them in anything that a fit counts."""

import csv

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii
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
        for k in range(batch.graph.num_structures):
            own = batch.graph.structure == k
            numbers, positions = batch.graph.numbers[own].numpy(), batch.graph.positions[own].numpy()
            atoms = Atoms(numbers, positions)
            elements.update(atoms.symbols)
            assert 2 <= len(atoms) <= 4
            assert batch.energy[k].item() == pytest.approx(sum(E0[symbol] for symbol in atoms.symbols))
            r = atoms.get_all_distances() + 100 * np.eye(len(atoms))
            assert (r - covalent_radii[numbers] - covalent_radii[numbers][:, None] > 2.0 - 1e-6).all()
            assert (r.min(axis=1) < 5.0).all()
    assert elements == set(E0)
    assert batch.has_forces.all()
    assert not batch.forces.any()


def test_the_same_structures_for_the_same_numbers():
    assert torch.equal(drawn(0).graph.positions, drawn(0).graph.positions)
    assert drawn(0).graph.numbers.tolist() != drawn(1).graph.numbers.tolist()


def test_elements_without_room_make_none():
    assert sparse_batch({"Cs": 0.0}, 5.0, torch.float64, np.random.default_rng(0)) is None


@pytest.fixture
def fit(flashace, write_yaml, data_file, tmp_path, monkeypatch):
    """fit(name, …options): a tiny fit with a cutoff that leaves room, into the folder `name`; its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop.report, "learning_curve", lambda *arguments: None)
    monkeypatch.setattr(loop.report, "parity", lambda *arguments: None)
    e0 = dict.fromkeys({symbol for atoms in read(data_file, ":") for symbol in atoms.symbols}, -1.0)

    def run(name, **options):
        options = {"optimizer": "adamw", "data": [str(data_file)], "r_max": 5.0, "atomic_energies": e0, **options}
        result = flashace("fit", "-c", write_yaml(tmp_path / f"{name}.yaml", **options), "-o", name)
        assert result.exit_code == 0, result.output
        return load_model(tmp_path / name / "model.pt"), result.output

    return run


def test_they_are_learned_and_counted_nowhere(fit, tmp_path):
    without, silent = fit("without", free_atoms_weight=0.0)
    taught, told = fit("with", free_atoms_weight=1.0)
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
