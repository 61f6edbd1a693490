"""Options of a fit that the loop obeys: each test fails when its option is disconnected."""

import csv
import signal
import sys
from types import ModuleType

import pytest
import torch
from ase.io import read

from flashace.errors import FlashACEError
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import load_model, read_header
from flashace.structure.neighbors import build_graph
from flashace.train import batches, validation
from flashace.train.micro import MicroBatches
from flashace.train.prepare import Prepared
from flashace.train.step import TrainStep

SAME = 1e-6  # relative, after two epochs in float64


def weights(folder):
    return dict(load_model(folder / "model.pt", torch.float64).named_parameters())


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return all((p - other[name]).abs().max() <= SAME * p.abs().max() for name, p in one.items())


def rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def test_accumulation_is_a_larger_batch(fit, tmp_path):
    fit("four", batch_size=4), fit("two", batch_size=2), fit("twice two", batch_size=2, grad_accum_steps=2)
    assert same_weights(tmp_path / "four", tmp_path / "twice two")
    assert not same_weights(tmp_path / "four", tmp_path / "two")


def test_large_batches_are_divided_and_the_log_says_so_once(fit, tmp_path):
    assert "in parts" not in fit("whole").output
    assert fit("parts", max_edges_per_step=1).output.count("in parts, with the same gradient") == 1
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    whole, parts = ([float(row["loss"]) for row in rows(tmp_path / name)] for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=SAME)


def test_the_gradient_is_clipped(fit, tmp_path):
    fit("never", clip_grad_norm=1e9), fit("always", clip_grad_norm=1e-3)
    assert not same_weights(tmp_path / "never", tmp_path / "always")


def test_the_model_is_an_average_as_slow_as_told(fit, tmp_path, every_epoch):
    fit("none", ema_decay=0.0), fit("slow", ema_decay=0.99)
    assert not same_weights(tmp_path / "none", tmp_path / "slow")


@pytest.mark.parametrize("asked", [True, False, "auto"])
def test_the_step_is_compiled_where_it_is_asked_for_or_pays(trainer, monkeypatch, asked):
    made = trainer(compile=asked)
    assert made.step.compiled == (asked is True)
    made.micro_batches = lambda *arguments: None  # it would compile
    made.decide_on_compiling(seconds=0.0)
    assert made.step.compiled == (asked is True)
    made.decide_on_compiling(seconds=1e6)
    assert made.step.compiled == (asked is not False)


def test_the_seed_draws_the_order_of_the_frames(trainer):
    one, same, other = (trainer(seed=seed).batches.of_epoch(0) for seed in (1, 1, 2))
    assert one == same != other


def test_neighbour_lists_are_kept_only_where_they_are_precomputed(trainer):
    kept, fresh = trainer().train.graphs, trainer(precompute_neighbors=False).train.graphs
    assert kept[0] is kept[0]
    assert fresh[0] is not fresh[0]


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_weights_decide_which_model_is_best_and_what_the_log_says(trainer, fit, tmp_path, every_epoch, label):
    errors = {"energy_rmse": 3.0, "forces_rmse": 40.0, "stress_rmse": 5.0}
    without = dict.fromkeys(("energy_weight", "forces_weight", "stress_weight"), 0.0)
    score = [trainer(**without | {f"{label}_weight": weight}).validation.score(errors) for weight in (0.0, 1.0, 3.0)]
    assert score[0] == 0 < score[1]
    assert score[2] == pytest.approx(3 * score[1])
    fit("none", **without)
    assert {float(row["loss"]) for row in rows(tmp_path / "none")} == {0.0}


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_a_fit_needs_no_more_memory_than_that_of_one_atom(fit, tmp_path, monkeypatch, loss):
    """From the start of the readouts to the closing table, no structure is ever computed as a whole."""
    fit("whole", loss=loss)
    plain = AttentionACE.forward

    def one_atom(self, graph):
        if graph.num_centres > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, graph)

    monkeypatch.setattr(AttentionACE, "forward", one_atom)
    assert fit("atoms", loss=loss).output.count("in parts, with the same gradient") == 1
    assert same_weights(tmp_path / "whole", tmp_path / "atoms")


def test_running_out_of_memory_never_kills_a_fit(fit, tmp_path, monkeypatch):
    fit("whole")
    plain = TrainStep.__call__

    def call(self, batch, weights):
        if batch.num_atoms.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, batch, weights)

    monkeypatch.setattr(TrainStep, "__call__", call)
    assert fit("parts").output.count("in parts, with the same gradient") == 1
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


# Rotations


@pytest.fixture
def cells(monkeypatch):
    """What was trained on, and what was validated: cells, in order."""
    trained, validated = [], []
    train, predict = MicroBatches.__call__, validation.predict_each

    def spy_train(self, items, weights):
        trained.extend(item.graph.cell[0] for item in items)
        return train(self, items, weights)

    def spy_predict(model, graphs):
        validated.extend(graph.cell[0] for graph in graphs)
        return predict(model, graphs)

    monkeypatch.setattr(MicroBatches, "__call__", spy_train)
    monkeypatch.setattr(validation, "predict_each", spy_predict)
    return trained, validated


def is_of_the_file(cell, data_file):
    return any(torch.equal(cell, build_graph(atoms, 3.0).cell[0]) for atoms in read(data_file, ":"))


@pytest.mark.parametrize("random_rotation", [False, True])
def test_training_items_turn_and_nothing_else(fit, cells, data_file, random_rotation):
    fit("run", random_rotation=random_rotation)
    trained, validated = cells
    assert all(is_of_the_file(cell, data_file) is not random_rotation for cell in trained)
    assert len(torch.stack(trained).unique(dim=0)) == (22 if random_rotation else 11)  # anew in each of two epochs
    assert validated
    assert all(is_of_the_file(cell, data_file) for cell in validated)


def test_lists_of_neighbours_are_built_once(fit, monkeypatch):
    built, plain = [], batches.build_graphs
    monkeypatch.setattr(batches, "build_graphs", lambda frames, *rest: built.append(len(frames)) or plain(frames, *rest))
    fit("run", random_rotation=True, epochs=3)
    assert sum(built) == 12


def test_a_resumed_fit_meets_the_same_rotations(fit, cells, flashace, tmp_path, write_yaml, data_file, monkeypatch):
    fit("whole", random_rotation=True)
    trained, _ = cells
    whole = trained.copy()
    trained.clear()
    options = write_yaml(tmp_path / "parts.yaml", optimizer="adamw", data=[str(data_file)], random_rotation=True)
    with monkeypatch.context() as patch:
        plain, count = TrainStep.__call__, iter(range(1, 100))

        def call(self, *arguments):
            if next(count) == 2:
                signal.raise_signal(signal.SIGINT)
            return plain(self, *arguments)

        patch.setattr(TrainStep, "__call__", call)
        assert flashace("fit", "-c", options, "-o", "parts").exit_code == 130
    assert flashace("fit", "--resume", "parts").exit_code == 0
    assert torch.equal(torch.stack(trained), torch.stack(whole))


# Mixed precision, as on a GPU


@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
def test_the_fit_uses_the_precision_that_was_decided(fit, tmp_path, monkeypatch, amp_dtype):
    seen = []
    plain = MicroBatches.__call__

    def spy(self, items, weights):
        seen.append((self.step.amp_dtype, weights.tolist()))
        return plain(self, items, weights)

    monkeypatch.setattr(MicroBatches, "__call__", spy)
    calm = {"dtype": "float32", "epochs": 15, "learning_rate": 2e-3}  # at the default one, rounding decides where fifteen epochs lead
    fit("full", **calm)
    assert {dtype for dtype, _ in seen} == {None}
    seen.clear()
    monkeypatch.setattr(Prepared, "amp_dtype", amp_dtype)
    fit("half", **calm)
    assert {dtype for dtype, _ in seen} == {amp_dtype}
    assert (seen[0][1][1] > 1.0) == (amp_dtype == torch.float16)  # scaled, for float16
    errors = [read_header(tmp_path / name / "model.pt")["provenance"]["errors"]["train"][-1]["forces_rmse"] for name in ("full", "half")]
    assert errors[1] < 2 * errors[0]
    assert errors[1] != errors[0]


def test_a_fit_on_the_cpu_says_that_use_amp_has_no_effect(fit):
    assert "use_amp has no effect on cpu" in fit("run", epochs=1).output
    assert "use_amp has no effect" not in fit("off", epochs=1, use_amp=False).output


# Schedules and losses


@pytest.mark.usefixtures("every_epoch")
def test_the_learning_rate_follows_its_schedule(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(validation.Validation, "score", lambda self, errors: 1.0)
    options = {"epochs": 5, "warmup": 0.0, "learning_rate": 0.01}
    fit("constant", lr_scheduler="constant", **options)
    fit("plateau", lr_scheduler="plateau", lr_patience=1, lr_factor=0.1, **options)
    fit("cosine", **options)
    rates = {name: [float(row["learning_rate"]) for row in rows(tmp_path / name)] for name in ("constant", "plateau", "cosine")}
    assert rates["constant"] == [0.01] * 5
    assert rates["plateau"] == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.001])
    assert rates["cosine"] == sorted(set(rates["cosine"]), reverse=True)


@pytest.mark.usefixtures("every_epoch")
def test_early_stopping_ends_the_fit(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(validation.Validation, "score", lambda self, errors: 1.0)
    assert "the fit ends here" in fit("run", epochs=9, early_stopping=2).output
    assert len(rows(tmp_path / "run")) == 3
    assert (tmp_path / "run/model.pt").is_file()
    assert "the fit ends here" not in fit("full", epochs=4).output
    assert len(rows(tmp_path / "full")) == 4


def test_the_loss_and_its_delta_are_felt(fit, tmp_path):
    fit("mse", loss="mse"), fit("huber"), fit("wide", huber_delta=1e9), fit("narrow", huber_delta=0.01)
    assert same_weights(tmp_path / "mse", tmp_path / "wide")
    assert not same_weights(tmp_path / "mse", tmp_path / "huber")
    assert not same_weights(tmp_path / "narrow", tmp_path / "huber")
    for name in ("mse", "huber", "narrow"):  # what is shown is a root mean square, whatever the loss
        first = [float(rows(tmp_path / folder)[0]["train_forces_rmse"]) for folder in ("mse", name)]
        assert first[1] == pytest.approx(first[0], rel=0.6)
    assert float(rows(tmp_path / "narrow")[0]["loss"]) < 0.5 * float(rows(tmp_path / "mse")[0]["loss"])


@pytest.mark.parametrize("name", ["energy_weight", "forces_weight", "stress_weight"])
def test_weights_change_over_the_fit(fit, tmp_path, name, monkeypatch):
    seen, plain = [], MicroBatches.__call__
    monkeypatch.setattr(MicroBatches, "__call__", lambda self, items, weights: seen.append(weights.tolist()) or plain(self, items, weights))
    fit("run", **{name: {0.0: 0.5, 0.5: 8.0}})
    index = ("energy_weight", "forces_weight", "stress_weight").index(name)
    assert [w[index] for w in seen] == [0.5, 0.5, 0.5, 8.0, 8.0, 8.0]


# TensorBoard


@pytest.fixture
def board(monkeypatch):
    """What a stand-in for TensorBoard was told: (folder, name, value, step)."""
    told, module = [], ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            told.append((self.folder.as_posix(), name, value, step))

        def flush(self):
            pass

    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return told


def test_tensorboard_gets_the_metrics(fit, board, tmp_path):
    fit("plain")
    assert not board
    fit("run", tensorboard=True)
    (row,) = rows(tmp_path / "run")
    assert {folder for folder, *_ in board} == {"run/tensorboard"}
    assert {name: value for _, name, value, _ in board} == {name: float(value) for name, value in row.items() if value}
    assert {step for *_, step in board} == {6}


def test_a_missing_tensorboard_says_what_to_install(flashace, data_file, write_yaml, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.chdir(tmp_path)
    result = flashace("fit", data_file, "-c", write_yaml(tmp_path / "c.yaml", tensorboard=True), "-o", "run")
    assert result.exit_code == 1
    assert "pip install flashace[tensorboard]" in result.output
    assert not (tmp_path / "run").exists()


# Flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--grad-accum-steps", "3"], {"grad_accum_steps": 3}),
        (["--random-rotation"], {"random_rotation": True}),
        (["--no-use-amp"], {"use_amp": False}),
        (["--amp-dtype", "float16"], {"amp_dtype": "float16"}),
        (["--lr-scheduler", "plateau"], {"lr_scheduler": "plateau"}),
        (["--early-stopping", "4"], {"early_stopping": 4}),
        (["--loss", "mse"], {"loss": "mse"}),
        (["--energy-weight", "2"], {"energy_weight": 2.0}),
        (["--forces-weight", "3", "--stress-weight", "0"], {"forces_weight": 3.0, "stress_weight": 0.0}),
        (["--tensorboard"], {"tensorboard": True}),
    ],
    ids=str,
)
def test_flags_are_the_options(flashace, data_file, monkeypatch, flags, expected):
    seen = []

    def prepare(config, *others):
        seen.append(config.train)
        raise FlashACEError("enough")

    monkeypatch.setattr("flashace.train.prepare.prepare", prepare)
    flashace("fit", data_file, *flags), flashace("fit", data_file)
    for name, value in expected.items():
        assert getattr(seen[0], name) == value
        assert getattr(seen[1], name) != value
