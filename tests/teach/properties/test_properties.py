"""A student that is known to be off by a factor in; the properties of matter off by what follows from it out."""

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.emt import EMT

from flashace.teach.properties.elastic import constants
from flashace.teach.properties.property import DoesNotApply, Subject, is_crystal, is_molecule
from flashace.teach.properties.table import PROPERTIES

CRYSTAL = {"energy_volume", "elastic", "phonons"}
MOLECULE = {"bond_scan", "dihedral_scan"}


class Scaled(Calculator):
    """EMT times a factor."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.emt = factor, EMT()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.emt.calculate(self.atoms, ["energy", "forces"], list(system_changes))
        names = [name for name in self.implemented_properties if name in self.emt.results]
        self.results = {name: self.factor * np.asarray(self.emt.results[name]) for name in names}
        self.results["energy"] = self.results["free_energy"] = float(self.results["energy"])


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"radial.SETTLE": 5, "radial.STEPS": 20, "radial.BOX": 3.0, "phonons.SUPERCELL": 3.0, "drift.STEPS": 20}.items():
        monkeypatch.setattr(f"flashace.teach.properties.{name}", value)


def subject(atoms: Atoms, factor: float = 1.1) -> Subject:
    return Subject(Scaled(factor), EMT(), atoms, lambda precision: Scaled(factor), ("float64",), 500.0)


@pytest.fixture(scope="module")
def copper() -> Atoms:
    return bulk("Cu", a=3.59)


@pytest.mark.parametrize("name", sorted(CRYSTAL | MOLECULE | {"radial"}))
def test_a_student_that_is_its_teacher_is_off_by_nothing(name: str, copper: Atoms) -> None:
    atoms = molecule("CH3CH2OH") if name in MOLECULE else copper
    assert PROPERTIES[name](subject(atoms, 1.0)).number < 1e-6


def test_elastic_constants_are_those_of_the_literature_for_emt(copper: Atoms) -> None:
    """Jacobsen, Stoltze, Nørskov, Surf. Sci. 366, 394 (1996): this potential is fitted to C44 and the bulk modulus of copper."""
    C = constants(EMT(), copper)
    assert (C[0, 0] + 2 * C[0, 1]) / 3 == pytest.approx(134, abs=3)
    assert C[3, 3] == pytest.approx(C[5, 5])
    assert C[0, 0] == pytest.approx(C[1, 1])
    assert np.abs(C[:3, 3:]).max() < 1e-6


def test_a_factor_is_found_in_elastic_constants_and_phonons(copper: Atoms) -> None:
    found = PROPERTIES["elastic"](subject(copper))
    of_teacher = found.panels[0].teacher
    assert found.number == pytest.approx(0.1 * np.sqrt(np.mean(of_teacher**2)), rel=1e-3)
    frequencies = PROPERTIES["phonons"](subject(copper)).panels[0]
    np.testing.assert_allclose(frequencies.student, 1.1**0.5 * frequencies.teacher, atol=2e-3)
    assert 6 < frequencies.teacher.max() < 9  # THz; copper has 7.5
    assert frequencies.teacher.min() > -0.01


def test_a_factor_is_found_in_the_energy_over_volume(copper: Atoms) -> None:
    found = PROPERTIES["energy_volume"](subject(copper))
    assert found.number == pytest.approx(0.1 * np.std(found.panels[0].teacher), rel=1e-6)
    student, teacher = (float(text) for text in found.words.split("bulk modulus, GPa ")[1].strip(")").split(" ("))
    assert teacher == pytest.approx(134, abs=3)
    assert student == pytest.approx(1.1 * teacher, rel=1e-3)


@pytest.mark.parametrize("name", sorted(MOLECULE))
def test_a_factor_is_found_in_scans(name: str) -> None:
    found = PROPERTIES[name](subject(molecule("CH3CH2OH")))
    errors = [np.std(panel.student - panel.teacher) for panel in found.panels]
    spreads = [np.std(panel.teacher) for panel in found.panels]
    assert found.number == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert errors == pytest.approx([0.1 * spread for spread in spreads])
    assert len(found.panels) == (2 if name == "dihedral_scan" else 8)


def test_the_student_drifts_and_breaks_laws(copper: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROPERTIES["drift"](subject(copper)).number < 100
    assert PROPERTIES["drift"](subject(molecule("CH4"))).unit == "meV/atom/ps"
    broken = PROPERTIES["laws"](subject(copper))
    assert broken.number >= 1  # EMT jumps at its cutoff
    assert "cutoff" in broken.words


@pytest.mark.parametrize(("kind", "names"), [("molecule", MOLECULE), ("crystal", CRYSTAL), ("slab", set()), ("atom", set())])
def test_a_property_of_another_kind_of_matter_does_not_apply(kind: str, names: set[str]) -> None:
    build: dict[str, Callable[[], Atoms]] = {
        "molecule": lambda: molecule("C2H6"),
        "crystal": lambda: bulk("Cu"),
        "slab": lambda: fcc111("Cu", (1, 1, 3), vacuum=5.0, periodic=True),
        "atom": lambda: Atoms("Cu"),
    }
    atoms = build[kind]()
    assert is_crystal(atoms) == (kind == "crystal")
    assert is_molecule(atoms) == (kind == "molecule")
    for name in (CRYSTAL | MOLECULE) - names:
        with pytest.raises(DoesNotApply):
            PROPERTIES[name](subject(atoms))


def test_phonons_of_a_large_cell_say_why_not(copper: Atoms) -> None:
    with pytest.raises(CalculationFailed, match="32 atoms, and phonons are for"):
        PROPERTIES["phonons"](subject(copper.repeat((4, 4, 2))))
