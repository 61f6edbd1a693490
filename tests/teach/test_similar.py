"""Frames that are nearly the same: however they are written, and not when they differ by what 20 fs of dynamics do."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from flashace.teach.sampling.trajectory import Trajectory
from flashace.teach.similar import fingerprint, near_duplicates


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), bulk("Cu", cubic=True).repeat((2, 1, 1))])
def test_turned_shifted_and_ordered_anew_it_is_the_same(atoms):
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=1)
    other = atoms[np.random.default_rng(0).permutation(len(atoms))]
    other.rotate(37, (1, 2, 3), rotate_cell=True)
    other.translate((0.3, 0.2, -0.4))
    assert np.allclose(fingerprint(other), fingerprint(atoms), atol=1e-9)
    assert near_duplicates([atoms, other, atoms.copy()]) == [1, 2]


def test_only_the_same_atoms_are_compared():
    one, other = bulk("Cu"), bulk("Cu")
    other.numbers[:] = 28
    assert near_duplicates([one, other, bulk("Cu"), bulk("Cu").repeat((2, 1, 1))]) == [2]


def test_one_femtosecond_is_near_and_twenty_are_not():
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    atoms.rattle(0.05, seed=1)
    frames = Trajectory(atoms, 300.0, 1.0, 1, 80, 40.0, seed=1)(EMT())[40:]
    assert len(near_duplicates(frames[::20])) == 0
    assert all(near_duplicates([one, other]) == [1] for one, other in zip(frames[::5], frames[1::5], strict=True))


def test_a_chain_does_not_go_as_a_whole():
    frames = [bulk("Cu", a=3.6 + 0.0004 * n) for n in range(40)]
    kept = 40 - len(near_duplicates(frames))
    assert 2 <= kept < 20
    assert 0 not in near_duplicates(frames)
