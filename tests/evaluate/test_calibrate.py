"""Uncertainty from the end of a fit to the tables and files that a user sees."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.io import read, write

from flashace import FlashACE
from flashace.evaluate import report
from flashace.evaluate.calibrate import calibration_rows, force_calibration_rows
from flashace.potential.model_file import load_model, read_header


@pytest.fixture(autouse=True)
def _empty_folder_and_no_pictures(tmp_path, monkeypatch, run_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "learning_curve", lambda *arguments: None)
    monkeypatch.setattr(report, "parity", lambda *arguments: None)


@pytest.fixture
def others(make_frames):
    """Twelve frames that no fit has seen."""
    write("others.extxyz", make_frames(seed=3))
    return Path("others.extxyz")


def squeezed(output):
    return " ".join(re.sub(r"[│┃|]", " ", output).split())


# Fit, info, calibrate


def test_a_fit_with_enough_to_hold_out_knows_its_uncertainty(flashace, write_yaml, data_file, others):
    result = flashace("fit", data_file, "-c", write_yaml(Path("c.yaml"), valid=[str(others)]), "-o", "run")
    assert result.exit_code == 0, result.output
    assert "uncertainty: calibrated on 12 frames; of" in squeezed(result.output)
    uncertainty = load_model("run/model.pt").uncertainty
    assert uncertainty.frames == 12
    words = f"uncertainty calibrated on 12 frames; of an atom in these up to {1e3 * uncertainty.largest:.3g} meV"
    words += f", of its force up to {1e3 * uncertainty.force_law.largest:.3g} meV/Å"
    assert words in squeezed(flashace("info", "run/model.pt").output)
    assert flashace("calibrate", "run/model.pt", data_file, "--valid", others, "-o", "again.pt").exit_code == 0
    assert Path("again.pt").read_bytes() == Path("run/model.pt").read_bytes()


def test_a_fit_with_too_little_to_hold_out_has_it_too(run_folder, flashace, data_file):
    """Twelve frames, of which one is held out: the other eleven stand in, and `calibrate` finds the same."""
    words = "calibrated on 1 frame and, since these are few, 11 fitted ones, each as if left out (rather too small than too large)"
    assert words in squeezed((run_folder / "output.txt").read_text())
    uncertainty = load_model(run_folder / "model.pt").uncertainty
    assert (uncertainty.frames, uncertainty.left_out) == (1, 11)
    assert words in squeezed(flashace("info", run_folder / "model.pt").output)
    assert flashace("calibrate", run_folder / "model.pt", data_file, "-o", "again.pt").exit_code == 0
    assert Path("again.pt").read_bytes() == (run_folder / "model.pt").read_bytes()
    result = flashace("evaluate", run_folder / "model.pt", data_file, "-o", "p.extxyz")
    assert "Energy uncertainty" in result.output


@pytest.mark.parametrize("frames", [2, 3, 20])
def test_every_fit_has_it(flashace, write_yaml, make_frames, frames):
    """Also where nothing is held out."""
    write("few.extxyz", make_frames(frames))
    result = flashace("fit", "few.extxyz", "-c", write_yaml(Path("c.yaml"), epochs=1), "--valid-fraction", 0, "-o", "run")
    assert result.exit_code == 0, result.output
    assert "there are no validation frames to choose by" in squeezed(result.output)
    uncertainty = load_model("run/model.pt").uncertainty
    assert (uncertainty.frames, uncertainty.left_out) == (0, frames)
    assert np.isfinite(FlashACE("run/model.pt").get_uncertainty(make_frames(1, seed=5)[0]).energy)
    assert not {"validation"} & read_header("run/model.pt")["provenance"]["errors"].keys()


def test_a_fit_with_hardly_any_energies_to_validate_with_has_it_too(flashace, write_yaml, data_file, make_frames):
    frames = make_frames(seed=3)
    for atoms in frames:
        atoms.calc.results.pop("energy")
    frames.append(make_frames(1, seed=4)[0])
    write("forces.extxyz", frames)
    result = flashace("fit", data_file, "-c", write_yaml(Path("c.yaml"), valid=["forces.extxyz"], epochs=1), "-o", "run")
    assert result.exit_code == 0, result.output
    assert load_model("run/model.pt").uncertainty.frames == 1


def test_calibrate_adds_it_later(flashace, run_folder, data_file, others):
    """The training frames are found again in the data that the fit has split."""
    before = run_folder / "model.pt"
    result = flashace("calibrate", before, data_file, "--valid", others, "-o", "sure.pt")
    assert result.exit_code == 0, result.output
    assert "uncertainty calibrated on 12 frames" in squeezed(result.output)
    one, other = read_header(before), read_header("sure.pt")
    assert one.pop("uncertainty")["frames"] == 1
    assert other.pop("uncertainty")["frames"] == 12
    assert one.pop("sha256") != other.pop("sha256")
    assert one == other
    model = load_model(before, load_model("sure.pt").dtype)
    assert all((p == dict(model.named_parameters())[name]).all() for name, p in load_model("sure.pt").named_parameters())


def test_errors_of_calibrate_are_one_line(flashace, run_folder, data_file, others):
    whole = Path("m.pt")
    whole.write_bytes((run_folder / "model.pt").read_bytes())
    for arguments, message in (
        (["m.pt", others], "expected the 11 frames that the model was fitted to"),
        (["no.pt", data_file], "model file no.pt: no such file"),
        (["m.pt", "no.extxyz"], "no.extxyz: expected a file of structures"),
        (["m.pt", data_file, "--valid", "no.extxyz"], "no.extxyz: expected a file of structures"),
    ):
        result = flashace("calibrate", *arguments)
        assert result.exit_code == 1
        assert re.search(f"^Error: .*{message}", result.output, re.MULTILINE), result.output
    assert whole.read_bytes() == (run_folder / "model.pt").read_bytes()


# Evaluate


def test_evaluate_reports_and_writes_it(flashace, run_folder, data_file, others):
    flashace("calibrate", run_folder / "model.pt", data_file, "--valid", others, "-o", "sure.pt")
    result = flashace("evaluate", "sure.pt", others, "-o", "p.extxyz", "--dtype", "float64")
    assert result.exit_code == 0, result.output
    assert "Energy uncertainty σ against errors" in result.output
    table = result.output.split("Energy uncertainty")[1]
    for own in table.split("Forces uncertainty"):  # by its very calibration
        assert re.search(r"cold 6 .* warm 6 .* all 12 [\d.]+ [\d.]+ 1\.00 ", squeezed(own))
    calculator = FlashACE("sure.pt", dtype="float64")
    for atoms in read("p.extxyz", ":"):
        expected = calculator.get_uncertainty(atoms)
        assert atoms.info["flashace_energy_uncertainty"] == pytest.approx(expected.energy, rel=1e-6)
        for name in ("flashace_energies_uncertainty", "energies_uncertainty"):
            np.testing.assert_allclose(atoms.arrays[name], expected.energies, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["forces_uncertainty"], expected.forces, rtol=1e-5, atol=1e-8)


def test_rows_are_what_they_say():
    """Errors drawn with the predicted spread, in structures of two sizes; one frame without a label, one atom alone."""
    rng = np.random.default_rng(0)
    sigmas = 10 ** rng.uniform(-3, 0, 2000)
    errors = sigmas * rng.normal(size=2000)
    frames = [SimpleNamespace(atoms=[0] * (1 + i % 2), energy=-5.0, config_type="ab"[i % 2]) for i in range(2000)]
    predictions = [{"energy": -5.0 + e, "energy_uncertainty": s} for e, s in zip(errors, sigmas, strict=True)]
    frames += [SimpleNamespace(atoms=[0], energy=None, config_type="a"), SimpleNamespace(atoms=[0], energy=-1.0, config_type="a")]
    predictions += [{"energy": 1.0, "energy_uncertainty": 1.0}, {"energy": -1.0, "energy_uncertainty": 0.0}]
    a, b, both = calibration_rows(frames, predictions)
    assert [(row["config_type"], row["frames"]) for row in (a, b, both)] == [("a", 1000), ("b", 1000), ("all", 2000)]
    assert a["uncertainty"] == pytest.approx(1e3 * np.sqrt(np.mean(sigmas[::2] ** 2)))
    assert b["rmse"] == pytest.approx(1e3 * np.sqrt(np.mean((errors[1::2] / 2) ** 2)))
    assert both["z"] == pytest.approx(np.sqrt(np.mean((errors / sigmas) ** 2)))
    assert both["within_1"] == pytest.approx(0.683, abs=0.03)
    assert both["within_2"] == pytest.approx(0.954, abs=0.02)
    assert both["rank"] > 0.7
    assert calibration_rows(frames[:2], predictions[:2])[-1]["rank"] is None
    assert calibration_rows(frames[-2:], predictions[-2:]) == []


def test_rows_of_forces_are_of_components_and_their_rank_of_atoms():
    """Errors drawn with the predicted spread; a frame without forces and an atom alone do not count."""
    rng = np.random.default_rng(0)
    sigmas = 10 ** rng.uniform(-3, 0, (300, 5))
    errors = sigmas[:, :, None] * rng.normal(size=(300, 5, 3))
    frames = [SimpleNamespace(forces=np.ones((5, 3)), config_type="a") for _ in range(300)]
    predictions = [{"forces": 1 + e, "forces_uncertainty": s} for e, s in zip(errors, sigmas, strict=True)]
    frames += [SimpleNamespace(forces=None, config_type="b"), SimpleNamespace(forces=np.zeros((1, 3)), config_type="c")]
    predictions += [predictions[0], {"forces": np.zeros((1, 3)), "forces_uncertainty": np.zeros(1)}]
    rows = force_calibration_rows(frames, predictions)
    assert [row["config_type"] for row in rows] == ["a", "all"]
    assert rows[0]["frames"] == 300
    assert rows[0]["rmse"] == pytest.approx(1e3 * np.sqrt(np.mean(errors**2)))
    assert rows[0]["uncertainty"] == pytest.approx(1e3 * np.sqrt(np.mean(sigmas**2)))
    assert rows[0]["within_1"] == pytest.approx(0.683, abs=0.02)
    assert rows[0]["within_2"] == pytest.approx(0.954, abs=0.01)
    assert rows[0]["rank"] > 0.8
    assert force_calibration_rows(frames[-1:], predictions[-1:]) == []
