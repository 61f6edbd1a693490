"""Structures that no data has, and what is said of the energies and forces on them."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential

from flashace.structure.neighbors import build_graph
from flashace.verify import laws as verify
from flashace.verify.sanity import MOST_ATOMS, Hard, Sanity, Usual, guessed_distances, hard_structures, judge, short_distances

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


# The structures


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


# What is said of them


USUAL = Usual(-4.0, -3.0, 2.0)


def judged(energies, forces, usual=USUAL, r=2.0):
    """Of pairs of silicon at `r` whose energies are these, with these forces."""
    structures = [Hard(str(n), Atoms("Si2", [(0, 0, 0), (r, 0, 0)])) for n in range(len(energies))]
    results = [(2 * (e - 100.0), np.array([[f, 0, 0], [-f, 0, 0]])) for e, f in zip(energies, forces, strict=True)]
    return judge(structures, results, {14: -100.0}, usual, {(14, 14): 2.0})


def test_what_lies_between_training_and_free_atoms_is_known():
    found = judged([-4.0, 0.0, -1.0], [0.0, 29.0, 1.0])
    assert found == Sanity(0.0, 8.0, "0", 29.0, 30.0, "1")
    assert found.worst == pytest.approx(29 / 30)
    assert judged([-5.0, -1.0], [0, 0])[:3] == (1.0, 8.0, "0")
    assert judged([-1.0, 10.0], [0, 0])[:3] == (10.0, 8.0, "1")
    assert judged([1.0], [0], usual=Usual(0.5, 2.0, 1.0))[0] == 0.0


def test_bars_are_those_of_the_training_data_where_these_are_higher():
    assert judged([0.0], [0.0], Usual(-5.0, 0.0, 20.0))[1::3] == (10.0, 60.0)
    assert judged([0.0], [0.0], Usual(0.1, 3.0, 0.1))[1::3] == (8.0, 30.0)


def test_where_atoms_are_close_high_energies_and_their_forces_are_the_repulsions():
    assert judged([1e6], [1e6], r=1.79)[::3] == (0.0, 0.0)
    assert judged([1e6], [1e6], r=1.81)[::3] == (1e6, 1e6)
    assert judged([-1e6], [1e6], r=1.0)[0] == 1e6 - 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_the_worst(bad):
    assert judged([1e9, bad], [0, 0]).energy_of == "1"
    assert judged([0, bad], [0, 0]).energy == np.inf
    assert judged([0, 0], [1e9, bad])[3:] == (np.inf, 30.0, "1")
    assert judged([0, 0], [0, bad]).worst == np.inf


# The law


SANE = {
    "EMT, copper": (EMT, lambda: bulk("Cu")),
    "EMT, an alloy": (EMT, lambda: bulk("CuAu", "rocksalt", a=4.6)),
    "Lennard-Jones, argon": (lambda: LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0), lambda: bulk("Ar", "fcc", a=5.3)),
    "Morse": (lambda: MorsePotential(r0=2.7, epsilon=0.5, rho0=4.0), lambda: bulk("Cu")),
}


@pytest.mark.parametrize("name", SANE)
def test_a_sane_calculator_passes(name):
    make_calculator, make_atoms = SANE[name]
    result = verify.sanity(make_calculator(), verify.shaken(make_atoms()))
    assert result.passed, result
    assert result.detail.startswith("energies at most")


class Broken(EMT):
    """Copper that is right where it is dense, and another thing where it is not."""

    def __init__(self, energy, force):
        super().__init__()
        self.change = energy, force

    def calculate(self, *arguments):
        super().calculate(*arguments)
        r = self.atoms.get_all_distances(mic=bool(self.atoms.pbc.any())) + 9 * np.eye(len(self.atoms))
        few = ((r < 3.0).sum(axis=1) < 5) & (r.min(axis=1) < 4.0)
        energy, force = self.change
        self.results["energy"] += energy * few.sum() if few.any() else 0.0
        self.results["free_energy"] = self.results["energy"]
        self.results["forces"][few, 0] += force


@pytest.mark.parametrize(("energy", "force"), [(-30.0, 0.0), (30.0, 0.0), (0.0, 60.0), (np.nan, 0.0)])
def test_the_law_bites_where_coordination_is_low(energy, force):
    crystal = verify.shaken(bulk("Cu", cubic=True).repeat(2))
    good, broken = verify.sanity(Broken(0.0, 0.0), crystal), verify.sanity(Broken(energy, force), crystal)
    assert (good.passed, broken.passed) == (True, False)
    if np.isnan(energy):
        assert "Cu-Cu at" in broken.detail
        assert "is not finite" in broken.detail
