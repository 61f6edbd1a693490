"""The command line as a user types it."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from click.testing import CliRunner
from rich.console import Console

from flashace import FlashACE
from flashace.cli import main as cli
from flashace.cli.main import main
from flashace.evaluate import report
from flashace.potential.model_file import FORMAT, load_model, read_header, save_model
from flashace.verify.laws import PRECISIONS

PROGRAM = Path(sys.executable).with_name("flashace")


@pytest.fixture(autouse=True)
def _empty_folder_and_no_pictures(tmp_path, monkeypatch, run_folder):
    """Pictures take a second each; `run_folder` has them, and was made before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "learning_curve", lambda *arguments: None)
    monkeypatch.setattr(report, "parity", lambda *arguments: None)


def one_line_error(result, *parts):
    """Exit status 1 and, after tables at most, a single line that starts with Error and has these parts."""
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line]
    assert lines[-1].startswith("Error: "), result.output
    assert "Traceback" not in result.output
    for part in parts:
        assert re.search(part, lines[-1]), lines[-1]


# fit


def test_a_fit_leaves_what_it_says(run_folder):
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    assert files == {
        "model.pt", "config.yaml", "metrics.csv", "learning_curve.png", "parity.png",
        "checkpoints/best.pt", "checkpoints/step-000000006.pt",
        "output.txt",
    }  # fmt: skip
    for picture in ("learning_curve.png", "parity.png"):
        assert (run_folder / picture).read_bytes()[:4] == b"\x89PNG"


def test_a_fit_tells_its_decisions_and_errors(run_folder):
    output = (run_folder / "output.txt").read_text()
    for part in (
        "Labels of 12 frames", "calculator energy", "calculator forces", "calculator stress", "Decisions", "elements", "C, Si", "split",
        "11 training and 1 validation frames", "reference energies", "cutoff", "3 Å", "batch size", "4 frames", "length", "2 epochs",
        "device, dtype", "cpu, float64", "parameters", "min to go", "meV/atom", "meV/Å", "meV/Å³", "MAE / RMSE", "train", "validation",
        "cold", "warm", "all", "run/model.pt", "run/learning_curve.png", "run/parity.png",
    ):  # fmt: skip
        assert part in output, part


def test_the_resolved_config_runs_as_it_stands(flashace, run_folder, data_file):
    result = flashace("fit", "-c", run_folder / "config.yaml", "--output", "again")
    assert result.exit_code == 0, result.output
    one, other = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run_folder, Path("again")))
    assert one == other
    assert "output" not in one
    assert one["data"] == [str(data_file)]
    first, second = (load_model(folder / "model.pt", torch.float64) for folder in (run_folder, Path("again")))
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("place", ["config.yaml", "training/config.yaml"])
def test_without_arguments_the_usual_places_are_looked_at(flashace, write_yaml, data_file, place):
    Path("training").mkdir()
    write_yaml(Path("training/config.yaml"), data=[str(data_file)], output="from-training")
    if place == "config.yaml":
        write_yaml(Path(place), data=[str(data_file)], output="from-here")
    result = flashace("fit", "--dry-run")
    assert result.exit_code == 0
    assert f"options from {place}" in result.output
    assert flashace("fit").exit_code == 0
    assert Path("from-here" if place == "config.yaml" else "from-training", "model.pt").is_file()


def test_the_usual_places_are_not_looked_at_when_data_is_given(flashace, data_file):
    Path("config.yaml").write_text("nonsense: 1\n")
    result = flashace("fit", data_file, "--dry-run")
    assert result.exit_code == 0
    assert "options from" not in result.output


def test_a_dry_run_writes_nothing(flashace, data_file):
    result = flashace("fit", data_file, "--dry-run")
    assert result.exit_code == 0
    assert "Decisions" in result.output
    assert list(Path().iterdir()) == []


def test_flags_overrule_the_file(flashace, write_yaml, data_file):
    write_yaml(Path("c.yaml"), epochs=50)
    arguments = ["-c", "c.yaml", "--epochs", 1, "--seed", 4, "--r-max", 2.5, "--batch-size", 3, "--dtype", "float32", "-o", "run"]
    assert flashace("fit", data_file, *arguments, "--device", "cpu", "--learning-rate", 1e-3, "--max-time", 5).exit_code == 0
    options = yaml.safe_load(Path("run/config.yaml").read_text())
    expected = {"epochs": 1, "seed": 4, "r_max": 2.5, "batch_size": 3, "dtype": "float32", "device": "cpu", "learning_rate": 1e-3}
    assert expected.items() <= options.items()
    assert options["max_time"] == 5
    assert load_model("run/model.pt").config.r_max == 2.5


def test_labels_by_name_and_validation_by_file(flashace, write_yaml, make_frames):
    frames = make_frames()
    for atoms in frames:
        atoms.info["dft_energy"], atoms.arrays["dft_forces"] = atoms.calc.results["energy"], atoms.calc.results["forces"]
        atoms.info["dft_virial"] = -atoms.calc.results["stress"] * atoms.get_volume()
        atoms.calc = None
    write("t.xyz", frames[:9], format="extxyz")
    write("v.xyz", frames[9:], format="extxyz")
    write_yaml(Path("c.yaml"))
    keys = ["--energy-key", "dft_energy", "--forces-key", "dft_forces", "--stress-key", "dft_virial"]
    result = flashace("fit", "t.xyz", "--valid", "v.xyz", "-c", "c.yaml", *keys)
    assert result.exit_code == 0, result.output
    assert "9 training and 3 validation frames" in result.output
    assert Path("runs/t/model.pt").is_file()
    assert "dft_virial" in result.output
    assert "meV/Å³" in result.output
    evaluated = flashace("evaluate", "runs/t/model.pt", "v.xyz", *keys)
    assert evaluated.exit_code == 0, evaluated.output


def test_an_existing_run_is_not_overwritten_unless_told(flashace, write_yaml, data_file):
    write_yaml(Path("c.yaml"), epochs=1)
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run").exit_code == 0
    before = Path("run/model.pt").read_bytes()
    refused = flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--seed", 7)
    one_line_error(refused, "run: this run folder holds a fit already", "--output", "--overwrite", "--resume run")
    assert Path("run/model.pt").read_bytes() == before
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--seed", 7, "--overwrite").exit_code == 0
    assert Path("run/model.pt").read_bytes() != before
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 2  # nothing of the old run


def test_overwrite_deletes_what_a_fit_left_and_nothing_else(flashace, write_yaml, data_file):
    """`-o .` in the folder of one's data, say."""
    write_yaml(Path("c.yaml"), epochs=1)
    shutil.copy(data_file, "data.extxyz")
    Path("thesis.tex").write_text("years of work")
    flashace("fit", "data.extxyz", "-c", "c.yaml", "-o", ".", "--overwrite")
    assert Path("thesis.tex").is_file()
    assert Path("data.extxyz").is_file()
    assert Path("c.yaml").is_file()


def test_overwrite_spares_the_old_fit_until_the_new_one_can_start(flashace, write_yaml, data_file):
    write_yaml(Path("c.yaml"), epochs=1, checkpoint_dir="kept")
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run").exit_code == 0
    before = Path("run/model.pt").read_bytes()
    one_line_error(flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--overwrite", "--r-max", 0.2), "r_max=0.2")
    assert Path("run/model.pt").read_bytes() == before
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--overwrite", "--seed", 7).exit_code == 0
    assert Path("run/model.pt").read_bytes() != before


def test_an_empty_folder_may_be_named(flashace, write_yaml, data_file):
    Path("run").mkdir()
    write_yaml(Path("c.yaml"), epochs=1)
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run").exit_code == 0


def test_hints_can_be_copied_however_long_the_path(flashace, write_yaml, data_file, monkeypatch):
    """A log has 80 columns; a command broken in two is no command."""
    from flashace.train.step import TrainStep

    folder = "a-folder-with-a-long-name/" * 5 + "run"
    write_yaml(Path("c.yaml"), epochs=1)
    done = flashace("fit", data_file, "-c", "c.yaml", "-o", folder)
    assert f"{folder}/model.pt" in done.output
    monkeypatch.setattr(TrainStep, "__call__", lambda self, batch, weights: signal.raise_signal(signal.SIGINT) or torch.zeros(2, 3))
    stopped = flashace("fit", data_file, "-c", "c.yaml", "-o", folder + "2", "--epochs", 9)
    assert f"flashace fit --resume {folder}2" in stopped.output


# What is read is not written


@pytest.mark.parametrize("link", ["itself", "symlink", "hardlink"])
def test_no_command_writes_over_what_it_reads(flashace, run_folder, data_file, link):
    shutil.copy(run_folder / "model.pt", "m.pt")
    shutil.copy(data_file, "d.extxyz")
    names = {"m.pt": "m.pt", "d.extxyz": "d.extxyz"}
    if link != "itself":
        names = {"m.pt": "other.extxyz", "d.extxyz": "another.extxyz"}
        for name, other in names.items():
            (os.symlink if link == "symlink" else os.link)(name, other)
    before = {name: Path(name).read_bytes() for name in ("m.pt", "d.extxyz")}
    model, data = names.values()
    for option, arguments in (
        ("--output", ["evaluate", "m.pt", "d.extxyz", "-o", model]),
        ("--output", ["evaluate", "m.pt", "d.extxyz", "-o", data]),
        ("--json", ["verify", "m.pt", "d.extxyz", "--json", model]),
        ("--json", ["verify", "m.pt", "d.extxyz", "--json", data]),
        ("--json", ["check", "d.extxyz", "--json", data]),
        ("--output", ["calibrate", "m.pt", "d.extxyz", "-o", data]),
        ("--output", ["calibrate", "m.pt", data_file, "--valid", "d.extxyz", "-o", data]),
    ):
        one_line_error(flashace(*arguments), f"{option} .*expected another file than those that are read, which this would overwrite")
    assert {name: Path(name).read_bytes() for name in before} == before


def test_shards_and_default_names_are_spared_too(flashace, run_folder, data_file):
    assert flashace("convert", data_file, "shards").exit_code == 0
    shutil.copy(data_file, "predictions.extxyz")
    model = run_folder / "model.pt"
    one_line_error(flashace("check", "shards", "--json", "shards/manifest.json"), "expected another file")
    one_line_error(flashace("evaluate", model, "predictions.extxyz"), "--output predictions.extxyz: expected another file")


def test_a_place_that_cannot_be_written_to_is_named_before_the_work(flashace, run_folder, data_file):
    for arguments in (["evaluate", run_folder / "model.pt", data_file, "-o"], ["check", data_file, "--json"]):
        one_line_error(flashace(*arguments, "."), "expected a file to write, got a folder")
        one_line_error(flashace(*arguments, "absent/p.extxyz"), "expected a folder absent to write to, found none")


@pytest.mark.parametrize("name", ["p.traj", "p.db", "p.json", "p.extxyz.zip"])
def test_predictions_have_no_name_of_another_format(flashace, run_folder, data_file, name):
    one_line_error(flashace("evaluate", run_folder / "model.pt", data_file, "-o", name), "expected a name that ends in .extxyz or .xyz")
    assert not Path(name).exists()


def test_predictions_are_packed_as_their_name_says(flashace, run_folder, data_file):
    assert flashace("evaluate", run_folder / "model.pt", data_file, "-o", "p.xyz.gz").exit_code == 0
    assert Path("p.xyz.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert len(read("p.xyz.gz", ":")) == 12
    assert os.listdir() == ["p.xyz.gz"]


def test_a_fit_spares_its_configuration_and_what_it_starts_from(flashace, write_yaml, run_folder, data_file):
    write_yaml(Path("config.yaml"), epochs=1, data=[str(data_file)])
    before = Path("config.yaml").read_bytes()
    one_line_error(flashace("fit", "-o", "."), "expected a run folder in which config.yaml, which the fit reads, is not overwritten")
    assert Path("config.yaml").read_bytes() == before
    shutil.copytree(run_folder, "run")
    start = ["fit", data_file, "-c", write_yaml(Path("c.yaml"), epochs=1), "-o", "run", "--overwrite", "--resume-from"]
    for name in ("run", "run/model.pt", "run/checkpoints", "run/checkpoints/best.pt"):
        one_line_error(flashace(*start, name), "run: expected .*overwrit")
    assert (Path("run/model.pt").read_bytes(), Path("c.yaml").exists()) == ((run_folder / "model.pt").read_bytes(), True)


def test_validation_with_the_training_frames_is_refused(flashace, write_yaml, data_file, make_frames):
    write_yaml(Path("c.yaml"), epochs=1)
    shutil.copy(data_file, "copy.extxyz")
    for valid in (data_file, "copy.extxyz"):
        one_line_error(
            flashace("fit", data_file, "--valid", valid, "-c", "c.yaml"), "got frames that are all fitted too; leave out --valid"
        )
    write("some.extxyz", [*make_frames(2), *make_frames(3, seed=5)])
    result = flashace("fit", data_file, "--valid", "some.extxyz", "-c", "c.yaml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2 of 5 validation frames are fitted too" in result.output


# Files, terminals and what stands in a configuration


def test_paths_of_a_configuration_say_where_they_come_from(flashace, write_yaml, run_folder, data_file):
    shutil.copytree(run_folder, "run")
    options = yaml.safe_load(Path("run/config.yaml").read_text())
    Path("run/config.yaml").write_text(yaml.safe_dump(options | {"data": ["moved.extxyz"]}))
    for arguments in (["--resume", "run"], ["-c", "run/config.yaml"]):
        one_line_error(flashace("fit", *arguments), "run/config.yaml: `data` names moved.extxyz, which is not there, seen from /")
    assert flashace("fit", data_file, "-c", "run/config.yaml", "--dry-run").exit_code == 0


def test_a_folder_or_a_checkpoint_is_no_model(flashace, run_folder, data_file):
    one_line_error(flashace("evaluate", run_folder, data_file), "expected a model file, got a folder; name .*run/model.pt")
    checkpoint = run_folder / "checkpoints/best.pt"
    one_line_error(flashace("evaluate", checkpoint, data_file), "best.pt: expected a FlashACE model file", "name the model.pt of")


@pytest.mark.parametrize("charset", ["ascii", "latin-1"])
def test_terminals_that_know_less_than_utf8(run_folder, data_file, charset):
    for command in (["evaluate", run_folder / "model.pt", data_file], ["info", run_folder / "model.pt"], ["check", data_file]):
        result = CliRunner(charset=charset).invoke(main, list(map(str, command)), catch_exceptions=False)
        assert result.exit_code == 0
        assert "?" not in result.stdout_bytes.decode(charset)
    assert "meV/A3" in CliRunner(charset="ascii").invoke(main, ["evaluate", *map(str, command[1:])]).output or charset
    assert Path("predictions.extxyz").is_file()


def test_names_that_are_not_utf8(flashace, data_file):
    name = os.fsdecode(b"\xff.extxyz")
    shutil.copy(data_file, name)
    one_line_error(flashace("check", name), "expected a name in UTF-8")
    one_line_error(flashace("info", name), r"\\xff\.extxyz: expected a FlashACE model file")


def test_tables_keep_whole_names_at_80_columns(run_folder, data_file):
    row = {f"{label}_{kind}": 123.4 for label in ("energy", "forces", "stress") for kind in ("mae", "rmse")}
    name = "Distorted_surface_AIMD_NVT_2000K"
    narrow = Console(width=80, file=io.StringIO())
    narrow.print(report.error_table({"validation": [row | {"config_type": name, "frames": 123}]}))
    calibration = {"rmse": 12.3, "uncertainty": 12.1, "z": 1.1, "within_1": 0.5, "within_2": 0.9, "rank": 0.4}
    narrow.print(report.calibration_table([calibration | {"config_type": name, "frames": 123}]))
    text = narrow.file.getvalue()
    assert "…" not in text
    column = {1: "", 0: ""}
    tables = text.split("Energy uncertainty")
    for place, table in zip(column, tables, strict=True):
        rows = [line.split("│") for line in table.splitlines() if line.startswith("│")]
        assert "".join(cells[1 + place].strip() for cells in rows) == name


# Errors of fit


def fit_errors():
    """Name -> (arguments, parts of the message). {data} is a good file, c.yaml good options."""
    return {
        "nothing": ([], ["expected DATA or --config, or one of config.yaml, training/config.yaml here"]),
        "missing data": (["no.extxyz"], ["no.extxyz: expected a file of structures, found no such file"]),
        "a folder as data": (["."], [r"\.: expected a folder with vasprun"]),
        "missing config": (["{data}", "-c", "no.yaml"], ["--config no.yaml: no such file"]),
        "unknown key": (["{data}", "-c", "unknown.yaml"], ["unknown key `rmax`; did you mean `r_max`"]),
        "broken YAML": (["{data}", "-c", "broken.yaml"], ["broken.yaml: expected YAML"]),
        "wrong kind": (["{data}", "-c", "kind.yaml"], ["`epochs`: .*got 'many'"]),
        "epochs": (["{data}", "--epochs", 0], ["`epochs`: .*got 0"]),
        "device": (["{data}", "--device", "gpu"], ["device: expected auto, cpu or a CUDA device of this machine, got 'gpu'"]),
        "dtype": (["{data}", "--dtype", "half"], ["`dtype`: .*got 'half'"]),
        "cutoff": (["{data}", "--r-max", -1], ["`r_max`: .*greater than or equal to 0.1, got -1"]),
        "energy key": (["{data}", "--energy-key", "dft"], ["expected energy under the key 'dft'.*the keys that exist are"]),
        "not structures": (["text.txt"], ["text.txt: expected a file that ase.io.read can read"]),
        "no forces": (["no-forces.extxyz"], ["expected forces in at least one of 2 frames, found none"]),
        "one frame": (["one.extxyz"], ["at least 2 frames"]),
        "output is a file": (["{data}", "-c", "c.yaml", "-o", "text.txt"], ["text.txt"]),
        "nothing within the cutoff": (["{data}", "-c", "c.yaml", "--r-max", 0.5], ["0.5"]),
        "resume nothing": (["--resume", "no-run"], ["no-run", "--resume"]),
        "resume with options": (["--resume", "run", "--seed", 3], ["--resume run takes its options from that folder; leave out seed"]),
        "resume with config": (["--resume", "run", "-c", "c.yaml"], ["leave out config"]),
    }


@pytest.mark.parametrize("case", fit_errors())
def test_errors_of_fit_are_one_line(flashace, write_yaml, make_frames, data_file, case):
    write_yaml(Path("c.yaml"), epochs=1)
    Path("unknown.yaml").write_text("rmax: 4\n")
    Path("broken.yaml").write_text("a: [1, 2\nb: 3\n")
    Path("kind.yaml").write_text("epochs: many\n")
    Path("text.txt").write_text("no structures\n")
    frames = make_frames(2)
    write("one.extxyz", frames[:1])
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    write("no-forces.extxyz", frames)
    arguments, parts = fit_errors()[case]
    one_line_error(flashace("fit", *[str(a).format(data=data_file) for a in arguments]), *parts)
    assert not Path("runs").exists()


def test_what_click_checks_it_checks(flashace, data_file):
    for arguments in (["--epochs", "many"], ["--colour", "red"]):
        result = flashace("fit", data_file, *arguments)
        assert result.exit_code == 2
        assert arguments[0] in result.output


# evaluate


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


def test_errors_of_evaluate_are_one_line(flashace, run_folder, data_file, make_frames):
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


# info


def test_info_tells_all_that_one_wants_to_know(flashace, run_folder, data_file, monkeypatch):
    result = flashace("info", run_folder / "model.pt")
    assert result.exit_code == 0
    header = read_header(run_folder / "model.pt")
    text = " ".join(re.sub(r"[│┃|]", " ", result.output).split())
    joined = re.sub(r"\s", "", text)
    for part in ("elements C, Si", "r_max 3.0", "hidden_dim 16", "num_channels 4", "num_layers 1", "correlation 2", f"format {FORMAT}"):
        assert part in text, part
    assert f"{header['num_parameters']:,}" in text
    for symbol, energy in header["atomic_energies"].items():
        assert f"{symbol} {energy:.6f}" in text
    assert "least squares over 12 frames" in text
    for pair, distance in header["shortest_distances"].items():
        assert f"{pair} {distance:.3f}" in text
    for pair, (least, most) in header["coordination"].items():
        assert f"{pair} {least:.2f} to {most:.2f}" in text
    assert header["provenance"]["training_data"]["sha256"] in joined
    assert "frames 11" in text
    for package in ("flashace", "torch", "e3nn", "ase", "matscipy", "numpy"):
        assert f"versions: {package} {header['provenance']['versions'][package]}" in text
    for part in ("MAE / RMSE", "train", "validation", "meV/atom", "meV/Å", "meV/Å³"):
        assert part in text, part
    assert 0 < float(re.search(r"\d+ intervals, off by (\S+) of the largest edge function", text)[1]) < 1e-7


def test_info_of_a_model_without_a_history(flashace, make_model):
    save_model("m.pt", make_model(), {})
    result = flashace("info", "m.pt")
    assert result.exit_code == 0
    assert "C, Si" in result.output


def test_errors_of_info_are_one_line(flashace, data_file, run_folder):
    one_line_error(flashace("info", "no.pt"), "model file no.pt: no such file")
    one_line_error(flashace("info", data_file), "expected a FlashACE model file")
    Path("cut.pt").write_bytes((run_folder / "model.pt").read_bytes()[:-3])
    one_line_error(flashace("info", "cut.pt"), "truncated")


# The program


def test_help_is_there_before_pytorch_is():
    """Which takes seconds to import."""
    asked = (
        "import sys, flashace.cli.main as c; c.main(['--help'], standalone_mode=False); assert not {'torch', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout


def test_choices_of_the_help_are_those_of_the_code():
    """Literals there: the code that has them imports PyTorch."""
    (dtype,) = (option for option in cli.verify.params if option.name == "dtype")
    assert list(dtype.type.choices) == list(PRECISIONS)


def test_help_and_version(flashace):
    from flashace import __version__

    assert __version__ in flashace("--version").output
    for command in ("fit", "evaluate", "info"):
        assert command in flashace("--help").output
        assert flashace(command, "--help").exit_code == 0
    for flag in ("--output DIR", "--epochs N", "--max-time MIN", "--seed", "--device", "--dtype", "--resume", "--config"):
        assert flag.split()[0] in flashace("fit", "--help").output


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_data_alone_is_enough(data_file):
    """The model of the defaults, for a few seconds."""
    program = start("fit", data_file, "--max-time", 0.1)
    output, _ = program.communicate(timeout=100)
    assert program.returncode == 0, output
    left = {path.name for path in Path("runs/sic").iterdir()}
    assert left >= {"model.pt", "config.yaml", "metrics.csv", "learning_curve.png", "parity.png"}
    atoms = read(data_file, 0)
    atoms.calc = FlashACE("runs/sic/model.pt")
    assert np.isfinite(atoms.get_stress()).all()
    again = start("fit", "-c", "runs/sic/config.yaml", "-o", "again", "--dry-run")
    assert again.wait(100) == 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_program_and_resume_goes_on(write_yaml, data_file, signum):
    write_yaml(Path("c.yaml"), epochs=100, checkpoint_interval=1)
    program = start("fit", data_file, "-c", "c.yaml", "-o", "run")
    deadline = time.monotonic() + 100
    while not list(Path("run/checkpoints").glob("step-*.pt")) and program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    program.send_signal(signum)
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 130, output
    assert "flashace fit --resume run" in output
    assert "Traceback" not in output
    assert not Path("run/model.pt").exists()
    again = start("fit", "--resume", "run")
    output, _ = again.communicate(timeout=100)
    assert again.returncode == 0, output
    assert Path("run/model.pt").is_file()


@pytest.mark.slow
def test_the_program_shows_no_traceback():
    program = start("fit", "no.extxyz")
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 1
    assert output.splitlines() == ["Error: no.extxyz: expected a file of structures, found no such file; check the path"]
