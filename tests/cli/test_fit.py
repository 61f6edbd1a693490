"""`flashace fit`: what it takes, tells and leaves."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from flashace import FlashACE
from flashace.potential.model_file import load_model


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


def test_validation_with_the_training_frames_is_refused(flashace, write_yaml, data_file, make_frames, one_line_error):
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


def test_paths_of_a_configuration_say_where_they_come_from(flashace, write_yaml, run_folder, data_file, one_line_error):
    shutil.copytree(run_folder, "run")
    options = yaml.safe_load(Path("run/config.yaml").read_text())
    Path("run/config.yaml").write_text(yaml.safe_dump(options | {"data": ["moved.extxyz"]}))
    for arguments in (["--resume", "run"], ["-c", "run/config.yaml"]):
        one_line_error(flashace("fit", *arguments), "run/config.yaml: `data` names moved.extxyz, which is not there, seen from /")
    assert flashace("fit", data_file, "-c", "run/config.yaml", "--dry-run").exit_code == 0


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
def test_errors_of_fit_are_one_line(flashace, write_yaml, make_frames, data_file, case, one_line_error):
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


@pytest.mark.slow
def test_data_alone_is_enough(data_file, start):
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
def test_a_signal_stops_the_program_and_resume_goes_on(write_yaml, data_file, signum, start):
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
