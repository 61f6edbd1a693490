"""A teacher that does everything wrong, asked by this process; and what is said of it before a fit."""

import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

from flashace.cli.teaching import best_of
from flashace.data.frames import Labelled
from flashace.errors import FlashACEError
from flashace.teach.as_frames import as_frames
from flashace.teach.certificate import property_rows
from flashace.teach.guarded import Guarded
from flashace.teach.properties.energy_volume import energy_volume
from flashace.teach.task import labelled
from flashace.teach.teachers import Teacher
from flashace.verify.state import evaluate

# what it does wrong is told by the number of atoms, which a label keeps
BAD = """
import os, time
from ase.calculators.emt import EMT

class Odd(Exception):
    pass

class Bad(EMT):
    def calculate(self, atoms, *rest):
        print("noise")
        if len(atoms) == 2:
            raise Odd("two")
        if len(atoms) == 3:
            time.sleep(100)
        if len(atoms) == 5:
            os._exit(3)
        super().calculate(atoms, *rest)
        if len(atoms) == 6:
            self.results["energy"] = float("nan")

class Hangs(EMT):
    def calculate(self, *rest):
        time.sleep(100)

class Raises(EMT):
    def calculate(self, *rest):
        raise Exception("always")

class Broken(EMT):
    def __init__(self):
        raise Exception("no weights")
"""


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of bad teachers, which other processes can import."""
    (tmp_path / "bad_ones.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    return "bad_ones"


def copper(num: int) -> Atoms:
    atoms = bulk("Cu").repeat((num, 1, 1))
    atoms.rattle(0.05, seed=num)
    return atoms


def test_each_way_to_fail_is_a_calculation_that_failed_and_the_rest_goes_on(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    reasons = {2: "Odd: two", 3: r"no answer within 2 s \(--timeout\)", 5: "exit status 3", 6: "energy: expected finite numbers"}
    with Guarded(Teacher(f"{bad}:Bad"), timeout=2.0) as calculator:
        for num in range(1, 7):
            if num in reasons:
                with pytest.raises(CalculationFailed, match=reasons[num]):
                    evaluate(calculator, copper(num))
            else:
                got, expected = evaluate(calculator, copper(num)), evaluate(EMT(), copper(num))
                assert got.energy == pytest.approx(expected.energy, abs=1e-12)
                assert np.allclose(got.forces, expected.forces, atol=1e-12)
                assert np.allclose(got.virial, expected.virial, atol=1e-12)
        assert calculator._process.is_alive()
        process = calculator._process
    assert not process.is_alive()
    assert "noise" not in capfd.readouterr().out


def test_one_that_always_hangs_is_soon_asked_no_more(bad: str) -> None:
    began = time.monotonic()
    with Guarded(Teacher(f"{bad}:Hangs"), timeout=0.2) as calculator:
        for _ in range(2):
            with pytest.raises(CalculationFailed, match="no answer within"):
                evaluate(calculator, copper(1))
        asked = time.monotonic()
        for _ in range(100):
            with pytest.raises(CalculationFailed, match="asked no more, after 2 times in a row"):
                evaluate(calculator, copper(1))
        assert time.monotonic() - asked < 0.5 * (asked - began)


def test_one_that_cannot_be_made_says_so_each_time(bad: str) -> None:
    calculator = Guarded(Teacher(f"{bad}:Broken"))
    for _ in range(2):
        with pytest.raises(FlashACEError, match="expected a calculator, got Exception: no weights"):
            calculator.start()


@pytest.fixture
def frames() -> list[Labelled]:
    return as_frames([labelled(copper(1 + i % 2 * 3), EMT(), config_type="a") for i in range(4)], "emt")


def test_bad_teachers_are_put_aside_by_name_and_the_good_one_is_taken(
    bad: str, frames: list[Labelled], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{bad}:Hangs", f"{bad}:Broken", f"{bad}:Raises", "emt"]
    name, errors = best_of(names, (), 3.0, [frame.atoms for frame in frames], frames, timeout=0.5)
    assert name == "emt"
    assert errors is not None
    said = " ".join(capsys.readouterr().out.split())
    reasons = {"Hangs": "no answer within 0.5 s", "Broken": "no weights", "Raises": "Exception: always"}
    for kind, why in reasons.items():
        assert f"{bad}:{kind} is put aside: " in said
        assert why in said


def test_a_structure_that_fails_is_named_and_the_floor_is_that_of_the_others(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, errors = best_of([f"{bad}:Bad"], (), 3.0, [copper(1), copper(2), copper(4)], [], timeout=5.0)
    assert (name, errors) == (f"{bad}:Bad", None)
    assert "not measured on 1 of the structures that were drawn: Cu2: Odd: two" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(FlashACEError, match="it cannot do Cu2 "):
        best_of([f"{bad}:Bad"], (), 3.0, [copper(2)], [], timeout=5.0)


def test_a_certificate_goes_on_without_its_teacher(bad: str) -> None:
    for kind, why in (("Hangs", "no answer within 0.2 s"), ("Raises", "Exception: always"), ("Broken", "no weights")):
        with Guarded(Teacher(f"{bad}:{kind}"), timeout=0.2) as teacher:
            (row,) = property_rows(EMT(), teacher, [copper(1)], properties={"energy_volume": energy_volume})
        assert row.number is None
        assert row.words.startswith("not measured: the teacher failed: ")
        assert why in row.words
    (row,) = property_rows(EMT(), EMT(), [bulk("Cu")], properties={"energy_volume": energy_volume}, seconds=0.0)
    assert "takes longer than" in row.words
