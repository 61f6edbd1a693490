"""Pairs against a second neighbour list, the identities that they obey, and structures that have none."""

import numpy as np
import pytest
import torch
import vesin
from ase import Atoms
from ase.build import bulk

from flashace.errors import FlashACEError
from flashace.structure import neighbors
from flashace.structure.neighbors import MOST_BINS, build_graph, find_pairs

VECTOR = 1e-9  # Å; two ways to the same float64 vector, atoms some 100 Å away from the origin
CUTOFFS = [2.5, 4.0, 6.5]  # Å; the last is beyond every small cell


def pairs(edge_index, shifts):
    """{(i, j, shift)}."""
    return {(int(i), int(j), *(int(n) for n in s)) for i, j, s in zip(*edge_index, shifts, strict=True)}


def pairs_of(found):
    """Of what `find_pairs` gives."""
    return pairs((found.i, found.j), found.shifts)


@pytest.mark.parametrize("most_bins", [MOST_BINS, 0], ids=["matscipy", "sparse"])
@pytest.mark.parametrize("r_max", CUTOFFS)
def test_pairs_are_those_of_vesin(each_structure, r_max, most_bins, monkeypatch):
    atoms = each_structure
    monkeypatch.setattr(neighbors, "MOST_BINS", most_bins)
    found = find_pairs(atoms, r_max)
    box = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    second = vesin.NeighborList(cutoff=r_max, full_list=True)
    i, j, shifts, vectors = second.compute(atoms.positions, box, atoms.pbc, "ijSD")
    assert pairs_of(found) == pairs((i, j), shifts)
    assert len(found.i) == len(i)  # none twice
    ours = {(int(a), int(b), *map(int, s)): vector for a, b, s, vector in zip(*found, strict=True)}
    for key, v in zip(zip(i, j, *shifts.T, strict=True), vectors, strict=True):
        np.testing.assert_allclose(ours[tuple(map(int, key))], v, atol=VECTOR)


def test_the_identities_of_pairs_and_graph(each_structure):
    atoms, r_max = each_structure, 4.0
    graph, (i, j, shifts, edge_vec) = build_graph(atoms, r_max), find_pairs(atoms, r_max)
    np.testing.assert_allclose(edge_vec, atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell.array, atol=VECTOR)
    assert (np.linalg.norm(edge_vec, axis=-1) < r_max).all()
    assert (np.diff(i) >= 0).all()  # sorted by centre
    found = pairs((i, j), shifts)
    assert {(b, a, *(-n for n in s)) for a, b, *s in found} == found  # each pair from both ends
    assert (shifts[:, ~atoms.pbc] == 0).all()
    np.testing.assert_array_equal(graph.edge_index, [i, j])
    np.testing.assert_array_equal(graph.edge_vec, edge_vec)
    assert graph.cell.dtype == graph.edge_vec.dtype == torch.float64
    np.testing.assert_array_equal(graph.cell[0], atoms.cell.array)  # the user's cell, not a box of ours
    np.testing.assert_array_equal(graph.numbers, atoms.numbers)


def test_the_users_atoms_are_not_changed(each_structure):
    before = each_structure.copy()
    graph = build_graph(each_structure, 4.0)
    graph.cell.add_(1.0)
    graph.numbers.add_(1)
    assert each_structure == before


@pytest.mark.parametrize("name", ["crystal", "sheared", "left-handed", "wire", "slab without cell height"])
def test_wrapping_by_lattice_vectors_changes_no_vector(structure, name):
    atoms = structure(name)
    moved = atoms.copy()
    shifts = np.random.default_rng(0).integers(-1000, 1000, (len(atoms), 3)) * atoms.pbc
    moved.positions += shifts @ atoms.cell.array
    one, other = find_pairs(atoms, 4.0), find_pairs(moved, 4.0)
    assert pairs_of(other) == pairs((one.i, one.j), one.shifts + shifts[one.i] - shifts[one.j])
    lengths = [sorted(np.linalg.norm(found.edge_vec, axis=-1)) for found in (one, other)]
    np.testing.assert_allclose(*lengths, atol=VECTOR)


def test_an_atom_on_a_face_of_the_cell_has_all_its_neighbours():
    for a in (4.0, 4.36, 1 / 3 * 13):
        atoms = bulk("SiC", "zincblende", a=a, cubic=True)
        for tiny in (-1e-17, 1e-17, -1e-12, 1e-12):
            atoms.positions[0] = tiny
            counts = torch.bincount(build_graph(atoms, 3.0).edge_index[0])
            assert (counts == counts[0]).all()


@pytest.mark.parametrize("distance", [1e3, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("pbc", [False, (True, False, False), (True, True, False), True], ids=str)
def test_empty_space_costs_nothing(distance, pbc):
    """A molecule that flew apart, a desorbed atom, a box with far too much vacuum: few pairs, in no time and memory."""
    d = distance
    atoms = Atoms("SiCSi", [(0, 0, 0), (1.8, 0, 0), (0.5 * d, -0.4 * d, 0.3 * d)], cell=[2 * d, 3 * d, d], pbc=pbc)
    found = find_pairs(atoms, 4.0)
    assert pairs_of(found) == {(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)}
    assert found.edge_vec[0].tolist() == pytest.approx([1.8, 0, 0], abs=4 * np.spacing(d))


def test_a_sparse_gas_has_the_pairs_of_all_distances():
    """Pieces of a crystal strewn over a micrometre, periodic along one direction."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 1e4, (40, 3)) * (1, 1, 3e-4)
    atoms = Atoms("Si200", (places[:, None] + rng.uniform(0, 3, (40, 5, 3))).reshape(-1, 3), cell=[0, 0, 3.0], pbc=(False, False, True))
    graph = build_graph(atoms, 4.0)
    vectors = atoms.positions[None] - atoms.positions[:, None]
    expected = sum((np.linalg.norm(vectors + np.array([0, 0, 3.0 * n]), axis=-1) < 4.0).sum() for n in range(-3, 4)) - len(atoms)
    assert graph.edge_index.shape[1] == expected > 1000
    assert (graph.edge_vec.norm(dim=-1) < 4.0).all()


@pytest.mark.parametrize("distance", [1e6, -1e6])
def test_a_structure_far_from_the_origin_is_the_same_structure(each_structure, distance):
    moved = each_structure.copy()
    moved.positions += distance * np.array([1.0, 0.7, -0.4])
    one, other = build_graph(each_structure, 4.0), build_graph(moved, 4.0)
    assert one.edge_vec.shape == other.edge_vec.shape
    np.testing.assert_allclose(one.edge_vec.norm(dim=1).sort().values, other.edge_vec.norm(dim=1).sort().values, atol=8 * np.spacing(1e6))


def test_a_tiny_cell_has_thousands_of_images():
    """Half an Å with a cutoff of 6 Å: the points of a cubic lattice inside a sphere of radius 12."""
    graph = build_graph(Atoms("Si", cell=[0.5] * 3, pbc=True), 6.0)
    n = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3)).reshape(3, -1)
    assert graph.slots.shape == (1, ((n**2).sum(0) < 144).sum() - 1)


def test_coinciding_atoms_are_a_pair():
    assert pairs_of(find_pairs(Atoms("SiC", [(1.0, 1.0, 1.0)] * 2), 3.0)) == {(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)}


# Errors


def broken(positions=None, cell=None, pbc=True, symbols="Si2"):
    atoms = Atoms(symbols, positions=[(0, 0, 0), (1.5, 1.5, 1.5)] if positions is None else positions, pbc=pbc)
    atoms.cell = np.diag([3.0, 3.0, 3.0]) if cell is None else cell
    return atoms


ERRORS = {
    "no atoms": (Atoms(cell=[3, 3, 3], pbc=True), "structure: expected at least one atom, got none"),
    "NaN position": (broken([(0, 0, 0), (0, np.nan, 0)]), r"positions: expected finite numbers, .* got .*nan.* at atom 1 \(1 of 2 atoms\)"),
    "infinite position": (broken([(np.inf, 0, 0), (0, np.nan, 0)]), r"positions: .*inf.* at atom 0 \(2 of 2 atoms\)"),
    "flung away": (
        broken([(0, 0, 0), (0, -3e9, 0)]),
        r"positions: expected finite numbers, at most 1e\+09 Å, got .*-3.*e\+09.* at atom 1 \(1 of 2 atoms\); look at the step",
    ),
    "collapsed cell": (
        broken(cell=np.diag([3.0, 0.01, 0.01])),
        r"cell: expected room .* 20000 neighbours .* r_max=4 Å, got about 3.*; look for",
    ),
    "collapsed wire": (broken(cell=np.diag([0, 0, 1e-9]), pbc=(False, False, True)), r"cell: expected room .*; look for a cell that has"),
    "NaN cell": (broken(cell=np.diag([3.0, np.nan, 3.0])), r"cell: expected finite numbers, at most .* got .*nan.*; look at the step"),
    "infinite cell": (broken(cell=np.diag([3.0, 3.0, np.inf])), r"cell: expected finite numbers, at most .* got .*inf.*; look at the step"),
    "cell beyond numbers": (broken(cell=np.diag([3.0, 3.0, 1e300])), r"cell: expected finite numbers, at most 1e\+09 Å, got .*1e\+300"),
    "flat cell": (broken(cell=[[3, 0, 0], [0, 3, 0], [3, 3, 1e-9]]), "cell: expected room for .* got about .*; look for a cell that has"),
    "no cell": (broken(cell=np.zeros((3, 3))), r"cell: pbc=\[True, True, True\] needs 3 independent lattice vectors"),
    "parallel vectors": (broken(cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]]), "needs 3 independent lattice vectors"),
    "missing vector": (
        broken(cell=np.diag([3.0, 3.0, 0.0]), pbc=(True, False, True)),
        r"cell: pbc=\[True, False, True\] needs 2 independent .*got .*; set the cell, or pbc=False for a molecule",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_a_structure_is_named(case):
    atoms, message = ERRORS[case]
    with pytest.raises(FlashACEError, match=message):
        build_graph(atoms, 4.0)
