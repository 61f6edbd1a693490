"""What the ways of sampling start from."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from flashace.teach.config import SampleConfig
from flashace.teach.sampling.seed import look_at


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def settings():
    return SampleConfig(teacher="emt", max_atoms=16, temperatures=(300.0, 900.0))


@pytest.fixture
def ethanol():
    return look_at(molecule("CH3CH2OH"))


@pytest.fixture
def copper():
    return look_at(bulk("Cu"))


@pytest.fixture
def alloy():
    atoms = bulk("Cu", cubic=True, a=3.75)
    atoms.numbers[:2] = 79
    return look_at(atoms)


@pytest.fixture
def waters():
    """Two in a small periodic cell; one goes through a side of it."""
    one, other = molecule("H2O"), molecule("H2O")
    other.translate([2.4, 2.4, 2.4])
    atoms = Atoms(one + other, cell=[4.8, 4.8, 4.8], pbc=True)
    atoms.wrap()
    return look_at(atoms)
