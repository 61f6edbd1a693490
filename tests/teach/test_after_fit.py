"""A run folder of a fit that began with a teacher in; what its certificate tells without measuring anything out."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ase.calculators.emt import EMT

from flashace.potential.model_file import save_model
from flashace.teach import after_fit
from flashace.teach.after_fit import certificate_of_fit, seconds_for
from flashace.teach.before_fit import Lesson, begin, comparison_in
from flashace.teach.certificate import Certificate, Row
from flashace.teach.config import sample_config
from flashace.teach.teacher_errors import KindErrors, TeacherErrors

ALL = KindErrors("all", 30, 1.0, 477.0, None, 1050.0, 168.0, 44.0)
HOT = KindErrors("hot", 10, 1.0, 500.0, None, 1200.0, 200.0, 50.0)
COLD = KindErrors("", 20, 1.0, 450.0, None, 900.0, None, None)


def rows_of(folder: Path) -> dict[str, Row]:
    found = certificate_of_fit(folder, EMT(), [], 1.0, "emt", "LGPL (ASE)")
    assert Certificate.from_dict(found.to_dict()) == found
    return {row.key: row for row in found.rows}


def errors(forces: float | None) -> dict[str, float | str | int | None]:
    names = [f"{label}_{kind}" for label in ("energy", "forces", "stress") for kind in ("mae", "rmse")]
    return {"config_type": "all", "frames": 3, **dict.fromkeys(names, None), "forces_rmse": forces}


def test_what_is_known_is_told_and_what_is_not_says_so(tmp_path: Path, make_model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(after_fit, "ORDER", ())
    kinds = TeacherErrors([HOT, COLD, ALL], None, {}, [])
    begin(Lesson(sample_config({"teacher": "emt"}), kinds), tmp_path)
    assert comparison_in(tmp_path) == kinds.kinds
    (tmp_path / "teacher" / "student").mkdir()
    save_model(tmp_path / "model.pt", make_model(), {"errors": {"train": [errors(1.0)], "validation": [errors(12.5)]}})
    save_model(tmp_path / "teacher" / "student" / "model.pt", make_model(), {"errors": {"validation": [errors(56.0)]}})
    rows = rows_of(tmp_path)
    assert rows["dft_forces"].number == 12.5
    assert rows["teacher_forces"].number == 56.0
    assert rows["quick_fit"].number == 44.0
    assert rows["quick_fit"].words == "alone → with the teacher: 168 → 44 (hot 200 → 50); the teacher as it is 477"
    for key in ("trajectory_forces", "from_scratch", "dft_energy"):
        assert rows[key].number is None
        assert rows[key].words.startswith("not measured: ")
    assert (tmp_path / "certificate.json").exists()


def test_a_lesson_of_an_earlier_version_and_no_validation_frames(
    tmp_path: Path, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after_fit, "ORDER", ())
    begin(Lesson(sample_config({"teacher": "emt"})), tmp_path)
    save_model(tmp_path / "model.pt", make_model(), {})
    rows = rows_of(tmp_path)
    assert {row.number for row in rows.values()} == {None}
    assert all(row.words.startswith("not measured: ") for row in rows.values())


def test_it_takes_a_tenth_of_the_time_and_a_minute_at_least() -> None:
    assert [seconds_for(minutes) for minutes in (None, 2.0, 30.0)] == [300.0, 60.0, 180.0]
