"""`flashace evaluate`: predictions in a file, errors in a table."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from flashace import FlashACE
from flashace.potential.model_file import read_header


def test_evaluate_writes_predictions_beside_the_labels(flashace, run_folder, data_file):
    result = flashace("evaluate", run_folder / "model.pt", data_file, "-o", "p.extxyz", "--dtype", "float64")
    assert result.exit_code == 0, result.output
    for part in ("Labels of 12 frames", "cold", "warm", "all", "meV/atom", "meV/Å", "meV/Å³", "predictions  p.extxyz"):
        assert part in result.output
    found, given = read("p.extxyz", ":"), read(data_file, ":")
    assert len(found) == 12
    calculator = FlashACE(run_folder / "model.pt", dtype="float64")
    for atoms, before in zip(found, given, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(before.get_potential_energy(), abs=1e-8)
        before.calc = calculator
        assert atoms.info["flashace_energy"] == pytest.approx(before.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(atoms.arrays["flashace_forces"], before.get_forces(), atol=1e-6)
        np.testing.assert_allclose(atoms.info["flashace_stress"], before.get_stress(), atol=1e-6)


def test_evaluate_agrees_with_the_errors_of_the_fit(flashace, run_folder, data_file, tmp_path):
    """The table of the whole file lies between those of its two parts, and names the same frames."""
    result = flashace("evaluate", run_folder / "model.pt", data_file, "--dtype", "float64")
    errors = read_header(run_folder / "model.pt")["provenance"]["errors"]
    line = next(line for line in result.output.splitlines() if " all " in line)
    rmse = [float(x) for x in re.findall(r"/ ([\d.]+)", line)]
    for found, label, count in zip(rmse, ("energy", "forces", "stress"), (1, 1, 1), strict=True):
        train, valid = errors["train"][-1][f"{label}_rmse"], errors["validation"][-1][f"{label}_rmse"]
        assert found == pytest.approx(((11 * train**2 + count * valid**2) / 12) ** 0.5, rel=1e-2)


def test_evaluate_takes_frames_with_few_labels(flashace, run_folder, make_frames):
    frames = make_frames(4)
    frames[0].calc = SinglePointCalculator(frames[0], energy=-12.0)
    frames[1].calc = SinglePointCalculator(frames[1])
    frames[2].pbc, frames[2].cell = False, None
    frames[2].calc = SinglePointCalculator(frames[2], energy=-12.0, forces=np.zeros((2, 3)))
    write("few.extxyz", frames)
    result = flashace("evaluate", run_folder / "model.pt", "few.extxyz")
    assert result.exit_code == 0, result.output
    assert ["flashace_stress" in atoms.info for atoms in read("predictions.extxyz", ":")] == [True, True, False, True]


@pytest.mark.parametrize("name", ["p.traj", "p.db", "p.json", "p.extxyz.zip"])
def test_predictions_have_no_name_of_another_format(flashace, run_folder, data_file, name, one_line_error):
    one_line_error(flashace("evaluate", run_folder / "model.pt", data_file, "-o", name), "expected a name that ends in .extxyz or .xyz")
    assert not Path(name).exists()


def test_predictions_are_packed_as_their_name_says(flashace, run_folder, data_file):
    assert flashace("evaluate", run_folder / "model.pt", data_file, "-o", "p.xyz.gz").exit_code == 0
    assert Path("p.xyz.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert len(read("p.xyz.gz", ":")) == 12
    assert os.listdir() == ["p.xyz.gz"]


def test_a_folder_or_a_checkpoint_is_no_model(flashace, run_folder, data_file, one_line_error):
    one_line_error(flashace("evaluate", run_folder, data_file), "expected a model file, got a folder; name .*run/model.pt")
    checkpoint = run_folder / "checkpoints/best.pt"
    one_line_error(flashace("evaluate", checkpoint, data_file), "best.pt: expected a FlashACE model file", "name the model.pt of")


def test_errors_of_evaluate_are_one_line(flashace, run_folder, data_file, make_frames, one_line_error):
    model = run_folder / "model.pt"
    frames = make_frames(2)
    frames[1].numbers[0] = 8
    frames[1].calc = SinglePointCalculator(frames[1], energy=1.0)
    write("oxide.extxyz", frames)
    Path("cut.pt").write_bytes(model.read_bytes()[:500])
    one_line_error(flashace("evaluate", model, "oxide.extxyz"), "this model knows C, Si; the structure also has O")
    one_line_error(flashace("evaluate", model, "no.extxyz"), "no.extxyz: expected a file of structures")
    one_line_error(flashace("evaluate", "no.pt", data_file), "model file no.pt: no such file")
    one_line_error(flashace("evaluate", "cut.pt", data_file), "cut.pt: expected a FlashACE model file, but it is truncated")
    one_line_error(flashace("evaluate", data_file, data_file), "expected a FlashACE model file")
    one_line_error(flashace("evaluate", model, data_file, "--dtype", "half"), "dtype: expected float32 or float64, got 'half'")
    one_line_error(flashace("evaluate", model, data_file, "--device", "gpu"), "device: expected auto, cpu")
    one_line_error(flashace("evaluate", model, data_file, "-o", "no-folder/p.extxyz"), "no-folder")
    assert not Path("predictions.extxyz").exists()
