"""Disturbances: their sizes, and what they leave as it is."""

import numpy as np
import pytest
from ase.build import bulk, fcc111

from flashace.teach.sampling import moves


def bonds_of(seed, atoms):
    return np.array([atoms.get_distance(a, b) for a, b in seed.bonds.edges])


def test_sizes_of_displacements(ethanol, rng):
    for move in (moves.rattled(ethanol.atoms, 0.1, rng), moves.bent(ethanol.atoms, ethanol.bonds, 0.1, rng)):
        assert np.sqrt(((move.positions - ethanol.atoms.positions) ** 2).mean()) == pytest.approx(0.1, rel=0.3)


def test_bent_molecules_keep_their_bonds_better(ethanol, rng):
    before = bonds_of(ethanol, ethanol.atoms)
    change = {
        name: np.mean([np.abs(bonds_of(ethanol, make()) - before).max() for _ in range(20)])
        for name, make in {
            "rattled": lambda: moves.rattled(ethanol.atoms, 0.1, rng),
            "bent": lambda: moves.bent(ethanol.atoms, ethanol.bonds, 0.1, rng),
        }.items()
    }
    assert change["bent"] < 0.75 * change["rattled"]


def test_strain_has_the_volume_that_was_asked_for(alloy, waters, rng):
    strained = moves.strained(alloy.atoms, 1.1, 0.05, rng)
    assert strained.get_volume() == pytest.approx(1.1 * alloy.atoms.get_volume())
    assert np.allclose(strained.get_scaled_positions(), alloy.atoms.get_scaled_positions())
    strained = moves.strained(waters.atoms, 1.2, 0.05, rng, waters.bonds)
    assert strained.get_volume() == pytest.approx(1.2 * waters.atoms.get_volume())
    assert np.allclose(bonds_of(waters, strained), bonds_of(waters, waters.atoms))


def test_strain_in_a_plane_leaves_the_normal(rng):
    slab = fcc111("Cu", (2, 2, 3), vacuum=8)
    plane = np.linalg.svd(slab.cell.array[:2], full_matrices=False)[2]
    strained = moves.deformed(slab, moves.random_strain(1.1, 0.05, plane, rng))
    assert np.allclose(strained.positions[:, 2], slab.positions[:, 2])
    assert strained.get_volume() == pytest.approx(1.1 * slab.get_volume())


def test_supercells_grow_along_the_shortest_height():
    assert len(moves.supercell(bulk("Cu", cubic=True), 20)) == 16
    assert len(moves.supercell(bulk("Cu", cubic=True), 1000)) == 108  # 3 × 3 × 3 of 3.6 Å: more than ENOUGH
    assert len(moves.supercell(bulk("Cu", cubic=True), 3)) == 4
