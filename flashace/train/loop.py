"""A prepared fit in; epochs of training steps, and at the end a run folder with model, table and pictures."""

import csv
import importlib.metadata
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flashace.errors import FlashACEError
from flashace.model import AttentionACE
from flashace.model_file import save_model
from flashace.train import report
from flashace.train.augment import random_rotation, rotate
from flashace.train.checkpoint import load_checkpoint, save_checkpoint
from flashace.train.config import write_config
from flashace.train.data import LABELS, content_hash
from flashace.train.evaluate import error_rows, predict_graphs
from flashace.train.loss import Batch, make_item
from flashace.train.metrics import UNITS
from flashace.train.micro import MicroBatches
from flashace.train.optim import Schedule, loss_weights, make_average, make_optimizers
from flashace.train.prepare import Prepared, build_graphs, make_model, start_readouts
from flashace.train.step import TrainStep

COMPILE_PAYS = 12 * 60  # s of plain training above which compiling is worth its one to three minutes
FOR_THE_END = 0.03  # part of `max_time` kept for the closing table and the pictures


class Trainer:
    """The state of a fit and its loop. `run` trains to the end, or until it is interrupted, and `finish` writes what a fit leaves."""

    def __init__(self, prepared: Prepared, folder: Path, console: Console, started: float) -> None:
        self.prepared, self.console, self.started = prepared, console, started
        self.config = prepared.config.train
        self.folder = folder
        self.board = report.tensorboard_writer(folder / "tensorboard") if self.config.tensorboard else None
        with _bar(console) as bar:
            task = bar.add_task("neighbour lists", total=len(prepared.train) + len(prepared.valid))
            r_max = prepared.config.model.r_max
            self.train_graphs, self.valid_graphs = (
                build_graphs(frames, r_max, lambda n: bar.advance(task, n)) for frames in (prepared.train, prepared.valid)
            )
        self.items = [make_item(g, f, prepared.dtype) for g, f in zip(self.train_graphs, prepared.train, strict=True)]
        self.model = make_model(prepared, self.train_graphs)
        start_readouts(self.model, self.train_graphs, prepared.train)
        self.average = make_average(self.model, self.config.ema_decay)
        self.optimizers = make_optimizers(self.model, self.config)
        self.schedule = Schedule(self.config)
        self.scaler = torch.amp.GradScaler(prepared.device.type, enabled=prepared.amp_dtype is torch.float16)
        huber_delta = self.config.huber_delta if self.config.loss == "huber" else None
        self.step = TrainStep(self.model, prepared.units, self.config.compile == "yes", prepared.amp_dtype, huber_delta)
        self.batch_size = int(self.config.batch_size or 1)
        self.micro_batches = MicroBatches(self.step, self.batch_size, self.config.max_edges_per_step, prepared.device, console.print)
        self.batches_per_epoch = math.ceil(len(self.items) / (self.batch_size * self.config.grad_accum_steps))
        self.epoch, self.position, self.elapsed = 0, 0, 0.0
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.best_score, self.best = math.inf, self._averaged_weights()
        self.spent_before = 0.0  # s on training in earlier sessions of this run
        self.clock: float | None = None  # when the first step of this session was done

    @property
    def averaged(self) -> AttentionACE:
        """The model with averaged weights."""
        return cast(AttentionACE, self.average.module)

    # The loop

    def run(self) -> bool:
        """Train to the end; False where Ctrl-C or SIGTERM came first, with everything saved."""
        with _stop_signals() as stop, _bar(self.console) as bar:
            task = bar.add_task("fit", total=1000)
            while self.progress() < 1.0 and not self.schedule.ends and not stop:
                self._run_epoch(stop, lambda: bar.update(task, completed=round(1000 * self.progress())))
                if self._valid_is_due():
                    bar.update(task, description=self._validate())
                if self.epoch % self.config.checkpoint_interval == 0:
                    self.save()
        if self.schedule.ends:
            self.console.print(f"no better score in {self.config.early_stopping} validations (early_stopping): the fit ends here")
        if stop:
            self.save()
        return not stop

    def progress(self) -> float:
        """From 0 at the first step to 1 at the last, by epochs and by time, whichever ends first."""
        done = 0.0
        if self.config.epochs:
            done = (self.epoch + self.position / self.batches_per_epoch) / self.config.epochs
        if self.config.max_time and self.clock is not None:
            end = self.started + self.config.max_time * 60 * (1 - FOR_THE_END) - self.spent_before
            now = time.monotonic()
            done = max(done, (self.spent_before + now - self.clock) / max(self.spent_before + end - self.clock, 1e-9))
        return min(done, 1.0)

    def _run_epoch(self, stop: Sequence[int], tick: Callable[[], None]) -> None:
        for indices in self._batches()[self.position :]:
            progress = self.progress()
            if progress >= 1.0 or stop:
                break
            self._train_on(indices, progress)
            tick()
        else:
            self.epoch, self.position = self.epoch + 1, 0

    def _train_on(self, indices: Sequence[int], progress: float) -> None:
        begin = time.monotonic()
        weights = loss_weights(progress, self.config).to(self.prepared.device, self.prepared.dtype)
        terms = self.micro_batches(self._items(indices), self.scaler.scale(weights))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate(progress)
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        self.average.update_parameters(self.model)
        self.sums += torch.tensor([*terms.tolist()], dtype=torch.float64)
        self.position += 1
        seconds = time.monotonic() - begin
        if self.clock is None:
            self._decide_on_compiling(seconds)
            self.clock = time.monotonic()
        self.elapsed = time.monotonic() - self.clock + self.spent_before

    def _items(self, indices: Sequence[int]) -> list[Batch]:
        """Training items, turned where `random_rotation` says so."""
        items = [self.items[i] for i in indices]
        if self.config.random_rotation:
            turns = (random_rotation(self.config.seed, self.epoch, i) for i in indices)
            items = [rotate(item, turn) for item, turn in zip(items, turns, strict=True)]
        return items

    def _decide_on_compiling(self, seconds: float) -> None:
        """After the first step: compile where the fit is long enough to earn it back."""
        steps = self.batches_per_epoch * self.config.epochs if self.config.epochs else math.inf
        ahead = min(steps * seconds, (self.config.max_time or math.inf) * 60)
        compiler = self.prepared.device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
        if self.config.compile == "auto" and ahead > COMPILE_PAYS and compiler:
            self.console.print("compiling the training step: one to three minutes, once")
            self.step.compiled = True
            weights = loss_weights(0.0, self.config).to(self.prepared.device, self.prepared.dtype)
            self.micro_batches([self.items[i] for i in self._batches()[0]], weights)
            self.model.zero_grad()

    def _batches(self) -> list[list[int]]:
        """The frames of each step of this epoch; it depends on seed and epoch alone, so that a resumed fit meets the same batches."""
        order = np.random.default_rng([self.config.seed, self.epoch]).permutation(len(self.items)).tolist()
        size = self.batch_size * self.config.grad_accum_steps
        return [order[i : i + size] for i in range(0, len(order), size)]

    # Validation

    def _valid_is_due(self) -> bool:
        """Every epoch, but at least a hundred steps apart, and at the end."""
        return self.progress() >= 1.0 or (self.position == 0 and self.epoch % math.ceil(100 / self.batches_per_epoch) == 0)

    def _validate(self) -> str:
        """Errors of the averaged weights on the validation frames: a row of metrics.csv, and one line of text."""
        errors = error_rows(self.prepared.valid, predict_graphs(self.averaged, self.valid_graphs))[-1]
        score = self._score(errors)
        self.schedule.validated(score)
        if score < self.best_score:
            self.best_score, self.best = score, self._averaged_weights()
        interval = math.ceil(100 / self.batches_per_epoch) * self.batches_per_epoch
        mean = (self.sums / max(min(interval, self._steps()), 1)).tolist()
        self.sums.zero_()
        weights = loss_weights(self.progress(), self.config).tolist()
        units, mse = asdict(self.prepared.units), self.config.loss == "mse"
        row = {
            "epoch": round(self._steps() / self.batches_per_epoch, 3),
            "seconds": round(self.elapsed, 1),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "loss": sum(w * m for w, m in zip(weights, mean, strict=True)),
            **{f"train_{label}_rmse": 1e3 * units[label] * m**0.5 if mse else None for label, m in zip(LABELS, mean, strict=True)},
            **{f"valid_{name}": value for name, value in errors.items() if name not in ("config_type", "frames")},
        }
        self._append(row)
        text = f"epoch {row['epoch']:g}  loss {row['loss']:.3g}  validation: " + _rmse_text(errors)
        if not self.console.is_terminal:
            ahead = self.elapsed / 60 * (1 / max(self.progress(), 1e-3) - 1)
            self.console.print(f"{self.progress():4.0%}  {ahead:3.0f} min to go  {text}", soft_wrap=True)
        return text

    def _steps(self) -> int:
        return self.epoch * self.batches_per_epoch + self.position

    def _score(self, errors: dict[str, Any]) -> float:
        """The loss of the last stage, from root mean square errors in meV."""
        weights, units = loss_weights(1.0, self.config).tolist(), asdict(self.prepared.units)
        rmse = [(errors[f"{label}_rmse"] or 0.0) / 1e3 / units[label] for label in LABELS]
        return sum(w * r**2 for w, r in zip(weights, rmse, strict=True))

    def _append(self, row: dict[str, Any]) -> None:
        path = self.folder / "metrics.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        if self.board is not None:
            for name, value in row.items():
                if value is not None:
                    self.board.add_scalar(name, value, self._steps())
            self.board.flush()

    # Saving

    def _averaged_weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.averaged.named_parameters()}

    def save(self) -> None:
        """Write checkpoints/last.pt: everything that `resume` needs."""
        state = {
            "model": dict(self.model.named_parameters()),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "position": [self.epoch, self.position],
            "elapsed": self.elapsed,
            "sums": self.sums,
            "best_score": self.best_score,
            "best": self.best,
            "data": content_hash(self.prepared.train),
            "compiled": self.step.compiled,
        }
        save_checkpoint(self.folder / "checkpoints" / "last.pt", state)

    def resume(self) -> None:
        """Go on from checkpoints/last.pt. Raises FlashACEError where data or sizes are others than at its writing."""
        state = load_checkpoint(self.folder / "checkpoints" / "last.pt")
        if state["data"] != content_hash(self.prepared.train):
            raise FlashACEError(
                f"{self.folder}: the training frames are not those of the interrupted fit; put the same data there, or fit anew"
            )
        try:
            self.model.load_state_dict(state["model"], strict=True)
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError) as error:
            raise FlashACEError(f"{self.folder}: the checkpoint does not fit this model ({error})") from error
        self.epoch, self.position = state["position"]
        self.elapsed = self.spent_before = state["elapsed"]
        self.sums, self.best_score, self.best = state["sums"], state["best_score"], state["best"]
        self.step.compiled = state["compiled"]

    def finish(self) -> None:
        """The best averaged weights as model.pt, the closing table, the pictures."""
        model = self.averaged
        model.load_state_dict(self.best, strict=True)
        self.save()
        rows, predictions = {}, {}
        sets = {
            "train": (self.prepared.train, self.train_graphs),
            "validation": (self.prepared.valid, self.valid_graphs),
        }
        for name, (frames, graphs) in sets.items():
            predicted = predict_graphs(model, graphs)
            rows[name], predictions[name] = error_rows(frames, predicted), (frames, predicted)
        save_model(self.folder / "model.pt", model, self._provenance(rows))
        report.learning_curve(self.folder / "metrics.csv", self.folder / "learning_curve.png")
        report.parity(predictions, self.folder / "parity.png")
        self.console.print(report.error_table(rows))
        self.console.print(
            f"{self._steps()} steps, {self._steps() / self.batches_per_epoch:.1f} epochs, {self.elapsed / 60:.1f} minutes of training"
        )

    def _provenance(self, rows: dict[str, Any]) -> dict[str, Any]:
        packages = ("flashace", "torch", "e3nn", "ase", "matscipy", "numpy")
        return {
            "training_data": {
                "files": list(self.config.data),
                "frames": len(self.prepared.train),
                "sha256": content_hash(self.prepared.train),
            },
            "reference_energies": self.prepared.references.origin,
            "errors": rows,
            "epochs": self._steps() / self.batches_per_epoch,
            "minutes": self.elapsed / 60,
            "seed": self.config.seed,
            "versions": {name: importlib.metadata.version(name) for name in packages},
        }


def fit(prepared: Prepared, folder: Path, console: Console, resume: bool = False, started: float | None = None) -> bool:
    """Fit and leave a run `folder`; False where the fit was interrupted and can be resumed."""
    trainer = Trainer(prepared, folder, console, time.monotonic() if started is None else started)
    if resume:
        trainer.resume()
    else:
        trainer.folder.mkdir(parents=True, exist_ok=True)
        write_config(trainer.folder / "config.yaml", prepared.config)
    console.print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters; run folder {trainer.folder}")
    if not trainer.run():
        return False
    trainer.finish()
    return True


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals that asked for an end: Ctrl-C and SIGTERM are heard between two steps; a second one ends everything at once."""
    received: list[int] = []

    def hear(signum: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)

    before = {signum: signal.signal(signum, hear) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _rmse_text(errors: dict[str, Any]) -> str:
    known = {label: errors[f"{label}_rmse"] for label in UNITS if errors[f"{label}_rmse"] is not None}
    return ", ".join(f"{label} {rmse:.3g} {UNITS[label]}" for label, rmse in known.items())
