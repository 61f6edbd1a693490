"""Molecules in; the bonds that are in no ring, and the molecule turned and stretched at them, out."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from flashace.teach.bonds import acyclic_bonds
from flashace.teach.sampling.seed import look_at


@pytest.fixture
def ethanol() -> Atoms:
    return molecule("CH3CH2OH")


def test_every_bond_of_ethanol_is_acyclic_and_two_of_them_turn(ethanol: Atoms) -> None:
    bonds = acyclic_bonds(look_at(ethanol).bonds)
    assert len(bonds) == look_at(ethanol).bonds.number_of_edges() == 8
    assert sorted("".join(sorted(ethanol.symbols[[bond.root, bond.tip]])) for bond in bonds if bond.turns) == ["CC", "CO"]
    assert all(len(bond.moving) <= len(ethanol) / 2 for bond in bonds)


def test_bonds_of_a_ring_are_none() -> None:
    benzene = molecule("C6H6")
    bonds = acyclic_bonds(look_at(benzene).bonds)
    assert len(bonds) == 6
    assert not any(bond.turns for bond in bonds)


def test_a_turn_keeps_all_lengths_of_both_parts_and_changes_the_dihedral(ethanol: Atoms) -> None:
    bond = next(bond for bond in acyclic_bonds(look_at(ethanol).bonds) if bond.turns)
    turned = bond.turned(ethanol, 40.0)
    rest = [i for i in range(len(ethanol)) if i not in bond.moving]
    for part in ([*bond.moving, bond.root], [*rest, bond.tip]):
        np.testing.assert_allclose(turned[part].get_all_distances(), ethanol[part].get_all_distances(), atol=1e-12)
    np.testing.assert_array_equal(turned.positions[rest], ethanol.positions[rest])
    graph = look_at(ethanol).bonds
    a = next(i for i in graph[bond.root] if i != bond.tip)
    d = next(i for i in graph[bond.tip] if i != bond.root)
    dihedral = [atoms.get_dihedral(a, bond.root, bond.tip, d) for atoms in (ethanol, turned)]
    assert abs((dihedral[1] - dihedral[0] + 180) % 360 - 180) == pytest.approx(40.0)
    np.testing.assert_allclose(bond.turned(ethanol, 360.0).positions, ethanol.positions, atol=1e-12)


def test_a_stretched_bond_has_the_asked_length(ethanol: Atoms) -> None:
    bond = acyclic_bonds(look_at(ethanol).bonds)[0]
    stretched = bond.stretched(ethanol, 1.3)
    ends = bond.root, bond.tip
    assert stretched.get_distance(*ends) == pytest.approx(1.3 * ethanol.get_distance(*ends))
