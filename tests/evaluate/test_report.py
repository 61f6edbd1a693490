import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from matplotlib.image import imread
from rich.console import Console

from flashace.data.frames import LabelCount, Labelled, LabelSummary
from flashace.data.origin import Origin
from flashace.errors import FlashACEError
from flashace.evaluate.report import error_table, label_table, learning_curve, parity, write_predictions

RNG = np.random.default_rng(0)


def printed(table):
    console = Console(file=io.StringIO(), width=120, markup=False, emoji=False)  # as the command line has it
    console.print(table)
    return console.file.getvalue()


def frames_and_predictions(count, stress=True):
    frames = []
    for i in range(count):
        atoms = bulk("Si", a=5.43)
        atoms.info["name"] = f"frame {i}"
        atoms.calc = SinglePointCalculator(atoms, energy=RNG.normal(), forces=RNG.normal(size=(2, 3)))
        tensor = np.diag(RNG.normal(size=3)) if stress else None
        frames.append(Labelled(atoms, atoms.calc.results["energy"], atoms.calc.results["forces"], tensor, "", Origin("x", i)))
    predictions = [
        {"energy": frame.energy + 0.01, "forces": frame.forces + 0.1, "stress": np.eye(3) * 0.02 if stress else None} for frame in frames
    ]
    return frames, predictions


def is_picture(path):
    """A picture with something drawn on it."""
    pixels = imread(path)
    return pixels.shape[0] > 300 and pixels.shape[1] > 500 and np.ptp(pixels[..., :3]) > 0.5


def test_label_table_says_what_was_found_and_what_was_not():
    used = LabelCount({"REF_energy": 7, "calculator energy": 1}, {"virial": 2})
    text = printed(label_table(LabelSummary(10, {"energy": used, "forces": LabelCount({"REF_forces": 10}), "stress": LabelCount()})))
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert "Labels of 10 frames" in text
    assert ["energy", "REF_energy", "7"] in rows
    assert ["calculator", "energy", "1", "2"] in rows
    assert ["not", "read:", "virial", "2", "of", "these"] in rows
    assert ["forces", "REF_forces", "10", "0"] in rows
    assert ["stress", "not", "found", "–", "10"] in rows


def row(config_type, frames, energy, forces, stress=None):
    values = {"energy": energy, "forces": forces, "stress": stress}
    errors = {f"{label}_{kind}": value for label, value in values.items() for kind in ("mae", "rmse")}
    return {"config_type": config_type, "frames": frames, **errors}


def test_error_table_shows_every_set_and_config_type():
    table = {"train": [row("", 2, 1.234, 23.45), row("slab", 3, 123.45, None), row("all", 5, 6.0, 7.0)]}
    rows = [line.replace("│", " ").split() for line in printed(error_table(table)).splitlines()]
    assert ["train", "(none)", "2", "1.23", "/", "1.23", "23.4", "/", "23.4"] in rows
    assert ["slab", "3", "123", "/", "123", "–"] in rows
    assert ["all", "5", "6.00", "/", "6.00", "7.00", "/", "7.00"] in rows
    assert "stress" not in printed(error_table(table))
    assert "meV/Å³" in printed(error_table({**table, "validation": [row("all", 1, 1.0, 1.0, 0.0)]}))


@pytest.mark.parametrize("num_epochs", [1, 30])
def test_learning_curve_draws_what_the_file_has(tmp_path, num_epochs):
    lines = ["epoch,seconds,learning_rate,loss,train_forces_rmse,valid_energy_rmse,valid_forces_mae,valid_stress_rmse"]
    lines += [f"{i},{2 * i},{0.01 / i},{1 / i},{20 / i},{5 / i},," for i in range(1, num_epochs + 1)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png")
    assert is_picture(tmp_path / "curve.png")


@pytest.mark.parametrize("content", [b"epoch,loss\n1,x\n", b"epoch,loss\n1,2,3\n", b"epoch\n\xff\n", b'epoch,loss\n"', b"epoch\nnan\n"])
def test_a_damaged_table_is_refused(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(FlashACEError, match=r"metrics.csv: expected a (table of numbers|column `epoch`)"):
        learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png")


def test_learning_curve_needs_an_epoch(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss\n")
    with pytest.raises(FlashACEError, match=r"metrics.csv: expected a column `epoch` and one row or more, got 0 rows"):
        learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png")


@pytest.mark.parametrize("stress", [True, False])
def test_parity_draws_every_set(tmp_path, stress):
    sets = {"train": frames_and_predictions(5, stress), "validation": frames_and_predictions(1, stress=False)}
    parity(sets, tmp_path / "parity.png")
    assert is_picture(tmp_path / "parity.png")
    assert (imread(tmp_path / "parity.png").shape[1] > 1700) == stress  # a third panel


def test_parity_refuses_what_it_cannot_draw(tmp_path):
    frames, predictions = frames_and_predictions(1)
    with pytest.raises(FlashACEError, match="validation: expected at least one frame to draw, got none"):
        parity({"validation": ([], [])}, tmp_path / "parity.png")
    with pytest.raises(FlashACEError, match="x#0: stress: expected a prediction of shape"):
        parity({"test": (frames, [{**predictions[0], "stress": None}])}, tmp_path / "parity.png")
    with pytest.raises(FlashACEError, match="test: expected frames with labels to compare with, got none"):
        parity({"test": ([Labelled(Atoms("H"), None, None, None, "", Origin("x", 0))], predictions)}, tmp_path / "parity.png")


def test_written_predictions_come_back_beside_the_labels(tmp_path):
    frames, predictions = frames_and_predictions(2)
    predictions[1]["stress"] = None
    frames[1].atoms.info["energy"] = -99.0  # the same name twice: both are kept
    write_predictions(tmp_path / "out.extxyz", frames, predictions)
    assert "flashace_energy" not in frames[0].atoms.info
    first, second = read(tmp_path / "out.extxyz", ":")
    assert first.info["name"] == "frame 0"
    assert first.calc.results["energy"] == pytest.approx(frames[0].energy)
    np.testing.assert_allclose(first.calc.results["forces"], frames[0].forces, atol=1e-8)
    assert first.info["flashace_energy"] == pytest.approx(predictions[0]["energy"])
    np.testing.assert_allclose(first.arrays["flashace_forces"], predictions[0]["forces"], atol=1e-8)
    np.testing.assert_allclose(first.info["flashace_stress"], [0.02, 0.02, 0.02, 0, 0, 0])
    assert "flashace_stress" not in second.info
    assert second.info["info_energy"] == -99.0
    assert second.calc.results["energy"] == pytest.approx(frames[1].energy)
