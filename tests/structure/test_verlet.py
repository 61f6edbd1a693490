"""A Verlet list gives the graph of now, and looks for neighbours only when one may be missing."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial import cKDTree

from flashace.errors import FlashACEError
from flashace.structure import verlet
from flashace.structure.neighbors import build_graph, find_pairs
from flashace.structure.verlet import VerletList

VECTOR = 1e-9  # Å; two ways to the same float64 vector


def assert_same_graph(found, expected):
    """Edges of a pair, which differ in the image alone, may stand in another order."""
    ours, theirs = (np.hstack([1e3 * graph.edge_index.numpy().T, graph.edge_vec.numpy()]) for graph in (found, expected))
    assert ours.shape == theirs.shape
    if len(ours):
        distance, place = cKDTree(theirs).query(ours)
        assert distance.max() < VECTOR
        assert len(np.unique(place)) == len(theirs)
    for name in ("numbers", "cell", "structure", "first", "slots"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.fixture
def searches(monkeypatch):
    """One entry for each time that neighbours are looked for."""
    made = []

    def find(atoms, r_max):
        made.append(r_max)
        return find_pairs(atoms, r_max)

    monkeypatch.setattr(verlet, "find_pairs", find)
    return made


@pytest.mark.parametrize("skin", [0.0, 0.4])
def test_a_verlet_list_gives_the_graph_of_now(each_structure, skin, searches):
    """While atoms wander, jump through the cell and the cell deforms."""
    atoms, r_max, rng = each_structure, 4.0, np.random.default_rng(0)
    neighbours = VerletList(r_max, skin)
    assert_same_graph(neighbours(atoms), build_graph(atoms, r_max))
    for step in range(12):
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        if step == 4 and atoms.pbc.any():
            atoms.positions[0] += atoms.cell[int(np.flatnonzero(atoms.pbc)[0])]
        if step in (6, 7, 8) and atoms.pbc.any():
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), scale_atoms=step != 8)
        searches.clear()
        found = neighbours(atoms)
        assert len(searches) == 1 if not skin else len(searches) <= 1
        assert_same_graph(found, build_graph(atoms, r_max))


def test_a_verlet_list_lasts_until_a_pair_may_be_missing(searches):
    """Two atoms that come from outside: kept as long as each has moved by less than half the skin, and never too long."""
    neighbours, r_max, skin = VerletList(4.0, 0.5), 4.0, 0.5
    atoms = Atoms("Si2", [[0, 0, 0], [r_max + skin + 1e-6, 0, 0]])
    for moved in np.linspace(0, 0.49, 20) / 2:
        atoms.positions = [[moved, 0, 0], [r_max + skin + 1e-6 - moved, 0, 0]]
        assert neighbours(atoms).edge_index.shape[1] == 0
    assert len(searches) == 1
    atoms.positions = [[0.2501, 0, 0], [r_max + skin - 0.2501, 0, 0]]
    assert neighbours(atoms).edge_index.shape[1] == 2
    assert len(searches) == 2


def test_a_verlet_list_follows_a_cell_that_shrinks(searches):
    """Evenly, with its atoms: kept until the shortest vector that was left out may be one of a pair."""
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    cell, neighbours = atoms.cell.array.copy(), VerletList(4.0, 0.5)
    neighbours(atoms)
    for factor in (0.99, 0.95, 0.9):  # 4.5 · 0.9 = 4.05
        atoms.set_cell(cell * factor, scale_atoms=True)
        assert_same_graph(neighbours(atoms), build_graph(atoms, 4.0))
    assert len(searches) == 1
    atoms.set_cell(cell * 0.88, scale_atoms=True)
    assert_same_graph(neighbours(atoms), build_graph(atoms, 4.0))
    assert len(searches) == 2


@pytest.mark.parametrize("what", ["numbers", "pbc", "length"])
def test_a_verlet_list_is_of_one_structure(what, structure, searches):
    neighbours, atoms = VerletList(4.0, 0.5), structure("crystal")
    neighbours(atoms)
    if what == "numbers":
        atoms.numbers = atoms.numbers[::-1].copy()
    elif what == "pbc":
        atoms.pbc = [True, False, True]
    else:
        del atoms[0]
    searches.clear()
    found = neighbours(atoms)
    assert searches == [4.5]
    assert_same_graph(found, build_graph(atoms, 4.0))


@pytest.mark.parametrize("pbc", [[True, True, False], False])
def test_a_verlet_list_of_a_cell_without_volume(pbc):
    """Lattice vectors may depend on each other where not all are periodic."""
    atoms = Atoms("Si2", [[0, 0, 0], [2, 0, 0]], cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]], pbc=pbc)
    neighbours = VerletList(4.0, 0.5)
    neighbours(atoms)
    atoms.cell[0] = [5.01, 0, 0]
    assert_same_graph(neighbours(atoms), build_graph(atoms, 4.0))


def test_a_verlet_list_does_without_a_skin_that_is_too_dense():
    atoms = bulk("Si", "sc", a=0.33)
    neighbours = VerletList(4.0, 0.5)
    for _ in range(2):
        assert_same_graph(neighbours(atoms), build_graph(atoms, 4.0))
        atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)


def test_a_verlet_list_names_what_has_run_away():
    """Though no pair can have come closer when everything is stretched."""
    atoms = bulk("Si", cubic=True)
    neighbours = VerletList(4.0, 0.5)
    neighbours(atoms)
    atoms.set_cell(atoms.cell.array * 1e10, scale_atoms=True)
    with pytest.raises(FlashACEError, match="positions: expected finite numbers, at most 1e"):
        neighbours(atoms)


@pytest.mark.parametrize("name", ["positions", "cell"])
def test_a_verlet_list_does_not_hide_what_is_not_a_number(name, structure):
    neighbours, atoms = VerletList(4.0, 0.5), structure("crystal")
    neighbours(atoms)
    if name == "positions":
        atoms.positions[1] = np.nan
    else:
        atoms.cell[1] = np.nan
    with pytest.raises(FlashACEError, match=f"{name}: expected finite numbers"):
        neighbours(atoms)
