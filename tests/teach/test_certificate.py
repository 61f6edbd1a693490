"""A student, a teacher and frames in; rows, verdicts and what a model file keeps of them out."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from flashace.data.frames import Labelled
from flashace.data.origin import Origin
from flashace.errors import FlashACEError
from flashace.potential.model_file import read_header, save_model
from flashace.teach.as_frames import as_frames
from flashace.teach.certificate import Certificate, Row, at_rest, certify, representatives
from flashace.teach.certificate import certificate as whole_certificate
from flashace.teach.properties.energy_volume import energy_volume
from flashace.teach.task import labelled
from flashace.verify.state import evaluate


class Off(Calculator):
    """EMT, and so much on each component of every force; where `knows` is not everything, it fails for other elements."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, force: float = 0.0, knows: str = "") -> None:
        super().__init__()
        self.force, self.knows = force, knows

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.knows and set(self.atoms.symbols) != {self.knows}:
            raise ValueError(f"knows {self.knows} alone")
        state = evaluate(EMT(), self.atoms)
        self.results = {"energy": state.energy, "forces": state.forces + self.force}
        if state.virial is not None:
            self.results["stress"] = (state.virial / self.atoms.get_volume())[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


# the others have tests of their own
certificate = partial(whole_certificate, properties={"energy_volume": energy_volume})


@pytest.fixture(scope="module")
def frames() -> list[Labelled]:
    images = []
    for i in range(4):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=i)
        images.append(labelled(atoms, EMT(), config_type="hot" if i > 1 else "cold"))
    return as_frames(images, "emt")


def rows_of(found: Certificate) -> dict[str, Row]:
    return {row.key: row for row in found.rows}


def test_errors_on_frames_have_their_size_and_are_judged(frames: list[Labelled]) -> None:
    bounds = {"teacher_forces": 30.0, "trajectory_forces": 10.0, "energy_volume": 1.0}
    found = certificate(Off(0.02), EMT(), [bulk("Cu")], frames, frames[:2], bounds=bounds)
    rows = rows_of(found)
    assert rows["teacher_forces"].number == pytest.approx(20.0)
    assert rows["teacher_forces"].passed is True
    assert rows["trajectory_forces"].passed is False
    assert rows["energy_volume"].number < 1e-6
    assert rows["energy_volume"].passed is True
    assert rows["teacher_energy"].passed is None
    assert not found.passed()
    assert found.passed({"teacher_forces": 30.0, "energy_volume": 1.0})
    assert not found.passed({"teacher_forces": 19.0})
    assert [row["config_type"] for row in found.errors["teacher"]] == ["cold", "hot", "all"]


def test_errors_from_scratch_stand_beside_those_of_the_student(frames: list[Labelled]) -> None:
    found = certificate(Off(0.02), EMT(), [], dft=frames, scratch=Off(0.05))
    assert "from scratch 50" in rows_of(found)["dft_forces"].words
    assert found.errors["dft, from scratch"][-1]["forces_rmse"] == pytest.approx(50)


def test_a_student_with_another_zero_of_energy_is_compared_without_it(frames: list[Labelled]) -> None:
    moved = [replace(frame, energy=frame.energy - 100.0 * len(frame.atoms)) for frame in frames]
    apart = rows_of(certificate(Off(), EMT(), [], held_out=moved))
    assert apart["teacher_energy"].number == pytest.approx(1e5)
    finished = rows_of(certificate(Off(), EMT(), [], held_out=moved, dft=frames))
    assert finished["teacher_energy"].number < 1e-3
    assert finished["dft_energy"].number < 1e-3


def test_what_was_not_measured_says_so_and_has_not_passed(frames: list[Labelled]) -> None:
    bounds = {"teacher_forces": 30.0, "phonons": 1.0, "teacher_stress": 1.0}
    found = certificate(Off(), EMT(), [molecule("CH4")], bounds=bounds)
    for name in bounds:
        row = rows_of(found)[name]
        assert row.number is None
        assert row.words.startswith("not measured: ")
        assert row.passed is False
    assert not found.passed()
    assert not found.passed({"dihedral_scan": 1e9})


def test_a_failure_of_student_or_teacher_is_a_row(frames: list[Labelled]) -> None:
    found = certificate(Off(knows="Au"), EMT(), [bulk("Cu")], frames)
    assert "the student failed at emt#0" in rows_of(found)["teacher_forces"].words
    assert "knows Au alone" in rows_of(found)["energy_volume"].words
    of_teacher = certificate(Off(), Off(knows="Au"), [bulk("Cu")])
    assert "the teacher failed" in rows_of(of_teacher)["energy_volume"].words


def test_bounds_that_mean_nothing_are_refused() -> None:
    with pytest.raises(FlashACEError, match="bounds: expected names of"):
        certificate(Off(), EMT(), [], bounds={"phonon": 1.0})
    with pytest.raises(FlashACEError, match="a number of zero or more, got -1"):
        certificate(Off(), EMT(), [], bounds={"phonons": -1.0})


def test_one_seed_of_each_composition_is_taken_the_smallest_first() -> None:
    seeds = [bulk("Cu", cubic=True), molecule("CH4"), bulk("Cu"), bulk("CuAu", "cesiumchloride", a=3.0)]
    assert [len(atoms) for atoms in representatives(seeds)] == [1, 2, 5]
    assert len(representatives(seeds, most=1)) == 1


def test_a_seed_is_brought_to_rest_by_the_teacher() -> None:
    rest = at_rest(bulk("Cu", a=3.8), EMT())
    assert rest.get_volume() == pytest.approx(3.59**3 / 4, rel=0.01)
    assert rest.calc is None


def test_the_run_folder_gets_json_and_pictures(tmp_path: Path) -> None:
    found = certificate(Off(), EMT(), [bulk("Cu")], folder=tmp_path)
    assert Certificate.from_dict(json.loads((tmp_path / "certificate.json").read_text())) == found
    assert (tmp_path / "certificate_energy_volume_Cu.png").stat().st_size > 1000


def test_the_certificate_is_a_part_of_the_model_file(
    make_model: Callable, flashace: Callable, tmp_path: Path, frames: list[Labelled]
) -> None:
    path = tmp_path / "model.pt"
    save_model(path, make_model(), {"seed": 7})
    found = certificate(Off(0.02), EMT(), [bulk("Cu")], frames, bounds={"teacher_forces": 10.0}, name="emt", licence="LGPL (ASE)")
    certify(path, found)
    provenance = read_header(path)["provenance"]
    assert provenance["seed"] == 7
    assert provenance["teacher"] == {"name": "emt", "licence": "LGPL (ASE)"}
    assert Certificate.from_dict(provenance["certificate"]) == found
    shown = flashace("info", path)
    assert shown.exit_code == 0
    for part in ("student of emt", "LGPL (ASE)", "NOT HELD", "not measured", "energy volume"):
        assert part in shown.output, part


def test_a_model_file_is_a_student(make_model: Callable, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(path, make_model(), {})
    silicon = Atoms("Si2", [[0, 0, 0], [1.4, 1.4, 1.4]], cell=np.eye(3) * 3.8, pbc=True)
    frame = Labelled.of(silicon, {"energy": 0.0, "forces": np.zeros((2, 3))}, "", Origin("si", 0))
    found = certificate(path, EMT(), [], [frame])
    assert rows_of(found)["teacher_forces"].number > 0
