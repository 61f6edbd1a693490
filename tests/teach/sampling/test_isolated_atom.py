"""An atom alone, for teachers with and without a cell."""

import pytest
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

from flashace.teach.sampling.isolated_atom import IsolatedAtom


class PeriodicOnly(EMT):
    def calculate(self, atoms, *arguments):
        if not atoms.pbc.all():
            raise ValueError("no cell")
        super().calculate(atoms, *arguments)


class Never(EMT):
    def calculate(self, *arguments):
        raise ValueError("no neighbours")


def test_without_a_cell_where_that_can_be():
    (frame,) = IsolatedAtom(Atoms("Cu"))(EMT())
    assert frame.info["config_type"] == "isolated_atom"
    assert not frame.pbc.any()
    (boxed,) = IsolatedAtom(Atoms("Cu"))(PeriodicOnly())
    assert boxed.pbc.all()
    assert boxed.get_potential_energy() == pytest.approx(frame.get_potential_energy())
    with pytest.raises(CalculationFailed, match="no neighbours"):
        IsolatedAtom(Atoms("Cu"))(Never())
