"""`flashace distill` and `flashace fit --teacher`: from a seed to a checked model, with EMT as teacher and a student that learns little."""

import csv
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.console import Console

from flashace import FlashACE
from flashace.errors import FlashACEError
from flashace.potential.model_file import read_header
from flashace.teach import after_fit, rounds, student
from flashace.teach.config import DistillConfig, sample_config
from flashace.teach.sampling.seed import look_at
from flashace.teach.spent import seconds_in
from flashace.teach.task import labelled
from flashace.train import prepare
from flashace.train.config import make_config, write_config

command = import_module("flashace.cli.distill")

TINY = ("--size", "small", "--hidden-dim", 16, "--num-channels", 4, "--correlation", 2, "--r-max", 4.0, "--compile", "false")
FEW = ("--teacher", "emt", "-n", 40, "--max-atoms", 8)


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student, "FEWEST_EPOCHS", 2)
    monkeypatch.setattr(student, "ATOMS", 400)
    monkeypatch.setattr(prepare, "TO_FINISH", 22)
    monkeypatch.setattr(after_fit, "ORDER", ("energy_volume",))


@pytest.fixture
def seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("cu.xyz", bulk("Cu", cubic=True))
    return "cu.xyz"


@pytest.mark.slow
def test_a_seed_becomes_a_model_with_a_certificate(flashace, seed):
    asked = ("--rounds", 1, "--round-frames", 40, "--error", 1e4, "--bound", "laws=0", "--output", "run")
    result = flashace("distill", seed, *FEW, *TINY, *asked)
    assert result.exit_code == 1, result.output  # a model of two epochs breaks a law, and that was asked for
    for part in ("floor of emt", "Labelled", "round 0: on", "Certificate", "LGPL", "NOT HELD", "run/model.pt", "not hold"):
        assert part in result.output, part
    (found,) = rounds_of("run")
    assert found["number"] == "0"  # 10 eV/Å is soon reached
    sampled, learned, held = (read(f"run/{name}.extxyz", ":") for name in ("sampled", "frames", "held_out"))
    assert len(learned) + len(held) == len(sampled)
    assert not keys(learned) & keys(held)
    certificate = read_header("run/model.pt")["provenance"]["certificate"]
    assert certificate["teacher"] == "emt"
    assert "Certificate" in flashace("info", "run/model.pt").output
    assert np.isfinite(FlashACE("run").get_potential_energy(bulk("Cu")))


@pytest.mark.slow
def test_what_is_there_is_not_made_twice(flashace, seed):
    asked = ("--rounds", 1, "--round-frames", 40, "--error", 1e-3, "--output", "run")
    assert flashace("distill", seed, *FEW, *TINY, *asked).exit_code == 1
    files = list(Path("run").rglob("*.extxyz")) + list(Path("run").rglob("student/model.pt"))
    assert len([path for path in files if path.name == "model.pt"]) == 2  # of the samples, and of a round
    before = {path: path.stat().st_mtime_ns for path in files}
    before_it = rounds_of("run")
    assert [row["number"] for row in before_it] == ["0", "1"]
    result = flashace("distill", "--resume", "run")
    assert result.exit_code == 1, result.output
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert rounds_of("run") == before_it
    own, labels = ([frame.info["task"] for frame in read(f"run/round-1/{name}.extxyz", ":")] for name in ("own", "labels"))
    assert len(set(labels)) == len(labels)
    assert len(own) == 40
    held, learned = (keys(read(f"run/round-1/{name}.extxyz", ":")) for name in ("held_out", "frames"))
    assert held
    assert learned
    assert not held & learned


def test_a_run_folder_in_use_is_refused(flashace, seed):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    result = flashace("distill", seed, *FEW, "--output", "run", "--overwrite")
    assert result.exit_code == 1
    assert "expected an empty run folder" in result.output
    assert Path("run/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cu.xyz",), "--teacher: expected the name of a teacher"),
        (("--teacher", "emt"), "SEEDS: expected a file"),
        (("cu.xyz", "--teacher", "gold"), "teacher: expected emt, tblite"),
        (("cu.xyz", "--teacher", "emt", "--bound", "laws"), "--bound: expected name=number"),
        (("cu.xyz", "--teacher", "emt", "--bound", "charm=1"), "got 'charm'"),
        (("--resume", ".", "--teacher", "emt"), "--resume: expected nothing beside it"),
        (("--resume", ".", "--overwrite"), "got --overwrite"),
        (("--resume", "."), "found no distill.yaml"),
    ],
)
def test_distill_says_what_it_lacks(flashace, seed, arguments, said):
    result = flashace("distill", *arguments)
    assert result.exit_code == 1
    assert said in result.output


def sampled_frames(num):
    """An isolated atom, a seed, and others."""
    frames = [labelled(Atoms("Cu"), EMT(), config_type="isolated_atom"), labelled(bulk("Cu"), EMT(), config_type="seed")]
    return [*frames, *(labelled(bulk("Cu", a=3.5 + n / 100), EMT(), config_type="strained") for n in range(num - 2))]


@pytest.mark.parametrize(("num", "held"), [(5, [4]), (45, [20, 40])])
def test_a_frame_is_held_out_however_few_there_are_and_no_isolated_atom(tmp_path, num, held):
    frames = sampled_frames(num)
    write(tmp_path / "sampled.extxyz", frames)
    rounds._hold_out(tmp_path / "sampled.extxyz", tmp_path)
    learned = read(tmp_path / "frames.extxyz", ":")
    found = read(tmp_path / "held_out.extxyz", ":")
    assert [len(found), len(learned)] == [len(held), num - len(held)]
    assert np.allclose([f.get_volume() for f in found], [frames[n].get_volume() for n in held])
    assert learned[0].info["config_type"] == "isolated_atom"


def test_a_student_is_as_hot_as_its_samples_and_known_from_any_folder(tmp_path, monkeypatch):
    asked = []

    def label(tasks, settings, path, console, same=True):
        asked.append((tasks, same))
        path.write_text("")

    monkeypatch.setattr(rounds, "label", label)
    write(tmp_path / "sampled.extxyz", sampled_frames(5))
    settings = sample_config({"teacher": "emt", "max_atoms": 8}, DistillConfig)
    (tmp_path / "round-1").mkdir()
    rounds._own_frames(Path("m.pt"), [look_at(bulk("Cu"))], settings, tmp_path / "round-1", 0, None)
    ((tasks, same),) = asked
    assert {round(task.temperature) for task in tasks} == {310, 740, 1240, 1980}
    assert not same


def test_a_student_that_cannot_begin_the_first_trajectory_is_still_measured(tmp_path, monkeypatch):
    def label(tasks, settings, path, console):
        write(path, [labelled(task.atoms, EMT(), task=task.key) for task in tasks])

    monkeypatch.setattr(rounds, "label", label)
    monkeypatch.setattr(rounds, "_uncertainties", lambda model, frames: [0.0] * len(frames))
    settings = sample_config({"teacher": "emt"}, DistillConfig)
    frames = sampled_frames(6)
    rounds._label(Path("m.pt"), [(1, frames[1]), (2, frames[2]), (3, frames[3])], settings, tmp_path, None)
    assert [len(read(tmp_path / f"{name}.extxyz", ":")) for name in ("held_out", "frames")] == [1, 1]
    with pytest.raises(FlashACEError, match=r"got 1; .*own\.failed\.extxyz says why"):
        rounds._label(Path("m.pt"), [(1, frames[1])], settings, tmp_path, None)


def test_a_run_that_is_made_anew_spares_what_is_not_its_own(seed):
    run = Path("run")
    (run / "student").mkdir(parents=True)
    for name in ("distill.yaml", "sampled.journal.extxyz", "notes.txt", "student/model.pt"):
        (run / name).write_text("")
    settings = sample_config({"teacher": "emt"}, DistillConfig)
    command.take(run, True, [bulk("Cu")], settings, make_config({}), command.OPTIONS, command.LEFT_BY_DISTILL)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "distill.yaml", "notes.txt", "seeds.extxyz"]
    for seeds, teacher in ((("run/seeds.extxyz",), "emt"), ((seed,), "flashace:run/model.pt"), ((seed,), "flashace:run")):
        with pytest.raises(FlashACEError, match="would delete"):
            command.spare(run, seeds, teacher)
    command.spare(run, (seed,), "flashace:elsewhere/model.pt")


def test_a_run_that_goes_on_has_the_same_seeds_to_the_last_digit(flashace, tmp_path, monkeypatch):
    """Or the keys of its tasks would be others, and their labels be made twice."""
    monkeypatch.chdir(tmp_path)
    crystal = bulk("Cu", a=3.6 + 1 / 3)
    crystal.rattle(0.1)
    crystal.info["note"] = "two\nlines"
    write("cu.traj", crystal)
    had = []
    monkeypatch.setattr(command, "best_of", lambda *arguments: ("emt", None))
    monkeypatch.setattr(rounds, "distill", lambda structures, *arguments: had.append(structures))  # as after Ctrl-C
    assert flashace("distill", "cu.traj", *FEW, "--output", "run").exit_code == 130
    assert flashace("distill", "--resume", "run").exit_code == 130
    assert had[0] == had[1]


def test_a_certificate_that_is_interrupted_is_no_bound_that_fails(flashace, seed, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "best_of", lambda *arguments: ("emt", None))
    monkeypatch.setattr(rounds, "distill", lambda *arguments: [])
    monkeypatch.setattr(command, "_certified", interrupted)
    result = flashace("distill", seed, *FEW, "--output", "a run")
    assert result.exit_code == 130, result.output
    assert "flashace distill --resume 'a run'" in result.output


# fit --teacher


@pytest.fixture
def data(seed):
    """Frames of another method: forces and energies of EMT, a tenth larger, with a zero of energy of their own."""
    random, frames = np.random.default_rng(0), []
    for n in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += random.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces, stress = 1.1 * atoms.get_potential_energy() - 400.0, 1.1 * atoms.get_forces(), 1.1 * atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
        atoms.info["config_type"] = "cold" if n % 2 else "warm"
        frames.append(atoms)
    write("data.xyz", frames)
    return "data.xyz"


def test_a_fit_starts_from_what_a_teacher_has_taught(flashace, data):
    result = flashace("fit", data, *FEW, *TINY, "--epochs", 2, "--output", "run")
    assert result.exit_code == 0, result.output
    for part in ("Teachers on your frames", "cold", "warm", "floor of emt", "Labelled", "run folder run/teacher/student", "run folder run"):
        assert part in result.output, part
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["pretrained"] == "run/teacher/student/model.pt"
    assert config["epochs"] == 2
    training = [atoms.positions for atoms in read(data, ":")]
    seeds = [frame for frame in read("run/teacher/frames.extxyz", ":") if frame.info["config_type"] == "seed"]
    assert seeds
    assert all(any(np.allclose(frame.positions, positions, atol=1e-6) for positions in training) for frame in seeds)
    provenance = read_header("run/model.pt")["provenance"]
    assert provenance["teacher"] == {"name": "emt", "licence": "LGPL (ASE)"}
    rows = {row["key"]: row for row in provenance["certificate"]["rows"]}
    assert rows["dft_forces"]["number"] == pytest.approx(provenance["errors"]["validation"][-1]["forces_rmse"])
    taught = read_header("run/teacher/student/model.pt")["provenance"]["errors"]["validation"][-1]
    assert rows["teacher_forces"]["number"] == pytest.approx(taught["forces_rmse"])
    assert rows["energy_volume"]["number"] > 0
    for key, why in (("trajectory_forces", "flashace distill"), ("from_scratch", "a fit of its own"), ("quick_fit", "too few frames")):
        assert rows[key]["number"] is None
        assert why in rows[key]["words"]
    assert "certificate: it took" in result.output
    assert "LGPL" in flashace("info", "run/model.pt").output  # of EMT
    again = flashace("fit", "--resume", "run")
    assert again.exit_code == 0, again.output
    assert "certificate: it took" not in again.output
    assert "holds a fit already" in flashace("fit", data, *TINY, "--output", "run").output
    assert read_header("run/model.pt")["atomic_energies"] != read_header("run/teacher/student/model.pt")["atomic_energies"]


def test_an_interrupted_lesson_goes_on(flashace, data, monkeypatch):
    asked = ("fit", data, *FEW, *TINY, "--output", "run")
    with monkeypatch.context() as patch:
        patch.setattr("flashace.teach.before_fit.learn", lambda *arguments, **options: None)  # as after Ctrl-C
        result = flashace(*asked)
    assert result.exit_code == 130
    assert "flashace fit --resume run" in result.output
    assert "holds a fit already" in flashace(*asked).output
    labels = Path("run/teacher/frames.extxyz").stat().st_mtime_ns
    result = flashace("fit", "--resume", "run")
    assert result.exit_code == 0, result.output
    assert Path("run/teacher/frames.extxyz").stat().st_mtime_ns == labels
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["pretrained"] == "run/teacher/student/model.pt"
    assert config["epochs"] == 10  # none was given: 22 steps would be fewer
    assert Path("run/model.pt").is_file()
    result = flashace("fit", data, *TINY, "--epochs", 1, "--output", "run", "--overwrite")  # without a teacher
    assert result.exit_code == 0, result.output
    assert not Path("run/teacher").exists()
    assert "LGPL" not in flashace("info", "run/model.pt").output


def test_validation_frames_are_no_seeds(flashace, data):
    frames = read(data, ":")
    for frame in frames[-3:]:
        frame.set_cell(frame.cell * 1.02, scale_atoms=True)
    write("valid.xyz", frames[-3:])
    write("train.xyz", frames[:-3])
    result = flashace("fit", "train.xyz", "--valid", "valid.xyz", *FEW, *TINY, "--epochs", 1, "--check", "off", "--output", "run")
    assert result.exit_code == 0, result.output
    seeds = [frame for frame in read("run/teacher/frames.extxyz", ":") if frame.info["config_type"] == "seed"]
    lengths = {round(float(frame.cell.lengths()[0]), 3) for frame in seeds}
    assert lengths == {3.61}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-n", 5), "--num: expected --teacher beside it"),
        (("--teacher", "emt", "--pretrained", "m.pt"), "m.pt"),
        (("--teacher", "emt", "--teacher", "tblite", "--teacher-arg", "a=1"), "teacher_arg: expected one teacher"),
    ],
)
def test_fit_says_what_contradicts_a_teacher(flashace, data, arguments, said):
    result = flashace("fit", data, *TINY, *arguments)
    assert result.exit_code == 1
    assert said in result.output
    assert not Path("runs").exists()


def test_a_lesson_that_goes_on_has_what_is_left_of_its_time(flashace, data, monkeypatch):
    asked = []

    def learn(frames, like, place, console, minutes):
        asked.append(minutes)
        time.sleep(0.2)  # the file has tenths of a second

    monkeypatch.setattr("flashace.teach.before_fit.sample", lambda structures, settings, frames, console: frames.write_text(""))
    monkeypatch.setattr("flashace.teach.before_fit.learn", learn)
    assert flashace("fit", data, *FEW, *TINY, "--max-time", 1000, "--output", "a run").exit_code == 130
    assert asked.pop() == pytest.approx(0.75 * 1000, abs=10)
    Path("a run/teacher/seconds").write_text(f"{60 * 600:15.1f}\n")
    result = flashace("fit", "--resume", "a run")
    assert result.exit_code == 130
    assert "flashace fit --resume 'a run'" in result.output
    assert asked.pop() == pytest.approx(0.75 * 400, abs=10)
    assert seconds_in(Path("a run/teacher/seconds")) > 60 * 600


def test_a_student_goes_on_with_the_time_that_it_began_with(monkeypatch, tmp_path):
    prepared = []
    (tmp_path / "student").mkdir()
    write_config(tmp_path / "student" / "config.yaml", make_config({"max_time": 7.0}))
    write(tmp_path / "frames.extxyz", sampled_frames(5))
    monkeypatch.setattr(student, "prepare", lambda options, *rest: prepared.append(options))
    monkeypatch.setattr(student, "fit", lambda *arguments, **options: True)
    for goes_on, minutes in ((False, 99.0), (True, 7.0)):
        monkeypatch.setattr(student, "checkpoints_in", lambda folder, there=goes_on: [folder] if there else [])
        student.learn([tmp_path / "frames.extxyz"], make_config({}), tmp_path / "student", Console(), 99.0)
        assert prepared.pop().train.max_time == minutes


def test_rounds_that_go_on_have_what_is_left_of_their_time(monkeypatch, tmp_path):
    """A round that was begun is made; none is begun any more."""
    looked = []

    def look(model, structures, settings, place, number, began, console):
        looked.append(number)
        return rounds.Round(number, str(model), str(place), 1, 1e3, 1.0, 0, 0.0)

    write(tmp_path / "sampled.extxyz", sampled_frames(5))
    (tmp_path / "round-1" / "student").mkdir(parents=True)
    (tmp_path / "seconds").write_text("3600")
    monkeypatch.setattr(rounds, "learn", lambda data, like, place, console, minutes, start: place / "model.pt")
    monkeypatch.setattr(rounds, "_look", look)
    settings = sample_config({"teacher": "emt", "max_time": 30.0}, DistillConfig)
    rounds.distill([bulk("Cu")], settings, make_config({}), tmp_path, Console())
    assert looked == [0, 1]
    assert seconds_in(tmp_path / "seconds") >= 3600


def test_ctrl_c_before_anything_is_written_says_so(flashace, data, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("flashace.teach.floor.floor_of", interrupted)
    result = flashace("fit", data, *FEW, *TINY, "--output", "run")
    assert result.exit_code == 130
    assert "interrupted before anything was written" in result.output
    assert not Path("run").exists()
    assert "interrupted before anything was written" in flashace("distill", "cu.xyz", *FEW, "--output", "run").output


def test_a_certificate_of_a_fit_that_is_interrupted_is_made_by_the_next_run(flashace, data, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flashace.teach.after_fit.property_rows", interrupted)
        result = flashace("fit", data, *FEW, *TINY, "--epochs", 1, "--output", "a run")
    assert result.exit_code == 130
    assert "has no certificate yet" in result.output
    assert "flashace fit --resume 'a run'" in result.output
    assert "certificate" not in read_header("a run/model.pt")["provenance"]
    result = flashace("fit", "--resume", "a run")
    assert result.exit_code == 0, result.output
    assert "certificate" in read_header("a run/model.pt")["provenance"]


def keys(frames):
    return {(frame.info["task"], frame.positions.tobytes()) for frame in frames}


def rounds_of(folder):
    """Rows of rounds.csv, without the time that they took."""
    with Path(folder, "rounds.csv").open() as file:
        return [dict(row, seconds="") for row in csv.DictReader(file)]
