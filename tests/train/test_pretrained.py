"""A model finished on other labels: zero of energy and elements become those of the data; before a step, nothing else changes."""

import csv

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from rich.console import Console

from flashace.errors import FlashACEError
from flashace.potential.derivatives import predict
from flashace.potential.model_file import load_model, read_header, save_model
from flashace.structure.neighbors import build_graph
from flashace.train.config import load_config, make_config
from flashace.train.loop import Trainer
from flashace.train.prepare import prepare

pytestmark = pytest.mark.usefixtures("every_epoch")

SHIFT = {"C": 1034.5, "Si": -7890.25}  # eV; another zero of energy
SHAPE = ("r_max", "num_radial", "hidden_dim", "num_channels", "key_dim", "edge_hidden_dim", "num_layers", "correlation")
R_MAX = 4.0  # of the models that make_model makes


@pytest.fixture
def model(make_model):
    """A random model, which knows the shortest distances of no data."""
    return make_model(num_layers=1, correlation=2)


@pytest.fixture
def model_file(model, tmp_path):
    save_model(tmp_path / "old.pt", model, {})
    return tmp_path / "old.pt"


@pytest.fixture
def relabelled(model, make_frames, tmp_path):
    """relabelled(name, numbers=…, isolated=…): a file whose labels are those of the model, but for SHIFT."""

    def make(name, compositions=((14, 6), (14, 14)), isolated=()):
        frames = []
        for i, atoms in enumerate(make_frames(12)):
            atoms.numbers[:] = compositions[i % len(compositions)]
            known = [z if z in (6, 14) else 6 for z in atoms.numbers]
            found = predict(model, build_graph(Atoms(known, atoms.positions, cell=atoms.cell, pbc=True), R_MAX), torch.float64)
            energy = found.energy.item() + sum(SHIFT.get(symbol, 0.0) for symbol in atoms.symbols)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=found.forces.detach().numpy())
            frames.append(atoms)
        for symbol, energy in dict(isolated).items():
            lone = Atoms(symbol, info={"config_type": "isolated_atom"})
            lone.calc = SinglePointCalculator(lone, energy=energy, forces=np.zeros((1, 3)))
            frames.append(lone)
        write(tmp_path / name, frames)
        return str(tmp_path / name)

    return make


@pytest.fixture
def finish(tiny_fit, model_file, tmp_path):
    """finish(data, …): the Trainer before its first step."""
    shapeless = {name: value for name, value in tiny_fit.items() if name not in SHAPE}

    def make(data, **options):
        prepared = prepare(make_config({**shapeless, "data": [data], "pretrained": str(model_file), **options}))
        (tmp_path / "trainer").mkdir(exist_ok=True)
        return Trainer(prepared, tmp_path / "trainer", Console(quiet=True), 0.0)

    return make


def forces(model, atoms):
    return predict(model, build_graph(atoms, R_MAX), torch.float64).forces


def energy(model, atoms):
    return model(build_graph(atoms, R_MAX)).sum().item()


@pytest.mark.parametrize("isolated", [False, True], ids=["least squares", "isolated atoms"])
def test_another_zero_of_energy_is_taken_up_and_no_force_changes(model, relabelled, finish, isolated, structure):
    """Least squares find the shift; isolated atoms name it, and nothing is left for the network to make up for."""
    zero = {symbol: model.e0[symbol] + SHIFT[symbol] for symbol in SHIFT}
    started = finish(relabelled("new.extxyz", isolated=zero if isolated else {}))
    for symbol, expected in zero.items():
        assert started.model.e0[symbol] == (expected if isolated else pytest.approx(expected, abs=1e-8))
        assert energy(started.model, Atoms(symbol)) == started.model.e0[symbol]
    crystal = structure("crystal")
    assert (forces(started.model, crystal) - forces(model, crystal)).abs().max() < 1e-8
    shift = sum(SHIFT[symbol] for symbol in crystal.symbols)
    assert energy(started.model, crystal) == pytest.approx(energy(model, crystal) + shift, abs=1e-6)
    if not isolated:
        assert all(torch.equal(p, q) for p, q in zip(started.model.parameters(), model.parameters(), strict=True))
    assert f"C {zero['C']:.4f}" in dict(started.prepared.decisions())["reference energies"]


def test_what_isolated_atoms_leave_the_network_makes_up_for(model, relabelled, finish):
    zero = {symbol: model.e0[symbol] + SHIFT[symbol] + 0.5 for symbol in SHIFT}
    started = finish(relabelled("new.extxyz", isolated=zero))
    for network in (started.model, started.update.averaged):
        errors = [(energy(network, f.atoms) - f.energy) / 2 for f in started.prepared.train]
        assert abs(np.mean(errors)) < 0.02
        assert energy(network, Atoms("C")) == zero["C"]


def test_one_composition_is_aligned_too(model, relabelled, finish):
    started = finish(relabelled("new.extxyz", compositions=((14, 6),)))
    assert max(abs(energy(started.model, f.atoms) - f.energy) for f in started.prepared.train) < 1e-8
    assert "cannot tell apart C, Si" in started.prepared.references.origin


def test_new_elements_begin_as_the_nearest(model, relabelled, finish):
    """And the model says the same of structures without them."""
    started = finish(relabelled("new.extxyz", compositions=((14, 6), (14, 7), (7, 7), (14, 14))))
    assert started.model.symbols == ["C", "N", "Si"]
    decisions = dict(started.prepared.decisions())
    assert "N (begins as C)" in decisions["start"]
    crystal = Atoms("SiC", [(0, 0, 0), (0, 0, 1.9)])
    assert (forces(started.model, crystal) - forces(model, crystal)).abs().max() < 1e-12
    as_nitrogen = Atoms("SiN", crystal.positions)
    beyond = energy(started.model, as_nitrogen) - started.model.e0["N"] - (energy(started.model, crystal) - started.model.e0["C"])
    assert abs(beyond) < 1e-9
    started.run()


def test_elements_that_the_data_lacks_stay(model, relabelled, finish):
    started = finish(relabelled("new.extxyz", compositions=((14, 14),)))
    assert started.model.e0 == {"C": model.e0["C"], "Si": pytest.approx(model.e0["Si"] + SHIFT["Si"], abs=1e-8)}
    assert "of C, which the data lacks, those of the model" in started.prepared.references.origin
    crystal = Atoms("SiC", [(0, 0, 0), (0, 0, 1.9)])
    assert (forces(started.model, crystal) - forces(model, crystal)).abs().max() < 1e-12
    started.run()
    assert energy(started.update.averaged, Atoms("C")) == model.e0["C"]


def test_an_energy_that_is_given_for_an_element_that_the_data_lacks_holds(relabelled, finish, model):
    given = {"Si": model.e0["Si"] + SHIFT["Si"], "C": 999.0}
    started = finish(relabelled("new.extxyz", compositions=((14, 14),)), atomic_energies=given)
    assert started.model.e0 == given
    assert "those of the model" not in started.prepared.references.origin


# The shape


def test_the_shape_is_that_of_the_model(model, relabelled, finish):
    started = finish(relabelled("new.extxyz"))
    assert started.prepared.config.model == model.config
    assert (started.model.scale, started.model.avg_num_neighbors) == (model.scale, model.avg_num_neighbors)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"r_max": 3.5}, "r_max 4.0 there and 3.5 here"), ({"size": "large"}, "num_layers 1 there and 3 here"), ({"zbl": False}, "zbl True")],
)
def test_another_shape_is_refused(relabelled, finish, options, words):
    with pytest.raises(FlashACEError, match=rf"old\.pt: the shape is that of the model.*{words}"):
        finish(relabelled("new.extxyz"), **options)


def test_the_same_shape_may_be_said(relabelled, finish, model):
    assert finish(relabelled("new.extxyz"), r_max=4.0, num_layers=1).model.config == model.config


# What is refused


def test_two_ways_to_start_are_refused():
    with pytest.raises(FlashACEError, match="`pretrained` and `resume_from` are two ways to start"):
        make_config({"pretrained": "a.pt", "resume_from": "b.pt"})


def test_what_is_no_model_is_refused(relabelled, finish, tmp_path):
    data = relabelled("new.extxyz")
    with pytest.raises(FileNotFoundError, match=r"no-model\.pt: no such file"):
        finish(data, pretrained=str(tmp_path / "no-model.pt"))
    with pytest.raises(FlashACEError, match=r"new\.extxyz: expected a FlashACE model file"):
        finish(data, pretrained=data)


def test_it_has_its_own_learning_rate(tmp_path):
    assert make_config({"pretrained": "a.pt"}).train.learning_rate < make_config({}).train.learning_rate
    assert make_config({"pretrained": "a.pt", "learning_rate": 0.1}).train.learning_rate == 0.1
    (tmp_path / "run.yaml").write_text("learning_rate: 0.006\n")
    expected = make_config({"pretrained": "a.pt"}).train.learning_rate
    assert load_config(tmp_path / "run.yaml", {"pretrained": "a.pt"}).train.learning_rate == expected


# From the command line, and interrupted


def bits(run):
    model = {name: p.numpy().tobytes() for name, p in load_model(run / "model.pt", torch.float64).named_parameters()}
    return model, [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader((run / "metrics.csv").open())]


@pytest.fixture
def command(flashace, write_yaml, tmp_path, monkeypatch):
    """command(run, data, …): `flashace fit` in tmp_path; AdamW can be repeated to the last bit."""
    monkeypatch.chdir(tmp_path)

    def run(folder, data, **options):
        shape = dict.fromkeys(SHAPE)
        file = write_yaml(tmp_path / f"{folder}.yaml", data=[data], optimizer="adamw", **{**shape, "checkpoint_interval": 1, **options})
        return flashace("fit", "-c", file, "-o", folder)

    return run


@pytest.mark.usefixtures("signals_as_usual")
def test_stopped_and_resumed_is_bit_equal(command, flashace, relabelled, model_file, tmp_path, monkeypatch, stop_at):
    """With an element more and one that stays; the model may be gone by then. What is left can be finished, or fitted, again."""
    data = relabelled("new.extxyz", compositions=((14, 7), (14, 14)))
    whole = command("whole", data, pretrained=str(model_file))
    assert whole.exit_code == 0, whole.output
    assert read_header(tmp_path / "whole/model.pt")["atomic_energies"].keys() == {"C", "N", "Si"}
    assert read_header(tmp_path / "whole/model.pt")["uncertainty"]["frames"] == 1
    assert flashace("fit", "-c", "whole/config.yaml", "-o", "again").exit_code == 0
    assert bits(tmp_path / "again") == bits(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert command("parts", data, pretrained=str(model_file)).exit_code == 130
    model_file.unlink()
    resumed = flashace("fit", "--resume", "parts")
    assert resumed.exit_code == 0, resumed.output
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_a_run_folder_means_its_model(command, relabelled, model_file, tmp_path):
    data = relabelled("new.extxyz")
    assert command("one", data, pretrained=str(model_file), epochs=1).exit_code == 0
    assert command("two", data, pretrained="one", epochs=1).exit_code == 0
    assert command("three", data, pretrained="one/model.pt", epochs=1).exit_code == 0
    assert bits(tmp_path / "two") == bits(tmp_path / "three")


@pytest.mark.parametrize("start", ["pretrained", "resume_from"])
def test_killed_before_the_first_checkpoint_it_begins_again(relabelled, model, model_file, tiny_fit, tmp_path, start):
    """With reference energies as the first time: those of the data."""
    shape = {name: getattr(model.config, name) for name in SHAPE}
    options = {"data": [relabelled("new.extxyz")], start: str(model_file), "use_checkpoint_energy_shift": False}
    config = make_config({**tiny_fit, **shape, **options})
    first, again = prepare(config), prepare(config, tmp_path)
    assert again.references == first.references
    assert again.references.values["Si"] < -1000


# Old data mixed in


@pytest.fixture
def old_file(model, make_frames, tmp_path):
    """Twenty frames with the labels of the model itself, but for another zero of energy than both others."""
    frames = make_frames(20, seed=3)
    for i, atoms in enumerate(frames):
        atoms.numbers[:] = ((14, 6), (14, 14))[i % 2]
        found = predict(model, build_graph(atoms, R_MAX), torch.float64)
        energy = found.energy.item() + sum({"C": 7.0, "Si": -40.0}[symbol] for symbol in atoms.symbols)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=found.forces.detach().numpy())
        atoms.info["source"] = "teacher"
    write(tmp_path / "old.extxyz", frames)
    return str(tmp_path / "old.extxyz")


def test_old_energies_get_the_zero_of_the_new_ones(relabelled, finish, old_file):
    """So the model, which had both right, has them right."""
    started = finish(relabelled("new.extxyz"), replay=[old_file])
    replay = started.prepared.replay
    assert (len(replay.train), len(replay.valid)) == (18, 2)
    for frame in replay.train:
        assert energy(started.model, frame.atoms) == pytest.approx(frame.energy, abs=1e-6)
    assert replay.shifts == {"teacher": {symbol: pytest.approx(SHIFT[symbol] - {"C": 7.0, "Si": -40.0}[symbol]) for symbol in SHIFT}}
    assert "teacher: C +1027.5000, Si -7850.2500" in dict(started.prepared.decisions())["replay"]


def test_old_energies_do_not_speak_against_those_of_isolated_atoms(model, relabelled, finish, old_file):
    """What the network makes up for, the old energies have too."""
    zero = {symbol: model.e0[symbol] + SHIFT[symbol] + 0.5 for symbol in SHIFT}
    started = finish(relabelled("new.extxyz", isolated=zero), replay=[old_file])
    errors = [(energy(started.model, frame.atoms) - frame.energy) / 2 for frame in started.prepared.replay.train]
    assert abs(np.mean(errors)) < 0.02


def test_each_epoch_has_its_own_old_frames(relabelled, finish, old_file):
    batches = finish(relabelled("new.extxyz"), replay=[old_file], replay_fraction=0.5, batch_size=3).batches
    num_new = len(batches.train.frames)
    epochs = [[i for step in batches.of_epoch(epoch) for i in step] for epoch in range(2)]
    for frames in epochs:
        assert sorted(i for i in frames if i < num_new) == list(range(num_new))
        assert len({i for i in frames if i >= num_new}) == num_new
    assert {i for i in epochs[0] if i >= num_new} != {i for i in epochs[1] if i >= num_new}
    assert batches.per_epoch == len(batches.of_epoch(0))
    assert epochs[0] == [i for step in batches.of_epoch(0) for i in step]


def test_more_old_frames_than_there_are_come_again(relabelled, finish, old_file):
    batches = finish(relabelled("new.extxyz"), replay=[old_file], replay_fraction=0.8).batches
    assert sum(map(len, batches.of_epoch(0))) == 5 * len(batches.train.frames)


def test_units_and_scale_are_those_of_the_new_data(relabelled, finish, old_file):
    data = relabelled("new.extxyz")
    with_old, without = finish(data, replay=[old_file]), finish(data)
    assert with_old.prepared.units == without.prepared.units
    assert with_old.model.scale == without.model.scale


def test_both_stand_in_the_log_and_in_the_table(command, relabelled, model_file, old_file, tmp_path):
    result = command("run", relabelled("new.extxyz"), pretrained=str(model_file), replay=[old_file], epochs=2)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert all(float(row["replay_forces_rmse"]) > 0 and float(row["valid_forces_rmse"]) > 0 for row in rows)
    words = " ".join(result.output.replace("│", " ").split())
    assert "replay: energy" in words
    assert "replay: teacher" in words
    provenance = read_header(tmp_path / "run/model.pt")["provenance"]
    assert provenance["errors"].keys() == {"train", "validation", "replay: teacher"}
    assert provenance["replay"]["frames"] == 18


def test_without_frames_for_validation_no_old_ones_are_kept_either(relabelled, finish, old_file):
    replay = finish(relabelled("new.extxyz"), replay=[old_file], valid_fraction=0).prepared.replay
    assert (len(replay.train), len(replay.valid)) == (20, 0)


@pytest.mark.usefixtures("signals_as_usual")
def test_with_old_data_stopped_and_resumed_is_bit_equal(
    command, flashace, relabelled, model_file, old_file, tmp_path, monkeypatch, stop_at
):
    data = relabelled("new.extxyz")
    options = {"pretrained": str(model_file), "replay": [old_file]}
    assert command("whole", data, **options).exit_code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        assert command("parts", data, **options).exit_code == 130
    model_file.unlink()
    resumed = flashace("fit", "--resume", "parts")
    assert resumed.exit_code == 0, resumed.output
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_old_data_is_held_better_with_it(model, make_frames, tmp_path, finish, old_file):
    """New labels with forces twice as large, for one composition: the old ones of the other are forgotten, or not."""
    frames = make_frames(10, seed=5)
    for atoms in frames:
        atoms.numbers[:] = 14
        found = predict(model, build_graph(atoms, R_MAX), torch.float64)
        atoms.calc = SinglePointCalculator(atoms, energy=2 * found.energy.item(), forces=2 * found.forces.detach().numpy())
    write(tmp_path / "new.extxyz", frames)
    rows = []
    for options in ({"replay_fraction": 0.02}, {"replay_fraction": 0.6}):
        started = finish(str(tmp_path / "new.extxyz"), replay=[old_file], epochs=15, optimizer="adamw", learning_rate=0.01, **options)
        started.run()
        rows.append(started.log.rows[-1])
    forgot, held = rows
    assert held["replay_forces_rmse"] < 0.8 * forgot["replay_forces_rmse"]


def test_validation_frames_among_the_old_ones_are_told(relabelled, model_file, tiny_fit):
    new, again, told = relabelled("new.extxyz"), relabelled("again.extxyz"), []
    shapeless = {name: value for name, value in tiny_fit.items() if name not in SHAPE}
    prepare(make_config({**shapeless, "data": [new], "pretrained": str(model_file), "replay": [new, again]}), tell=told.append)
    assert any("validation frames are among the old frames too" in line for line in told)


def test_old_data_without_a_model_that_knew_it_is_refused(old_file):
    with pytest.raises(FlashACEError, match="name the model with `pretrained`"):
        make_config({"replay": [old_file]})


def test_old_elements_that_nobody_knows_are_refused(relabelled, finish, make_frames, tmp_path):
    frames = make_frames(2)
    frames[0].numbers[0] = 32
    write(tmp_path / "ge.extxyz", frames)
    with pytest.raises(FlashACEError, match="got Ge too; leave out the frames with them"):
        finish(relabelled("new.extxyz"), replay=[str(tmp_path / "ge.extxyz")])
