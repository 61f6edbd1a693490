"""The loop: it learns, it can be repeated, stopped at any moment and continued as if nothing had happened."""

import csv
import itertools
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.io import write

from flashace.cli import fit as command
from flashace.potential.model_file import load_model, read_header
from flashace.train import clock as train_clock
from flashace.train import validation
from flashace.train.step import TrainStep

SAME = 1e-9  # relative; the same float64 arithmetic at another place in memory


def weights(folder):
    return dict(load_model(folder / "model.pt", torch.float64).named_parameters())


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return all((p - other[name]).abs().max() <= SAME * p.abs().max() for name, p in one.items())


def rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def repeated(frames):
    """Each frame 2 × 2 × 2 times, with its energy in info["e"] and its forces in arrays["f"]."""
    larger = [atoms.repeat(2) for atoms in frames]
    for atoms, large in zip(frames, larger, strict=True):
        large.info["e"], large.arrays["f"] = 8 * atoms.get_potential_energy(), np.tile(atoms.get_forces(), (8, 1))
    return larger


def signal_at(monkeypatch, steps, signum=signal.SIGINT):
    """Ctrl-C arrives in the middle of these steps of the fit, counted from 1."""
    plain, count = TrainStep.__call__, iter(range(1, 10**6))

    def call(self, *arguments):
        terms = plain(self, *arguments)
        if next(count) in steps:
            signal.raise_signal(signum)
        return terms

    monkeypatch.setattr(TrainStep, "__call__", call)


# Learning


def test_a_fit_learns(fit, tmp_path):
    """Forces of Lennard-Jones to a tenth of their size, within seconds."""
    assert fit("run", optimizer="muon", epochs=60, learning_rate=0.02).exit_code == 0
    errors = read_header(tmp_path / "run/model.pt")["provenance"]["errors"]["train"][-1]
    forces_unit = float(read_header(tmp_path / "run/model.pt")["scale"]) * 1e3
    assert errors["forces_rmse"] < 0.1 * forces_unit


def test_metrics_are_numbers_that_belong_together(fit, tmp_path):
    fit("run", epochs=40)  # 3 steps an epoch: a row after 34 and at the end
    found = rows(tmp_path / "run")
    assert [float(row["epoch"]) for row in found] == [34, 40]
    for row in found:
        assert all(np.isfinite(float(value)) for value in row.values() if value), row
        assert float(row["train_forces_rmse"]) > 0
        assert float(row["valid_forces_rmse"]) >= float(row["valid_forces_mae"])
    assert float(found[-1]["learning_rate"]) < float(found[0]["learning_rate"])
    last = read_header(tmp_path / "run/model.pt")["provenance"]["errors"]["validation"][-1]
    assert min(float(row["valid_forces_rmse"]) for row in found) == pytest.approx(last["forces_rmse"], rel=0.5)


def test_max_time_ends_the_fit_and_its_schedule(fit, tmp_path, monkeypatch):
    """With a clock of our own, which moves by 100 ms whenever it is looked at."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.1 * next(ticks))
    monkeypatch.setattr(train_clock, "time", clock)
    monkeypatch.setattr(command, "time", clock)
    assert fit("run", epochs=None, max_time=0.5, learning_rate=1e-3, dtype="float32").exit_code == 0
    assert 20 < clock.monotonic() < 30
    last = rows(tmp_path / "run")[-1]
    assert float(last["epoch"]) > 5
    assert float(last["learning_rate"]) < 2e-4


def test_max_time_counts_what_comes_after_the_last_step(fit, make_frames, tmp_path, monkeypatch):
    """Predictions take 0.1 s a frame here, and nothing else takes any time: validation, closing table and uncertainty fit in as well."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    plain, train = validation.predict_each, TrainStep.__call__

    def slow(model, graphs):
        for prediction in plain(model, graphs):
            now[0] += 0.1
            yield prediction

    def step(self, *arguments):
        now[0] += 0.5
        return train(self, *arguments)

    monkeypatch.setattr(train_clock, "time", clock)
    monkeypatch.setattr(command, "time", clock)
    monkeypatch.setattr(validation, "predict_each", slow)
    monkeypatch.setattr(TrainStep, "__call__", step)
    write(tmp_path / "more.extxyz", make_frames(60))
    assert fit("run", data=[str(tmp_path / "more.extxyz")], epochs=None, max_time=0.5).exit_code == 0
    assert 20 < now[0] < 30.5
    assert float(rows(tmp_path / "run")[-1]["epoch"]) < 3
    now[0] = 0.0
    late = fit("late", data=[str(tmp_path / "more.extxyz")], epochs=None, max_time=0.1)
    assert "max_time: this fit will take" in late.output


def test_labels_that_are_missing_are_left_out(fit, make_frames, tmp_path):
    frames = make_frames()
    for i, atoms in enumerate(frames):
        if i % 3:
            atoms.calc.results.pop("stress")
        if i % 4 == 1:
            atoms.calc.results.pop("forces")
        if i % 5 == 2:
            atoms.calc.results.pop("energy")
    write(tmp_path / "holes.extxyz", frames)
    result = fit("run", data=[str(tmp_path / "holes.extxyz")])
    assert result.exit_code == 0
    assert all(p.isfinite().all() for p in weights(tmp_path / "run").values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_molecules_without_a_cell_are_fitted(fit, make_frames, tmp_path, dtype):
    frames = make_frames()
    for atoms in frames:
        atoms.calc.results.pop("stress")
        atoms.pbc, atoms.cell = False, None
    write(tmp_path / "m.extxyz", frames)
    assert fit("run", data=[str(tmp_path / "m.extxyz")], dtype=dtype, check="warn").exit_code == 0
    one = weights(tmp_path / "run")
    assert all(p.isfinite().all() for p in one.values())
    assert np.isfinite(read_header(tmp_path / "run/model.pt")["provenance"]["errors"]["train"][-1]["forces_rmse"])
    assert fit("longer", data=[str(tmp_path / "m.extxyz")], dtype=dtype, check="warn", epochs=6).exit_code == 0
    assert any((p != weights(tmp_path / "longer")[name]).any() for name, p in one.items())


# Repeating


def test_the_same_seed_gives_the_same_model(fit, tmp_path):
    fit("one", seed=1), fit("two", seed=1), fit("three", seed=2)
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert not same_weights(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bits_with_two_threads(fit, make_frames, tmp_path, compiled):
    write(tmp_path / "large.extxyz", repeated(make_frames(4)))
    options = {
        "data": ["large.extxyz"],
        "dtype": "float32",
        "optimizer": "muon",
        "edge_hidden_dim": 64,
        "energy_key": "e",
        "forces_key": "f",
    }
    torch.set_num_threads(2)
    try:
        for name in ("one", "two"):
            assert fit(name, epochs=3, compile=compiled, **options).exit_code == 0
    finally:
        torch.set_num_threads(1)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(p, two[name]) for name, p in one.items())


# Stopping and going on


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued_is_never_stopped(fit, flashace, tmp_path, monkeypatch, step, signum):
    """Three steps an epoch: the signal comes within the first, at the end of an epoch, and after it."""
    options = {"epochs": 3, "checkpoint_interval": 2}
    assert fit("whole", **options).exit_code == 0
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        signal_at(patch, {step}, signum)
        stopped = fit("parts", ok=False, **options)
    assert stopped.exit_code == 130
    assert not (tmp_path / "parts/model.pt").exists()
    assert "flashace fit --resume parts" in stopped.output
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert handlers == before
    resumed = flashace("fit", "--resume", "parts")
    assert resumed.exit_code == 0, resumed.output
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert [row["epoch"] for row in rows(tmp_path / "parts")] == [row["epoch"] for row in rows(tmp_path / "whole")]


def test_stopped_again_and_again(fit, flashace, tmp_path, monkeypatch):
    fit("whole", epochs=3)
    for attempt in range(9):
        with monkeypatch.context() as patch:
            signal_at(patch, {2})
            result = fit("parts", ok=False, epochs=3) if attempt == 0 else flashace("fit", "--resume", "parts")
        if result.exit_code == 0:
            break
    assert attempt in (4, 5)  # nine steps, two at a time
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_second_signal_ends_at_once(fit, tmp_path, monkeypatch):
    plain = TrainStep.__call__

    def call(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return plain(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", call)
    assert fit("run", ok=False).exit_code != 0
    assert not (tmp_path / "run/model.pt").exists()


def test_a_signal_while_the_step_is_compiled_is_heard_at_once(fit, flashace, tmp_path, monkeypatch):
    """Compiling takes minutes; nothing is lost with it but itself."""
    fit("whole", epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "_trace", lambda self: signal.raise_signal(signal.SIGTERM) or pytest.fail("went on compiling"))
        stopped = fit("parts", ok=False, epochs=3, compile=True)
    assert stopped.exit_code == 130, stopped.output
    assert "flashace fit --resume parts" in stopped.output
    config = tmp_path / "parts/config.yaml"
    config.write_text(config.read_text().replace("compile: true", "compile: false"))
    assert flashace("fit", "--resume", "parts").exit_code == 0
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_fit_in_a_thread(fit, tmp_path):
    """As dask and notebooks run it: Python lets nobody but the main thread listen to signals."""
    results = []
    thread = threading.Thread(target=lambda: results.append(fit("run")))
    thread.start()
    thread.join()
    assert results[0].exit_code == 0, results[0].output
    assert (tmp_path / "run/model.pt").is_file()


def test_two_fits_in_one_folder(fit, flashace, tmp_path, monkeypatch):
    """The second one ends at once and names the first; the first is what it would have been."""
    fit("whole")
    plain, seen = TrainStep.__call__, []

    def call(self, *arguments):
        if not seen:
            others = (lambda: fit("run", "--overwrite", ok=False, seed=1), lambda: flashace("fit", "--resume", "run"))
            thread = threading.Thread(target=lambda: seen.extend(other() for other in others))
            thread.start()
            thread.join()
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", call)
        assert fit("run").exit_code == 0
    assert [result.exit_code for result in seen] == [1, 1]
    assert all("run: expected a folder that no other fit writes to, but process" in result.output for result in seen)
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    assert "seed: 0" in (tmp_path / "run/config.yaml").read_text()
    assert not list((tmp_path / "run").glob(".lock"))


def test_two_fits_with_one_folder_for_checkpoints(fit, tmp_path, monkeypatch):
    plain, seen = TrainStep.__call__, []
    away = str(tmp_path / "away")

    def call(self, *arguments):
        if not seen:
            thread = threading.Thread(target=lambda: seen.append(fit("other", ok=False, checkpoint_dir=away)))
            thread.start()
            thread.join()
        return plain(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", call)
    assert fit("run", checkpoint_dir=away).exit_code == 0
    assert "away: expected a folder that no other fit writes to" in seen[0].output
    assert not (tmp_path / "other").exists()


def test_muon_goes_on_too(fit, flashace, tmp_path, monkeypatch):
    fit("whole", optimizer="muon", epochs=3)
    with monkeypatch.context() as patch:
        signal_at(patch, {4})
        fit("parts", ok=False, optimizer="muon", epochs=3)
    flashace("fit", "--resume", "parts")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all((p - other[name]).abs().max() <= 1e-6 * p.abs().max() for name, p in one.items())


def test_a_finished_fit_can_be_resumed_and_stays_as_it_is(fit, flashace, tmp_path):
    fit("run")
    before = weights(tmp_path / "run")
    assert flashace("fit", "--resume", "run").exit_code == 0
    assert all(torch.equal(p, before[name]) for name, p in weights(tmp_path / "run").items())


def test_a_run_that_was_moved_goes_on_where_it_is(fit, flashace, tmp_path, monkeypatch):
    """The message names a folder, and a cluster's scratch disk is not the place where a run ends its days."""
    with monkeypatch.context() as patch:
        signal_at(patch, {2})
        fit("run", ok=False)
    (tmp_path / "run").rename(tmp_path / "moved")
    result = flashace("fit", "--resume", "moved")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "moved/model.pt").is_file()
    assert not (tmp_path / "run").exists()


def test_other_data_is_not_continued(fit, flashace, make_frames, tmp_path, monkeypatch):
    write(tmp_path / "d.extxyz", make_frames())
    with monkeypatch.context() as patch:
        signal_at(patch, {2})
        fit("run", ok=False, data=["d.extxyz"])
    write(tmp_path / "d.extxyz", make_frames(seed=5))
    result = flashace("fit", "--resume", "run")
    assert result.exit_code == 1
    assert "so this is not the interrupted fit" in result.output


def test_another_model_is_not_continued(fit, flashace, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, {2})
        fit("run", ok=False)
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("hidden_dim: 16", "hidden_dim: 32"))
    result = flashace("fit", "--resume", "run")
    assert result.exit_code == 1
    assert "hidden_dim 16 there and 32 here" in result.output


def test_weights_that_are_not_finite_never_become_the_model(fit, tmp_path):
    """A fit that diverges says so, or keeps the best weights that it had."""
    result = fit("run", ok=False, learning_rate=1e30, dtype="float32", epochs=4)
    if result.exit_code == 0:
        assert all(p.isfinite().all() for p in weights(tmp_path / "run").values())
    else:
        assert result.output.splitlines()[-1].startswith("Error: ")
