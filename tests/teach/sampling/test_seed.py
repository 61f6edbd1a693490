"""What a structure is, whichever way it is written."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule

from flashace.teach.sampling.seed import clashes, look_at

BOXED = molecule("CH3CH2OH", cell=[15, 15, 15], pbc=True)
BOXED.positions -= [1, 0, 0]
BOXED.wrap()
SLAB = fcc111("Cu", (2, 2, 3), vacuum=8)


@pytest.mark.parametrize(
    ("atoms", "shape", "bonds"),
    [
        (molecule("CH3CH2OH"), "molecule", 8),
        (BOXED, "molecule", 8),
        (Atoms("He"), "molecule", 0),
        (bulk("Cu"), "crystal", 0),
        (bulk("NaCl", "rocksalt", a=5.64), "crystal", 0),
        (bulk("Xe", "fcc", a=6.2), "crystal", 0),
        (SLAB, "slab", 0),
        (Atoms(SLAB, pbc=True), "slab", 0),
        (graphene(vacuum=8), "slab", 0),
    ],
)
def test_shape_and_bonds(atoms, shape, bonds):
    seed = look_at(atoms)
    assert (seed.shape, seed.bonds.number_of_edges()) == (shape, bonds)
    assert seed.bonds.number_of_nodes() == len(atoms)


def test_molecules_are_made_whole(waters):
    assert waters.shape == "molecules"
    assert waters.bonds.number_of_edges() == 4
    lengths = [waters.atoms.get_distance(a, b) for a, b in waters.bonds.edges]
    assert np.allclose(lengths, lengths[0], atol=1e-3)
    assert look_at(BOXED).atoms.get_distance(0, 1) == pytest.approx(molecule("CH3CH2OH").get_distance(0, 1))


def test_labels_and_constraints_stay_behind():
    atoms = molecule("H2O")
    atoms.info["energy"] = 1.0
    assert look_at(atoms).atoms.info == {}


def test_clashes_are_new_bonds(ethanol):
    assert not clashes(ethanol.atoms, ethanol.bonds)
    close = ethanol.atoms.copy()
    close.positions[3] = close.positions[6] + [0.7, 0, 0]
    assert clashes(close, ethanol.bonds)
