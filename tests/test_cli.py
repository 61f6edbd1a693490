"""The command line as a user types it."""

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

from flashace import FlashACE
from flashace.model_file import load_model, read_header, save_model
from flashace.train import report

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
        "cutoff": (["{data}", "--r-max", -1], ["`r_max`: .*greater than 0, got -1"]),
        "energy key": (["{data}", "--energy-key", "dft"], ["expected energy under the key 'dft'.*the keys that exist are"]),
        "not structures": (["text.txt"], ["text.txt: expected a file that ase.io.read can read"]),
        "no forces": (["no-forces.extxyz"], ["expected forces in at least one of 2 frames, found none"]),
        "one frame": (["one.extxyz"], ["at least 2 frames"]),
        "output is a file": (["{data}", "-c", "c.yaml", "-o", "text.txt"], ["text.txt"]),
        "nothing within the cutoff": (["{data}", "-c", "c.yaml", "--r-max", 0.5], ["0.5"]),
        "resume nothing": (["--resume", "no-run"], ["no-run", "--resume"]),
        "resume with options": (["--resume", "run", "--epochs", 3], ["--resume run takes its options from that folder; leave out epochs"]),
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
    for part in ("elements C, Si", "r_max 3.0", "hidden_dim 16", "num_channels 4", "num_layers 1", "correlation 2", "format 1"):
        assert part in text, part
    assert f"{header['num_parameters']:,}" in text
    for symbol, energy in header["atomic_energies"].items():
        assert f"{symbol} {energy:.6f}" in text
    assert "least squares over 12 frames" in text
    for pair, distance in header["shortest_distances"].items():
        assert f"{pair} {distance:.3f}" in text
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
