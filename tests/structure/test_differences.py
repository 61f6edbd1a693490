"""Steps of difference quotients are told from what dynamics and relaxations do."""

import numpy as np
import pytest
from ase import Atoms

from flashace.structure.differences import tiny_step


def strained(atoms, strain):
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return other


def moved(atoms, displacements):
    other = atoms.copy()
    other.positions += displacements
    return other


ONE = np.zeros((8, 3))
ONE[3, 1] = 1e-3
TWO = ONE.copy()
TWO[3, 2] = 1e-3
SHEAR = np.zeros((3, 3))
SHEAR[0, 1] = 1e-3


def test_one_coordinate_or_a_strain_is_told(structure):
    atoms = structure("crystal")
    assert tiny_step(atoms, moved(atoms, ONE)) == "0.001 Å in one coordinate"
    assert tiny_step(moved(atoms, -ONE), moved(atoms, ONE)) == "0.002 Å in one coordinate"
    assert tiny_step(atoms, strained(atoms, SHEAR)) == "a strain of 0.001"
    assert tiny_step(strained(atoms, -SHEAR), strained(atoms, SHEAR)) == "a strain of 0.002"


@pytest.mark.parametrize(
    "step",
    {
        "nothing": lambda atoms: atoms.copy(),
        "two coordinates": lambda atoms: moved(atoms, TWO),
        "a large step": lambda atoms: moved(atoms, 10 * ONE),
        "a large strain": lambda atoms: strained(atoms, 10 * SHEAR),
        "a barostat": lambda atoms: moved(strained(atoms, SHEAR), ONE),
        "a cell without its atoms": lambda atoms: Atoms(atoms.numbers, atoms.positions, cell=1.001 * atoms.cell.array),
        "another atom": lambda atoms: atoms[:-1],
    }.items(),
    ids=lambda step: step[0],
)
def test_what_is_none_of_them_is_not(structure, step):
    before = structure("crystal")
    assert tiny_step(before, step[1](structure("crystal"))) is None


def test_cells_without_a_volume_are_none_of_them(structure):
    wire = structure("wire")
    longer = wire.copy()
    longer.set_cell(1.001 * wire.cell.array, scale_atoms=True)
    assert tiny_step(wire, longer) is None
