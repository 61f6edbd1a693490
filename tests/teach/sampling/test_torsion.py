"""Turned bonds: which ones, how often, and never into each other."""

from collections import Counter

import numpy as np
from ase.build import molecule

from flashace.teach.sampling.seed import clashes, look_at
from flashace.teach.sampling.torsion import torsion, turnable, turned_seed


def test_bonds_that_can_be_turned(ethanol):
    assert sorted((bond.root, bond.tip) for bond in turnable(ethanol)) == [(1, 0), (1, 2)]  # of the smaller side: CH3, and OH
    assert turnable(look_at(molecule("C6H6"))) == []  # a ring
    assert turnable(look_at(molecule("CO2"))) == []  # straight
    assert turnable(look_at(molecule("H2O"))) == []
    assert len(turnable(look_at(molecule("2-butyne")))) == 3


def test_all_angles_of_all_bonds_come_and_no_atoms_meet(ethanol, rng):
    frames = [turned_seed(ethanol, rng) for _ in range(150)]
    assert not any(clashes(atoms, ethanol.bonds) for atoms in frames)
    for dihedral, least in (((0, 1, 2, 3), 6), ((2, 1, 0, 6), 3)):
        found, _ = np.histogram([atoms.get_dihedral(*dihedral) for atoms in frames], bins=6, range=(0, 360))
        assert found.min() >= least, (dihedral, found)


def test_frames_add_up(ethanol, rng, settings):
    tasks = torsion([ethanol], 30, rng, settings)
    assert sum(getattr(task, "num_frames", 1) for task in tasks) == 30
    assert set(Counter(task.kind for task in tasks)) == {"torsion", "torsion-relaxed"}
    assert torsion([look_at(molecule("C6H6"))], 30, rng, settings) == []
