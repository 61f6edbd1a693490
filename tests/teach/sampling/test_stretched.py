"""Bonds that break, protons on their way, and molecules that touch."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.data import covalent_radii

from flashace.teach.sampling.seed import look_at
from flashace.teach.sampling.stretched import LONG, SHORT, bonds_of, contacts_of, stretched, transfers_of


def test_one_bond_alone_changes_its_length(ethanol, rng):
    assert len(bonds_of(ethanol)) == 8
    for move in bonds_of(ethanol):
        atoms = move(rng)
        ratio = np.array([atoms.get_distance(a, b) / ethanol.atoms.get_distance(a, b) for a, b in ethanol.bonds.edges])
        changed = ratio[~np.isclose(ratio, 1)]
        assert len(changed) == 1
        assert SHORT[0] <= changed[0] <= LONG[1]


@pytest.fixture
def dimer():
    """The first hands a proton to the second, which is 2.8 Å away."""
    donor = Atoms("OH2", [(0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0)])
    acceptor = Atoms("OH2", [(2.8, 0, 0), (3.1, 0.5, 0.75), (3.1, 0.5, -0.75)])
    return look_at(donor + acceptor)


def test_a_proton_moves_from_donor_to_acceptor(dimer, rng):
    moves = transfers_of(dimer)
    assert len(moves) == 1  # those that look away stay
    places = np.array([moves[0](rng).get_distances(1, [0, 3]) for _ in range(50)])
    assert places.min() > 0.7
    assert (places.argmin(axis=1) == 0).any()
    assert (places.argmin(axis=1) == 1).any()


def test_molecules_come_as_near_as_they_are_asked_to(dimer, rng):
    (move,) = contacts_of(dimer)
    for _ in range(5):
        atoms = move(rng)
        distances = np.linalg.norm(atoms.positions[:3, None] - atoms.positions[None, 3:], axis=2)
        radii = covalent_radii[atoms.numbers[:3]][:, None] + covalent_radii[atoms.numbers[3:]][None]
        assert 1.0 <= (distances / radii).min() < 2.1


def test_kinds_in_turn(dimer, ethanol, rng, settings):
    kinds = [task.kind for task in stretched([dimer], 6, rng, settings)]
    assert kinds == ["stretched", "proton", "contact"] * 2
    assert {task.kind for task in stretched([ethanol], 4, rng, settings)} == {"stretched"}
    assert stretched([look_at(molecule("C6H6")), look_at(Atoms("He"))], 2, rng, settings)[0].kind == "stretched"
    assert stretched([look_at(Atoms("He"))], 2, rng, settings) == []
