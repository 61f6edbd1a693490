"""Structures that no data has."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from flashace.structure.neighbors import build_graph
from flashace.verify.hard_structures import MOST_ATOMS, guessed_distances, hard_structures, short_distances

LONGEST = 5.0
FRAMES = {
    "crystal": lambda: bulk("SiC", "zincblende", a=4.36),
    "metal": lambda: bulk("Cu", cubic=True).repeat(3),
    "molecule": lambda: molecule("CH3CH2OH"),
    "wire": lambda: Atoms("SiC", [(0, 0, 0), (1.9, 0, 0)], cell=[3.8, 0, 0], pbc=(True, False, False)),
    "atom": lambda: Atoms("C"),
}


@pytest.fixture(params=FRAMES)
def frame(request):
    return FRAMES[request.param]()


def closest(atoms):
    """{(6, 14): 1.9, …} of all pairs within 6 Å."""
    graph = build_graph(atoms, 6.0)
    pairs, r = np.sort(graph.numbers.numpy()[graph.edge_index.numpy()], axis=0), graph.edge_vec.norm(dim=1).numpy()
    return {pair: r[(pairs == np.array(pair)[:, None]).all(axis=0)].min() for pair in map(tuple, pairs.T.tolist())}


def test_they_are_the_same_each_time_small_and_of_all_kinds(frame):
    short = guessed_distances(frame)
    once, again = (hard_structures([frame], short, LONGEST) for _ in range(2))
    assert [name for name, _ in once] == [name for name, _ in again]
    assert all(a == b for (_, a), (_, b) in zip(once, again, strict=True))
    assert max(len(atoms) for _, atoms in once) <= MOST_ATOMS
    assert {z for _, atoms in once for z in atoms.numbers} == set(frame.numbers)
    kinds = ["°", "gas", "packing"] + ["opened by", "pulled off by", "removed"] * (len(frame) > 1)
    assert all(any(kind in name for name, _ in once) for kind in kinds)
    assert len(once) < 350


def test_pairs_are_no_closer_than_told_but_in_packings(frame):
    short = guessed_distances(frame)
    for name, atoms in hard_structures([frame], short, LONGEST):
        least = 0.7 if "packing" in name else 0.999
        assert all(r >= least * short[pair] for pair, r in closest(atoms).items()), name


def test_every_pair_of_elements_stands_at_every_distance():
    short = short_distances(["H", "C", "O"], {"H-H": 1.57, "H-C": 1.0, "C-C": 1.43, "H-O": 0.95})
    assert short == pytest.approx({(1, 1): 1.57, (1, 6): 1.0, (6, 6): 1.43, (1, 8): 0.95, (6, 8): 1.42, (8, 8): 1.32})
    pairs = [atoms for _, atoms in hard_structures([], short, LONGEST) if len(atoms) == 2]
    for pair, least in short.items():
        r = sorted(atoms.get_distance(0, 1) for atoms in pairs if tuple(atoms.numbers) == pair)
        assert r[0] == pytest.approx(least)
        assert max(np.diff([*r, LONGEST])) < 0.5


def test_a_crystal_is_cut_between_its_planes_and_keeps_the_rest():
    crystal = bulk("Si", cubic=True).repeat(2)
    crystal.positions += 100.3  # far outside its cell
    opened = {name: atoms for name, atoms in hard_structures([crystal], guessed_distances(crystal), LONGEST) if "opened by" in name}
    assert list(opened) == [f"Si64 opened by {gap} Å" for gap in (0.5, 1, "1.5", 2, "2.5", 3, 4, 5)]
    for gap, atoms in zip((0.5, 1, 1.5, 2, 2.5, 3, 4, 5), opened.values(), strict=True):
        assert atoms.get_volume() - crystal.get_volume() == pytest.approx(gap * 10.86**2)
        bonds = [len(build_graph(a, 2.4).edge_vec) for a in (crystal, atoms)]
        assert bonds[0] - bonds[1] == 2 * 2 * 8  # two bonds of each atom of a (100) plane, seen from both ends


def test_a_molecule_is_cut_in_its_middle():
    ethanol = molecule("CH3CH2OH")
    (opened,) = [atoms for name, atoms in hard_structures([ethanol], guessed_distances(ethanol), LONGEST) if "opened by 3 Å" in name]
    moved = np.linalg.norm(opened.positions - ethanol.positions, axis=1)
    assert sorted(np.round(moved, 6)) == [0] * 4 + [3] * 5


def test_a_large_structure_is_cut_to_size_and_a_small_cell_is_repeated():
    sizes = {n: [] for n in (1, 2)}
    for n, atoms in ((1, bulk("Cu")), (2, bulk("Cu", cubic=True).repeat(5))):
        sizes[n] = {len(a) for name, a in hard_structures([atoms], guessed_distances(atoms), LONGEST) if "opened by" in name}
    assert sizes == {1: {64}, 2: {64}}
