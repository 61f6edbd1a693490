"""Graphs against a second neighbour list, and the identities that every graph obeys."""

import numpy as np
import pytest
import torch
import vesin
from ase import Atoms
from ase.build import bulk

from flashace.errors import FlashACEError
from flashace.structure import graph as graph_module
from flashace.structure.graph import MOST_BINS, VerletList, batch_graphs, build_graph, take_part

VECTOR = 1e-9  # Å; two ways to the same float64 vector, atoms some 100 Å away from the origin
CUTOFFS = [2.5, 4.0, 6.5]  # Å; the last is beyond every small cell


def pairs(edge_index, shifts):
    """{(i, j, shift)}."""
    return {(int(i), int(j), *(int(n) for n in s)) for i, j, s in zip(*edge_index, shifts, strict=True)}


def pairs_of(graph):
    return pairs(graph.edge_index.numpy(), graph.unit_shifts.numpy())


@pytest.mark.parametrize("most_bins", [MOST_BINS, 0], ids=["matscipy", "sparse"])
@pytest.mark.parametrize("r_max", CUTOFFS)
def test_pairs_are_those_of_vesin(each_structure, r_max, most_bins, monkeypatch):
    atoms = each_structure
    monkeypatch.setattr(graph_module, "MOST_BINS", most_bins)
    graph = build_graph(atoms, r_max)
    box = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    second = vesin.NeighborList(cutoff=r_max, full_list=True)
    i, j, shifts, vectors = second.compute(atoms.positions, box, atoms.pbc, "ijSD")
    assert pairs_of(graph) == pairs((i, j), shifts)
    assert graph.edge_index.shape[1] == len(i)  # none twice
    ours = dict(zip(pairs_in_order(graph), graph.edge_vec.numpy(), strict=True))
    for key, v in zip(zip(i, j, *shifts.T, strict=True), vectors, strict=True):
        np.testing.assert_allclose(ours[tuple(map(int, key))], v, atol=VECTOR)


def pairs_in_order(graph):
    return [(int(i), int(j), *map(int, s)) for i, j, s in zip(*graph.edge_index, graph.unit_shifts, strict=True)]


def test_the_identities_of_a_graph(each_structure):
    atoms, r_max = each_structure, 4.0
    graph = build_graph(atoms, r_max)
    i, j = graph.edge_index
    identity = graph.positions[j] - graph.positions[i] + graph.unit_shifts @ graph.cell[0]
    torch.testing.assert_close(graph.edge_vec, identity, atol=VECTOR, rtol=0)
    assert (graph.edge_vec.norm(dim=-1) < r_max).all()
    assert (i.diff() >= 0).all()  # sorted by centre
    assert {(b, a, *(-n for n in s)) for a, b, *s in pairs_of(graph)} == pairs_of(graph)  # each pair from both ends
    assert (graph.unit_shifts[:, ~torch.as_tensor(atoms.pbc)] == 0).all()
    for tensor in (graph.positions, graph.cell, graph.edge_vec):
        assert tensor.dtype == torch.float64
    np.testing.assert_array_equal(graph.positions, atoms.positions)
    np.testing.assert_array_equal(graph.cell[0], atoms.cell.array)  # the user's cell, not a box of ours
    np.testing.assert_array_equal(graph.numbers, atoms.numbers)


def test_slots_hold_the_edges_of_each_atom(each_structure):
    graph = build_graph(each_structure, 4.0)
    num_edges = graph.edge_index.shape[1]
    for atom, slots in enumerate(graph.slots):
        own = torch.nonzero(graph.edge_index[0] == atom).flatten()
        assert slots[: len(own)].tolist() == own.tolist()
        assert (slots[len(own) :] == num_edges).all()
    assert graph.slots.shape[1] == max(1, int(torch.bincount(graph.edge_index[0], minlength=1).max()))


def test_the_users_atoms_are_not_changed(each_structure):
    before = each_structure.copy()
    graph = build_graph(each_structure, 4.0)
    graph.positions.add_(1.0)
    graph.cell.add_(1.0)
    graph.numbers.add_(1)
    assert each_structure == before


@pytest.mark.parametrize("name", ["crystal", "sheared", "left-handed", "wire", "slab without cell height"])
def test_wrapping_by_lattice_vectors_changes_no_vector(structure, name):
    atoms = structure(name)
    moved = atoms.copy()
    shifts = np.random.default_rng(0).integers(-1000, 1000, (len(atoms), 3)) * atoms.pbc
    moved.positions += shifts @ atoms.cell.array
    one, other = build_graph(atoms, 4.0), build_graph(moved, 4.0)
    shift_of_edge = torch.as_tensor(shifts, dtype=torch.float64)
    expected = one.unit_shifts + shift_of_edge[one.edge_index[0]] - shift_of_edge[one.edge_index[1]]
    assert pairs_of(other) == pairs(one.edge_index.numpy(), expected.numpy())
    assert sorted(other.edge_vec.norm(dim=-1).tolist()) == pytest.approx(sorted(one.edge_vec.norm(dim=-1).tolist()), abs=VECTOR)


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
    graph = build_graph(atoms, 4.0)
    assert pairs_of(graph) == {(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)}
    assert graph.edge_vec[0].tolist() == pytest.approx([1.8, 0, 0], abs=4 * np.spacing(d))


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
    graph = build_graph(Atoms("SiC", [(1.0, 1.0, 1.0)] * 2), 3.0)
    assert pairs_of(graph) == {(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)}


# Batches


def test_structures_of_a_batch_do_not_see_each_other(structure):
    graphs = [build_graph(structure(name), 4.0) for name in ("wire", "atom", "sheared", "molecule")]
    batch = batch_graphs(graphs)
    assert batch.num_structures == 4
    assert (batch.structure[batch.edge_index[0]] == batch.structure[batch.edge_index[1]]).all()
    first = 0
    for b, graph in enumerate(graphs):
        atoms, edges = batch.structure == b, batch.structure[batch.edge_index[0]] == b
        torch.testing.assert_close(batch.positions[atoms], graph.positions, rtol=0, atol=0)
        torch.testing.assert_close(batch.numbers[atoms], graph.numbers)
        torch.testing.assert_close(batch.edge_index[:, edges] - first, graph.edge_index)
        torch.testing.assert_close(batch.edge_vec[edges], graph.edge_vec, rtol=0, atol=0)
        torch.testing.assert_close(batch.unit_shifts[edges], graph.unit_shifts)
        torch.testing.assert_close(batch.cell[b], graph.cell[0])
        first += len(graph.numbers)
    cell_of_edge = batch.cell[batch.structure[batch.edge_index[0]]]
    i, j = batch.edge_index
    identity = batch.positions[j] - batch.positions[i] + torch.einsum("ec,ecx->ex", batch.unit_shifts, cell_of_edge)
    torch.testing.assert_close(batch.edge_vec, identity, atol=VECTOR, rtol=0)
    assert (batch.slots < len(batch.edge_vec)).sum() == len(batch.edge_vec)
    assert (batch.edge_index[0][batch.slots.clamp(max=len(i) - 1)] == torch.arange(len(batch.numbers))[:, None])[batch.slots < len(i)].all()


def test_a_batch_of_batches_is_a_batch(structure):
    a, b, c = (build_graph(structure(name), 4.0) for name in ("wire", "atom", "sheared"))
    nested, flat = batch_graphs([batch_graphs([a, b]), c]), batch_graphs([a, b, c])
    for name in ("structure", "edge_index", "slots", "cell", "numbers"):
        torch.testing.assert_close(getattr(nested, name), getattr(flat, name))


# Parts


@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 9), (4, 5), (10, 19), (12, 20)])
def test_a_part_is_a_graph_of_some_neighbourhoods(structure, first, last):
    """From an atom alone (4) to atoms of several structures."""
    whole = batch_graphs([build_graph(structure(name), 4.0) for name in ("wire", "atom", "crystal", "one atom per cell", "molecule")])
    part, atoms = take_part(whole, first, last)
    assert part.num_centres == last - first
    (i, j), own = part.edge_index, (whole.edge_index[0] >= first) & (whole.edge_index[0] < last)
    torch.testing.assert_close(atoms[i], whole.edge_index[0, own])
    torch.testing.assert_close(atoms[j], whole.edge_index[1, own])
    torch.testing.assert_close(part.edge_vec, whole.edge_vec[own], rtol=0, atol=0)
    torch.testing.assert_close(part.edge_vec, part.positions[j] - part.positions[i], rtol=0, atol=VECTOR)
    for name in ("numbers", "structure"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[atoms])
    for atom, slots in enumerate(part.slots):
        edges = torch.nonzero(i == atom).flatten().tolist()
        assert slots.tolist() == edges + [len(i)] * (part.slots.shape[1] - len(edges))
    assert part.slots.shape[1] == max(1, int(torch.bincount(i, minlength=1).max()))


def test_all_of_a_graph_is_that_graph(each_structure):
    graph = build_graph(each_structure, 4.0)
    part, atoms = take_part(graph, 0, len(each_structure))
    assert part is graph
    assert atoms.tolist() == list(range(len(each_structure)))


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


# Verlet lists


def assert_same_graph(found, expected):
    assert pairs_of(found) == pairs_of(expected)
    vectors = [dict(zip(pairs_in_order(graph), graph.edge_vec.numpy(), strict=True)) for graph in (found, expected)]
    for key, vector in vectors[0].items():
        np.testing.assert_allclose(vector, vectors[1][key], rtol=0, atol=VECTOR)
    assert (found.edge_index[0].diff() >= 0).all()
    for name in ("positions", "numbers", "cell", "structure"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.slots.shape == expected.slots.shape
    edges = torch.arange(len(found.edge_vec))
    assert torch.equal(found.slots[found.slots < len(edges)], edges)


@pytest.fixture
def searches(monkeypatch):
    """One entry for each time that neighbours are looked for."""
    made, search = [], graph_module._pairs
    monkeypatch.setattr(graph_module, "_pairs", lambda atoms, r_max: made.append(r_max) or search(atoms, r_max))
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
    assert len(searches) == 1 + 3  # three of `build_graph`
    atoms.set_cell(cell * 0.88, scale_atoms=True)
    assert_same_graph(neighbours(atoms), build_graph(atoms, 4.0))
    assert len(searches) == 1 + 3 + 2


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


@pytest.mark.parametrize("r_max", [0.5, 2.5, 3.5, 4.0])
def test_a_graph_within_a_shorter_cutoff_is_the_graph_of_that_cutoff(each_structure, r_max):
    found, expected = build_graph(each_structure, 4.0).within(r_max), build_graph(each_structure, r_max)
    for name in ("edge_index", "unit_shifts", "slots", "numbers", "structure"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.edge_vec, expected.edge_vec, rtol=0, atol=1e-12)
