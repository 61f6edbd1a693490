"""A model finished on other labels: zero of energy and elements become those of the data; before a step, nothing else changes."""

import csv
import signal

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
from flashace.train.step import TrainStep

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


def stopped(monkeypatch, step):
    plain, count = TrainStep.__call__, iter(range(1, 10**6))

    def call(self, *arguments):
        terms = plain(self, *arguments)
        if next(count) == step:
            signal.raise_signal(signal.SIGTERM)
        return terms

    monkeypatch.setattr(TrainStep, "__call__", call)


@pytest.mark.usefixtures("signals_as_usual")
def test_stopped_and_resumed_is_bit_equal(command, flashace, relabelled, model_file, tmp_path, monkeypatch):
    """With an element more and one that stays; the model may be gone by then. What is left can be finished, or fitted, again."""
    data = relabelled("new.extxyz", compositions=((14, 7), (14, 14)))
    whole = command("whole", data, pretrained=str(model_file))
    assert whole.exit_code == 0, whole.output
    assert read_header(tmp_path / "whole/model.pt")["atomic_energies"].keys() == {"C", "N", "Si"}
    assert read_header(tmp_path / "whole/model.pt")["uncertainty"]["frames"] == 1
    assert flashace("fit", "-c", "whole/config.yaml", "-o", "again").exit_code == 0
    assert bits(tmp_path / "again") == bits(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped(patch, 4)
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
