"""What is carved out of large structures: the surroundings of an atom stay as they are, and faces fit."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from flashace.structure.neighbors import find_pairs
from flashace.teach.carving import carve

R_MAX = 4.0


def hot(atoms, width=0.15, seed=0):
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=width, size=atoms.positions.shape)
    return atoms


def surroundings(atoms, i, r_max=R_MAX):
    pairs = find_pairs(atoms, r_max)
    own = pairs.i == i
    return np.array(sorted(np.round(np.c_[atoms.numbers[pairs.j[own]], pairs.edge_vec[own]], 6).tolist()))


def check_centre(atoms, piece, centre):
    """The atom that it is about has the same neighbours as before."""
    place = piece.info["centre"]
    assert piece.arrays["intact"][place]
    assert np.allclose(surroundings(piece, place), surroundings(atoms, centre), atol=1e-5)
    for i in np.flatnonzero(piece.arrays["intact"])[:5]:
        assert len(surroundings(piece, i)) == len(surroundings(atoms, piece.arrays["number"][i]))


def numbered(atoms):
    atoms.arrays["number"] = np.arange(len(atoms))
    return atoms


@pytest.mark.parametrize(
    ("crystal", "repeat"),
    [(bulk("Cu", cubic=True), 7), (bulk("NaCl", "rocksalt", a=5.64, cubic=True), 5), (bulk("Si", cubic=True), 5), (bulk("Mg"), (8, 8, 5))],
)
def test_a_hot_crystal_becomes_a_small_one_whose_faces_fit(crystal, repeat):
    atoms = numbered(hot(crystal.repeat(repeat), 0.12))
    centre = len(atoms) // 2
    piece = carve(atoms, centre, 5.0, R_MAX)
    assert "a small periodic cell" in piece.info["carved"]
    assert piece.pbc.all()
    assert len(piece) < len(atoms) / 2
    assert len(piece) / piece.get_volume() == pytest.approx(len(atoms) / atoms.get_volume(), rel=0.02)
    shortest = min(np.linalg.norm(find_pairs(atoms, R_MAX).edge_vec, axis=1))
    assert min(np.linalg.norm(find_pairs(piece, R_MAX).edge_vec, axis=1)) >= 0.8 * shortest
    check_centre(atoms, piece, centre)
    assert np.unique(piece.numbers, return_counts=True)[1].tolist() == [len(piece) // len(set(atoms.numbers))] * len(set(atoms.numbers))


def test_of_a_slab_the_vacuum_stays():
    atoms = numbered(hot(fcc111("Cu", (9, 10, 4), vacuum=8.0, orthogonal=True, periodic=True), 0.1))
    centre = len(atoms) - 40
    piece = carve(atoms, centre, 5.0, R_MAX)
    assert "a small periodic cell" in piece.info["carved"]
    assert np.allclose(piece.cell[2], atoms.cell[2])
    assert len(piece) < len(atoms) / 2
    check_centre(atoms, piece, centre)


def test_of_a_liquid_a_cluster_with_whole_molecules():
    water = molecule("H2O")
    rng = np.random.default_rng(1)
    box = Atoms(cell=[18.6] * 3, pbc=True)
    for place in np.ndindex(6, 6, 6):
        one = water.copy()
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.translate(3.1 * np.array(place))
        box += one
    box.wrap()
    numbered(box)
    piece = carve(box, 300, 6.0, R_MAX)
    assert "a cluster in vacuum" in piece.info["carved"]
    assert not piece.pbc.any()
    kinds = piece.get_chemical_symbols()
    assert kinds.count("H") == 2 * kinds.count("O")
    assert 40 < len(piece) < 200
    check_centre(box, piece, 300)
    assert not piece.arrays["intact"].all()


def test_of_disorder_and_of_a_large_particle_a_cluster():
    rng = np.random.default_rng(0)
    glass = bulk("Cu", cubic=True).repeat(6)
    glass.positions += rng.normal(scale=1.2, size=glass.positions.shape)
    piece = carve(numbered(glass), 100, 5.5, R_MAX)
    assert "a cluster in vacuum" in piece.info["carved"]
    check_centre(glass, piece, 100)
    particle = bulk("Cu", cubic=True).repeat(6)
    particle.pbc = False
    piece = carve(numbered(particle), 400, 6.0, R_MAX)
    assert "a cluster in vacuum" in piece.info["carved"]
    check_centre(particle, piece, 400)


@pytest.mark.parametrize("atoms", [bulk("Cu", cubic=True), molecule("C6H6"), bulk("Cu", cubic=True).repeat(2)])
def test_what_is_small_stays_whole(atoms):
    piece = carve(atoms, 1, 6.0, R_MAX)
    assert len(piece) == len(atoms)
    assert np.allclose(piece.positions, atoms.positions)
    assert piece.arrays["intact"].all()
    assert "carved" not in piece.info
