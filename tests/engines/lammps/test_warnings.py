"""What training did not have is said once per run, by one of the processes."""

import pytest
import torch
from ase import Atoms
from ase.build import bulk

from flashace.data.statistics import neighbour_statistics
from flashace.engines.lammps.export import export_for_lammps
from flashace.structure.coordination import Coordination
from flashace.structure.neighbors import build_graph


def crystal(seed=0):
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True).repeat((1, 1, 2))
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def of_crystals(make_model, tmp_path_factory):
    """A model of crystals of SiC for LAMMPS, and the range of its neighbours."""
    model = make_model(torch.float64, shortest_distances={"C-Si": 1.7, "C-C": 2.7, "Si-Si": 2.7}, num_layers=1, correlation=1)
    graphs = [build_graph(crystal(seed), model.config.r_max) for seed in range(20)]
    c = model.config
    model.coordination = Coordination(
        neighbour_statistics(graphs, model.symbols, c.r_max, c.envelope_exponent, {}, {}).coordination, model.symbols
    )
    path = tmp_path_factory.mktemp("crystals") / "model.so"
    assert export_for_lammps(model, path, "crystals") == []
    return path, model.coordination.of_pairs


def slab() -> Atoms:
    atoms = crystal()
    atoms.cell[2, 2] += 12.0
    return atoms


def too_close() -> Atoms:
    atoms = crystal()
    atoms.positions[1] += 0.2 * (atoms.positions[0] - atoms.positions[1])
    return atoms


@pytest.mark.parametrize("ranks", [1, 2])
def test_once_per_run_and_only_where_it_is_true(of_crystals, commands, lammps, ranks):
    model, known = of_crystals
    said = [
        " ".join(lammps(commands(atoms, model, "run 0\nrun 2\n"), ranks).stdout.split()).split("WARNING: pair_style flashace: ")[1:]
        for atoms in (crystal(3), slab(), too_close())
    ]
    assert said[0] == []
    assert len(said[1]) == 2
    assert all("counted by the envelope, and" in message and " in training. Energies and forces" in message for message in said[1])
    assert any(f"{least:.2f} to {most:.2f} in training" in said[1][0] for least, most in known.values())
    assert sum("A apart, and no such pair closer than 1.700 A in training" in message for message in said[2]) == 2


def test_a_model_that_does_not_tell_is_not_guarded(exported, commands, lammps):
    assert "WARNING: pair_style flashace" not in lammps(commands(slab(), exported, "run 0\n")).stdout
