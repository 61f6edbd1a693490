"""Teachers by name, what is known of them, and what a frame of theirs has."""

import importlib.util

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.emt import EMT

from flashace.errors import FlashACEError
from flashace.teach.task import APART, labelled
from flashace.teach.teachers import KNOWN, Teacher, teacher

STEP = 1e-3  # Å


def test_a_name_is_known_or_says_where_it_comes_from() -> None:
    assert teacher("emt").calculator().name == "emt"
    assert isinstance(teacher("ase.calculators.emt:EMT").calculator(), EMT)
    with pytest.raises(FlashACEError, match=r"expected emt, tblite.*got 'mace'"):
        teacher("mace")


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.extra])
def test_a_missing_package_is_named_with_the_line_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(FlashACEError, match=rf"teacher {name}: .* pip install '\.\[{name}\]'"):
        teacher(name)


def test_arguments_of_the_user_replace_those_of_the_table() -> None:
    assert teacher("tblite", ("method=GFN1-xTB",)).calculator().parameters.method == "GFN1-xTB"
    assert teacher("emt", ("b=2", "a=1")).source == "emt a=1 b=2"


def test_a_teacher_tells_what_it_was_not_taught() -> None:
    assert Teacher("chgnet").unknown(["Si", "Po", "O", "Rn"]) == ["Po", "Rn"]
    assert len(KNOWN["chgnet"].elements) == 89
    assert Teacher("tblite").unknown(["U", "H"]) == ["U"]
    assert Teacher("emt").unknown(["Si"]) == []
    assert Teacher("flashace:model.pt").unknown(["Si"]) == []


class Told(EMT):
    """EMT whose results are changed by a function."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.change(self.results)


def test_the_energy_is_the_one_whose_derivative_the_forces_are() -> None:
    atoms = bulk("Cu")
    frame = labelled(atoms, Told(lambda results: results.update(free_energy=results["energy"] - 0.5)))
    assert frame.info[APART] == -0.5
    assert frame.get_potential_energy() == labelled(atoms, EMT()).get_potential_energy() - 0.5
    assert APART not in labelled(atoms, Told(lambda results: results.update(free_energy=results["energy"] - 1e-4))).info


def test_a_stress_of_nine_numbers_is_the_same_stress() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    expected = labelled(atoms, EMT()).get_stress()
    full = labelled(atoms, Told(lambda results: results.update(stress=results["stress"][[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3))))
    assert (full.get_stress() == expected).all()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda results: results.update(energy=np.nan), "energy: expected finite"),
        (lambda results: results.update(free_energy=np.inf), "free_energy: expected finite"),
        (lambda results: results.update(forces=np.zeros((3, 3))), r"forces: expected finite numbers of shape \(1, 3\)"),
        (lambda results: results.pop("forces"), "forces: expected"),
        (lambda results: results["stress"].fill(np.nan), "stress: expected finite"),
        (lambda results: results["nothing"], "KeyError: 'nothing'"),
    ],
)
def test_what_is_no_label_fails(change, part: str) -> None:
    with pytest.raises(CalculationFailed, match=part):
        labelled(bulk("Cu"), Told(change))


def test_a_result_of_the_structure_before_is_none_of_this_one() -> None:
    calculator = Told(lambda results: None)
    labelled(bulk("Cu"), calculator)
    calculator.calculate = lambda *rest: None
    with pytest.raises(CalculationFailed, match="energy"):
        labelled(bulk("Cu"), calculator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "step"),
    [
        ("tblite", (), STEP),
        ("chgnet", (), 3 * STEP),
        ("sevennet", (), 3 * STEP),
        ("sevennet", ("model=7net-l3i5",), 3 * STEP),
        ("diep", (), 3 * STEP),
    ],
)
def test_real_teachers_have_forces_and_stress_of_their_energy(name: str, arguments: tuple[str, ...], step: float) -> None:
    """Of the last three, which compute in float32, to a hundredth."""
    pytest.importorskip(KNOWN[name].package)
    calculator = teacher(name, arguments).calculator()
    atoms = carbon_dioxide() if name == "tblite" else bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    frame = labelled(atoms, calculator)

    def slope(change) -> float:
        ahead, behind = (change(atoms.copy(), sign * step) for sign in (1, -1))
        return (labelled(ahead, calculator).get_potential_energy() - labelled(behind, calculator).get_potential_energy()) / (2 * step)

    def moved(atoms: Atoms, by: float) -> Atoms:
        atoms.positions[1, 2] += by
        return atoms

    def sheared(atoms: Atoms, by: float) -> Atoms:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + np.array([[by, by / 2, 0], [by / 2, 0, 0], [0, 0, 0]])), scale_atoms=True)
        return atoms

    stress = frame.get_stress()
    assert -slope(moved) == pytest.approx(frame.get_forces()[1, 2], rel=1e-2, abs=1e-2)
    assert slope(sheared) / atoms.get_volume() == pytest.approx(stress[0] + stress[5], rel=1e-2, abs=1e-4)


def carbon_dioxide() -> Atoms:
    atoms = molecule("CO2")
    atoms.cell, atoms.pbc = [3.8, 4.0, 5.6], True
    return atoms


def test_tblite_labels_molecules_of_many_sizes_with_one_calculator() -> None:
    """It keeps its last density: what it says of a structure must not depend on the one before."""
    pytest.importorskip("tblite")
    frames = [molecule(name) for name in ("H2O", "CH3CH2OH", "CO2", "CH3CH2OH", "H")]
    calculator = teacher("tblite").calculator()
    for atoms in frames:
        one, fresh = labelled(atoms, calculator), labelled(atoms, teacher("tblite").calculator())
        assert one.get_potential_energy() == fresh.get_potential_energy()
        assert (one.get_forces() == fresh.get_forces()).all()
