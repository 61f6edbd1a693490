"""What training did not have is said once per run, by one of the processes."""

import numpy as np
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


def alloy(seed=0):
    """Atoms in another order for each seed."""
    atoms = bulk("C", "fcc", a=3.4, cubic=True).repeat(2)
    atoms.symbols = np.random.default_rng(seed).permutation(["C"] * 16 + ["Si"] * 16)
    return atoms


@pytest.fixture(scope="module")
def exported_for(make_model, tmp_path_factory):
    """Structures in; a model for LAMMPS that was fitted to such, and the range of its neighbours, out."""

    def export(structures, **distances):
        model = make_model(torch.float64, shortest_distances=distances or None, num_layers=1, correlation=1)
        graphs = [build_graph(atoms, model.config.r_max) for atoms in structures]
        c = model.config
        model.coordination = Coordination(
            neighbour_statistics(graphs, model.symbols, c.r_max, c.envelope_exponent, {}, {}).coordination, model.symbols
        )
        path = tmp_path_factory.mktemp("exported") / "model.so"
        assert export_for_lammps(model, path, "such") == []
        return path, model.coordination

    return export


@pytest.fixture(scope="module")
def of_crystals(exported_for):
    """A model of crystals of SiC for LAMMPS, and the range of its neighbours."""
    path, known = exported_for([crystal(seed) for seed in range(20)], **{"C-Si": 1.7, "C-C": 2.7, "Si-Si": 2.7})
    return path, known.of_pairs


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


def test_another_order_of_the_same_neighbours_is_no_news(exported_for, commands, lammps):
    """As for the calculator: `tests/structure/test_coordination.py`."""
    path, known = exported_for([alloy(seed) for seed in range(5)])
    ordered, surface = alloy(7), alloy(7)
    surface.cell[2, 2] += 10.0
    said = lammps(commands(ordered, path, "run 0\n") + commands(surface, path, "run 0\n")).stdout
    assert said.count("WARNING: pair_style flashace: atom") == 1
    assert any(f"{least:.2f} to {most:.2f} in training" in " ".join(said.split()) for least, most in known.of_pairs.values())


def test_a_model_that_does_not_tell_is_not_guarded(exported, commands, lammps):
    assert "WARNING: pair_style flashace" not in lammps(commands(slab(), exported, "run 0\n")).stdout
