"""Checkpoints and what comes back from them: everything to the last bit, or only what is asked for."""

import csv
import importlib
import itertools
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import read, write
from rich.console import Console

from flashace.errors import FlashACEError
from flashace.potential.model_file import load_model, read_header
from flashace.structure.neighbors import build_graph
from flashace.train import batches
from flashace.train.checkpoint import checkpoints_in, load_checkpoint, save_checkpoint
from flashace.train.config import make_config
from flashace.train.loop import Trainer
from flashace.train.prepare import Prepared, prepare
from flashace.train.step import TrainStep
from flashace.train.validation import Validation

EXACT = {"resume_load_optimizer": True, "resume_load_scheduler": True, "resume_load_scaler": True}


pytestmark = pytest.mark.usefixtures("every_epoch")


@pytest.fixture
def fit_options():
    """Three steps an epoch, and a checkpoint after each."""
    return {"epochs": 4, "checkpoint_interval": 1}


def bits(run):
    """Weights of the model and rows of metrics.csv, without the time that they took."""
    model = {name: p.numpy().tobytes() for name, p in load_model(run / "model.pt", torch.float64).named_parameters()}
    return model, [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader((run / "metrics.csv").open())]


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


# Bit-equal


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("step", [2, 6], ids=["mid-epoch", "epoch boundary"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_stopped_and_resumed_is_bit_equal(fit, flashace, tmp_path, monkeypatch, step, optimizer, dtype, stop_at):
    options = {"optimizer": optimizer, "dtype": dtype}
    fit("whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert fit("parts", ok=False, **options).exit_code == 130
    assert flashace("fit", "--resume", "parts").exit_code == 0
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


@pytest.mark.parametrize("step", [4, 6])
def test_all_flags_into_a_new_folder_are_the_same_fit(fit, tmp_path, monkeypatch, step, stop_at):
    fit("whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        fit("parts", ok=False)
    fit("new", resume_from="parts", **EXACT)
    assert bits(tmp_path / "new") == bits(tmp_path / "whole")
    assert len(bits(tmp_path / "new")[1]) == 4


def test_what_the_scores_led_to_comes_back(fit, flashace, tmp_path, monkeypatch, stop_at):
    """The learning rate of a plateau, and the best weights, where no score after the stop is better than those before."""
    scores = itertools.count()
    monkeypatch.setattr(Validation, "score", lambda self, errors: float(next(scores)))
    options = {"lr_scheduler": "plateau", "lr_patience": 0, "warmup": 0.0}
    fit("whole", **options)
    rates = [float(row["learning_rate"]) for row in bits(tmp_path / "whole")[1]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        assert fit("parts", ok=False, **options).exit_code == 130
    assert flashace("fit", "--resume", "parts").exit_code == 0
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_a_folder_of_ones_own_for_checkpoints_is_found_again(fit, flashace, tmp_path, monkeypatch, stop_at):
    options = {"checkpoint_dir": "elsewhere"}
    fit("whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        assert fit("parts", ok=False, **options).exit_code == 130
    fit("new", resume_from="parts", **options, **EXACT)
    assert bits(tmp_path / "new") == bits(tmp_path / "whole")
    resumed = flashace("fit", "--resume", "parts")
    assert "no checkpoint yet" not in resumed.output
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_time_already_spent_comes_back(fit, flashace, tmp_path, monkeypatch, stop_at):
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        fit("run", ok=False)
    path = checkpoints_in(tmp_path / "run/checkpoints")[-1]
    state = load_checkpoint(path)
    state["schedule"]["elapsed"] = 1000.0
    save_checkpoint(path, state)
    assert flashace("fit", "--resume", "run").exit_code == 0
    assert float(list(csv.DictReader((tmp_path / "run/metrics.csv").open()))[-1]["seconds"]) >= 1000


def test_from_every_checkpoint_the_same_end(fit, flashace, tmp_path):
    """As after a crash that lost what came later: the rows after the checkpoint go, too."""
    fit("run", keep_checkpoints=9)
    end = bits(tmp_path / "run")
    for path in reversed(checkpoints_in(tmp_path / "run/checkpoints")):
        for later in checkpoints_in(tmp_path / "run/checkpoints"):
            later.unlink() if later > path else None
        (tmp_path / "run/model.pt").unlink()
        assert flashace("fit", "--resume", "run").exit_code == 0
        assert bits(tmp_path / "run") == end


def test_before_the_first_checkpoint_it_starts_again(fit, flashace, tmp_path):
    fit("run")
    end = bits(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    result = flashace("fit", "--resume", "run")
    assert "run: no checkpoint yet, so this fit starts from the beginning" in result.output
    assert bits(tmp_path / "run") == end


def test_random_states_come_back(fit, flashace, tmp_path, monkeypatch, stop_at):
    """A step that draws random numbers, as dropout or augmentation do."""
    plain = TrainStep.__call__

    def call(self, batch, weights):
        return plain(self, batch, weights * (1 + 0.1 * torch.rand(3, dtype=weights.dtype)))

    monkeypatch.setattr(TrainStep, "__call__", call)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fit("whole")
        torch.manual_seed(1)
        with monkeypatch.context() as patch:
            stop_at(patch, 5)
            fit("parts", ok=False)
        torch.manual_seed(2)
        flashace("fit", "--resume", "parts")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


# Files


def test_interval_number_and_folder_are_as_told(fit, tmp_path):
    fit("run", epochs=7, checkpoint_interval=2, keep_checkpoints=2, checkpoint_dir="kept")
    assert sorted(p.name for p in (tmp_path / "run/kept").iterdir()) == ["best.pt", "step-000000018.pt", "step-000000021.pt"]
    assert not (tmp_path / "run/checkpoints").exists()
    fit("other", "--checkpoint-interval", 3, "--keep-checkpoints", 5, "--checkpoint-dir", tmp_path / "away", epochs=7)
    assert [p.name for p in checkpoints_in(tmp_path / "away")] == [f"step-{n:09d}.pt" for n in (9, 18, 21)]
    refused = fit("third", checkpoint_dir=str(tmp_path / "away"), ok=False)
    assert "away holds checkpoints of another fit" in refused.output


def test_the_best_is_kept(fit, tmp_path):
    fit("run", epochs=6, learning_rate=0.3, keep_checkpoints=1)
    best = load_checkpoint(tmp_path / "run/checkpoints/best.pt")
    assert same(best["average"].values(), best["schedule"]["best"].values())


@pytest.mark.parametrize(("frames", "kept"), [(9, "of the end"), (40, "of the best validation score")])
def test_earlier_weights_are_taken_where_enough_frames_say_so(fit, make_frames, tmp_path, frames, kept):
    """A fit whose rate stays so high that it ends worse than it was: few frames cannot tell, many can."""
    write(tmp_path / "valid.extxyz", make_frames(frames, seed=3))
    result = fit("run", valid=["valid.extxyz"], epochs=12, learning_rate=1.0, lr_scheduler="constant", optimizer="adamw", ema_decay=0.0)
    assert f"weights: {kept}, averaged; " in " ".join(result.output.split())
    assert read_header(tmp_path / "run/model.pt")["provenance"]["weights"].startswith(kept)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(fit, flashace, tmp_path):
    fit("run")
    end = bits(tmp_path / "run")
    newest = checkpoints_in(tmp_path / "run/checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    result = flashace("fit", "--resume", "run")
    assert result.exit_code == 0, result.output
    assert f"{newest.name}: this checkpoint cannot be read" in result.output
    assert "trying the one before" in result.output
    assert "step-000000009.pt" in "".join(result.output.split())
    assert bits(tmp_path / "run") == end
    for path in checkpoints_in(tmp_path / "run/checkpoints"):
        path.write_bytes(b"PK")
    refused = flashace("fit", "--resume", "run")
    assert refused.exit_code == 1
    assert "expected a checkpoint, found 3 that cannot be read" in refused.output


def test_damaged_checkpoints_run_folders_and_shards_are_refused_or_read_right(tmp_path, monkeypatch):
    """The first ones of benchmarks/fuzz_run_folder.py, which goes on for thousands."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    fuzz = importlib.import_module("fuzz_run_folder")
    sample = fuzz.Sample(tmp_path)
    for name, seal in (("sealed", True), ("old", False)):  # what is whole is read
        state = sample._state()
        if not seal:
            del state["format"], state["schedule"]["ended"], state["schedule"]["length"]
        (tmp_path / name).mkdir()
        sample._go_on_from(tmp_path / name, fuzz._saved(state, seal))
    verdicts = {(kind, seed): verdict for seed in range(16 * len(fuzz.KINDS)) for kind, verdict in [sample.attack(seed)]}
    assert {case: verdict for case, verdict in verdicts.items() if verdict not in ("refused", "loaded")} == {}
    assert {kind for kind, _ in verdicts} == set(fuzz.KINDS)


# After the end


def test_a_fit_that_has_ended_stays_as_it_is(fit, flashace, tmp_path, monkeypatch):
    """By the clock, too: set up faster, a second session has time left that the first had not."""
    monkeypatch.setattr("flashace.evaluate.report.parity", lambda predictions, path: path.touch())
    monkeypatch.setattr("flashace.evaluate.report.learning_curve", lambda metrics, path: path.touch())
    fit("run", epochs=None, max_time=0.02)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    resumed = flashace("fit", "--resume", "run")
    assert resumed.exit_code == 0
    assert "this fit has ended" in resumed.output
    assert "flashace fit --resume run --max-time 0.04" in resumed.output
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == before


def test_a_fit_that_has_ended_can_be_made_longer(fit, flashace, tmp_path):
    fit("run", early_stopping=3)
    metrics = bits(tmp_path / "run")[1]
    longer = flashace("fit", "--resume", "run", "--epochs", 6)
    assert longer.exit_code == 0, longer.output
    model, rows = bits(tmp_path / "run")
    assert rows[:4] == metrics
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["epochs"] == 6
    assert "resume_load_optimizer: true" not in (tmp_path / "run/config.yaml").read_text()
    assert flashace("fit", "--resume", "run").exit_code == 0  # and that is its end
    assert bits(tmp_path / "run") == (model, rows)


def test_longer_means_longer(fit, flashace):
    fit("run")
    for arguments, message in (
        (("--epochs", 4), "--epochs 4: expected more than run had, to make that fit longer, but it has 4"),
        (("--max-time", 3), "--max-time 3: expected more than run had, to make that fit longer, but it has none: its length is --epochs 4"),
        (("--seed", 3), "leave out seed (--epochs and --max-time alone may be given, to make it longer)"),
    ):
        result = flashace("fit", "--resume", "run", *arguments)
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())


# What comes back


@pytest.mark.parametrize("source", ["run", "run/checkpoints", "run/checkpoints/step-000000012.pt", "run/model.pt"])
def test_weights_and_reference_energies_come_back(fit, trainer, tmp_path, make_frames, source):
    fit("run", seed=5)
    frames = make_frames(seed=3)
    for atoms in frames:
        atoms.calc.results["energy"] += 1.0
    write(tmp_path / "new.extxyz", frames)
    resumed = trainer(data=[str(tmp_path / "new.extxyz")], resume_from=source, learning_rate=1e-4, energy_weight=3.0)
    model = load_model(tmp_path / "run/model.pt", torch.float64)
    saved = None if "model" in source else load_checkpoint(tmp_path / "run/checkpoints/step-000000012.pt")
    assert same(resumed.model.parameters(), model.parameters() if saved is None else saved["weights"].values())
    assert same(resumed.update.averaged.parameters(), model.parameters() if saved is None else saved["average"].values())
    assert resumed.model.e0 == model.e0
    assert (resumed.model.scale, resumed.model.avg_num_neighbors) == (model.scale, model.avg_num_neighbors)
    assert (resumed.progress(), resumed.validation.best_score, resumed.log.rows) == (0.0, float("inf"), [])
    assert not any(optimizer.state for optimizer in resumed.update.optimizers)


def test_use_checkpoint_energy_shift(fit, trainer, tmp_path):
    fit("run", atomic_energies={"Si": -5.0, "C": -7.0})
    assert trainer(resume_from="run").model.e0 == {"C": -7.0, "Si": -5.0}
    solved = trainer(resume_from="run", use_checkpoint_energy_shift=False)
    assert solved.model.e0 == trainer().model.e0
    given = trainer(resume_from="run", use_checkpoint_energy_shift=False, energy_shift_per_atom=-1.0)
    assert given.model.e0 == {"C": -1.0, "Si": -1.0}
    with pytest.raises(
        FlashACEError,
        match=r"use_checkpoint_energy_shift\)` and `energy_shift_per_atom` contradict each other.* say --no-use-checkpoint-energy-shift",
    ):
        trainer(resume_from="run", energy_shift_per_atom=-1.0)


def test_a_model_adapts_to_other_reference_energies(fit, trainer):
    """By several eV per atom, before the first step; atoms alone have the new ones."""
    fit("run")
    lower = {symbol: energy - 3.0 for symbol, energy in trainer(resume_from="run").model.e0.items()}
    for source in ("run", "run/model.pt"):
        resumed = trainer(resume_from=source, use_checkpoint_energy_shift=False, atomic_energies=lower)
        for model in (resumed.model, resumed.update.averaged):
            energies = [model(graph).sum().item() for graph in resumed.train.graphs]
            assert np.mean([(e - f.energy) / 2 for e, f in zip(energies, resumed.prepared.train, strict=True)]) == pytest.approx(
                0.0, abs=0.02
            )
            assert model(build_graph(Atoms("Si"), 3.0)).item() == lower["Si"]


def test_a_start_from_weights_has_defaults_of_its_own(fit, trainer):
    """The usual rate made a model forget; one that goes on with its schedule keeps the usual ones, and what is asked for holds."""
    fit("run")
    usual, tuned = trainer().config, trainer(resume_from="run/model.pt").config
    assert tuned.learning_rate == pytest.approx(usual.learning_rate / 20)
    assert tuned.energy_weight == {0.0: 3.0, 0.9: 1000.0}
    assert trainer(resume_from="run/model.pt", learning_rate=0.01).config.learning_rate == 0.01
    exact = trainer(resume_from="run", **EXACT).config
    assert (exact.learning_rate, exact.energy_weight) == (usual.learning_rate, usual.energy_weight)


def test_what_was_fitted_before_stays_certain(fit, make_frames, tmp_path):
    """The statistics of the model that a fit starts from are kept, and those of its own frames added."""
    fit("run")
    write(tmp_path / "new.extxyz", make_frames(3, seed=7))
    fit("new", resume_from="run/model.pt", data=["new.extxyz"])
    before, after = (load_model(tmp_path / name / "model.pt").uncertainty.energy.covariance for name in ("run", "new"))
    assert torch.linalg.eigvalsh(after - before).min() > -1e-9 * after.trace()
    assert after.trace() > before.trace()


def test_resume_load_optimizer(fit, trainer, tmp_path):
    fit("run")
    resumed = trainer(resume_from="run", resume_load_optimizer=True, weight_decay=0.25)
    saved = load_checkpoint(tmp_path / "run/checkpoints/step-000000012.pt")["optimizers"]
    for optimizer in resumed.update.optimizers:
        for number, state in saved[type(optimizer).__name__].items():
            for name, value in state.items():
                assert torch.equal(optimizer.state_dict()["state"][number][name], value)
    assert resumed.update.optimizers[1].param_groups[0]["weight_decay"] == 0.25  # options rule
    assert resumed.progress() == 0.0
    with pytest.raises(FlashACEError, match="expected the state of AdamW, got AdamW and Muon; choose the same `optimizer`"):
        trainer(resume_from="run", resume_load_optimizer=True, optimizer="adamw")


def test_the_clock_goes_on_where_it_stopped(fit, data_file, tiny_fit, tmp_path):
    """The first step after a restart belongs to the part of the schedule that was reached, not to its beginning."""
    fit("run")
    options = {"resume_from": "run", "resume_load_scheduler": True, "epochs": None, "max_time": 10.0}
    prepared = prepare(make_config({**tiny_fit, "data": [str(data_file)], **options}))
    resumed = Trainer(prepared, tmp_path / "trainer", Console(quiet=True), time.monotonic())
    assert resumed.clock.first_step is None
    resumed.clock.spent_before = 300.0  # s
    assert 0.4 < resumed.progress() < 0.6


def test_a_gradient_that_is_not_finite_ends_the_fit_with_a_word(fit, monkeypatch):
    def broken(self, batch, weights):
        self.parameters[0].grad = torch.full_like(self.parameters[0], torch.nan)
        return torch.zeros(3)

    monkeypatch.setattr(TrainStep, "__call__", broken)
    result = fit("run", ok=False)
    assert result.exit_code == 1
    assert "the gradient of step 1 is not finite" in " ".join(result.output.split())


def test_resume_load_scheduler(fit, trainer, tmp_path):
    fit("run")
    resumed = trainer(resume_from="run", resume_load_scheduler=True, epochs=8)
    assert (resumed.course.epoch, resumed.course.position, resumed.progress()) == (4, 0, 0.5)
    assert len(resumed.log.rows) == 4
    assert resumed.validation.best_score < float("inf")
    assert not any(optimizer.state for optimizer in resumed.update.optimizers)
    with pytest.raises(FlashACEError, match="batch_size: 4 there and 3 here"):
        trainer(resume_from="run", resume_load_scheduler=True, batch_size=3)


def test_resume_load_scaler(fit, trainer, tmp_path, monkeypatch):
    """float16 brings a gradient scaler."""
    monkeypatch.setattr(Prepared, "amp_dtype", torch.float16)
    first = trainer(dtype="float32")
    usual = first.update.scaler.get_scale()
    first.update.scaler.scale(torch.ones(1))
    first.update.scaler.update(8.0)
    first.session.save()
    source = str(first.folder.checkpoints)
    assert trainer(dtype="float32", resume_from=source).update.scaler.get_scale() == usual != 8.0
    assert trainer(dtype="float32", resume_from=source, resume_load_scaler=True).update.scaler.get_scale() == 8.0


def test_a_model_file_has_weights_only(fit, trainer):
    fit("run")
    with pytest.raises(
        FlashACEError, match=r"model\.pt: a model file holds weights only; leave out resume_load_scheduler, or name a checkpoint"
    ):
        trainer(resume_from="run/model.pt", resume_load_scheduler=True)


def test_flags_of_the_command_line_reach_the_fit(fit, tmp_path):
    fit("run")
    flags = ["--resume-load-optimizer", "--resume-load-scheduler", "--resume-load-scaler", "--no-precompute-neighbors"]
    output = fit("new", "--resume-from", "run", *flags, epochs=5).output
    assert "weights, optimizer, schedule, gradient scaler of run/checkpoints/step-000000012.pt" in " ".join(output.replace("│", "").split())
    options = yaml.safe_load((tmp_path / "new/config.yaml").read_text())
    expected = {"resume_from": "run", **EXACT, "precompute_neighbors": False}
    assert expected.items() <= options.items()


# What does not fit


def test_other_sizes_and_elements_are_refused_with_both_values(fit, trainer, tmp_path, data_file):
    fit("run")
    with pytest.raises(FlashACEError, match="hidden_dim 16 there and 32 here; num_layers 1 there and 2 here"):
        trainer(resume_from="run", hidden_dim=32, num_layers=2)
    frames = read(data_file, ":")
    for atoms in frames:
        atoms.numbers[0] = 32
    write(tmp_path / "ge.extxyz", frames)
    with pytest.raises(FlashACEError, match="elements C, Si there and C, Ge here"):
        trainer(resume_from="run", data=[str(tmp_path / "ge.extxyz")])


@pytest.mark.parametrize("source", ["no-run", "no.pt"])
def test_nothing_to_resume_from_says_so(trainer, source):
    with pytest.raises((FlashACEError, FileNotFoundError), match=source):
        trainer(resume_from=source)


def test_foreign_files_are_refused(trainer, tmp_path):
    torch.save({"a": 1}, tmp_path / "x.pt")
    with pytest.raises(FlashACEError, match=r"x\.pt: expected a checkpoint of FlashACE"):
        trainer(resume_from=str(tmp_path / "x.pt"))


# Neighbour lists


def test_precomputed_or_not_the_losses_are_the_same_bits(fit, tmp_path, monkeypatch):
    built = []
    plain = batches.make_item
    monkeypatch.setattr(batches, "make_item", lambda *arguments: built.append(1) or plain(*arguments))
    fit("once", precompute_neighbors=True)
    assert len(built) == 11
    fit("always", precompute_neighbors=False)
    assert len(built) == 11 + 4 * 11
    assert bits(tmp_path / "once") == bits(tmp_path / "always")


def test_the_model_of_a_restart_tells_the_same_origin(fit, flashace, tmp_path, monkeypatch, stop_at):
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        fit("run", ok=False)
    flashace("fit", "--resume", "run")
    assert "least squares over 12 frames" in read_header(tmp_path / "run/model.pt")["provenance"]["reference_energies"]
    assert np.isfinite(read_header(tmp_path / "run/model.pt")["provenance"]["errors"]["train"][-1]["forces_rmse"])
