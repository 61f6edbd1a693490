"""A prepared fit in; epochs of training steps, and at the end a run folder with model, table and pictures."""

import csv
import importlib.metadata
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.distributed import is_torchelastic_launched

from flashace.data.frames import LABELS, Labelled, content_hash
from flashace.data.graphs import build_graphs, fresh_graphs
from flashace.data.lazy import MadeOnDemand, chained, sample
from flashace.errors import FlashACEError
from flashace.evaluate import report
from flashace.evaluate.calibrate import estimate_uncertainty
from flashace.evaluate.metrics import UNITS
from flashace.evaluate.predict import error_rows, predict_each, predict_graphs
from flashace.files import whole_file
from flashace.potential.derivatives import EdgeBudget
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import describe, save_model
from flashace.structure.graph import Graph
from flashace.train.augment import random_rotation, rotate
from flashace.train.checkpoint import BEST, Start, checkpoint_name, checkpoints_in, keep_newest, save_checkpoint
from flashace.train.config import FitConfig, load_config, write_config
from flashace.train.lock import locked
from flashace.train.loss import Batch, make_item
from flashace.train.micro import MicroBatches
from flashace.train.offset import remove_offset
from flashace.train.optim.schedule import Schedule, loss_weights, make_average, make_optimizers
from flashace.train.prepare import ENOUGH_TO_CHOOSE, Prepared, make_model, start_readouts
from flashace.train.ranks import ALONE, LostRank, Ranks, shares
from flashace.train.sanity import in_a_sentence, sanity_of_fit
from flashace.train.sparse import EVERY, sparse_batch
from flashace.train.step import TrainStep

COMPILE_PAYS = 12 * 60  # s of plain training above which compiling is worth its one to three minutes
LEFT_BY_A_FIT = ("model.pt", "metrics.csv", "learning_curve.png", "parity.png")
FRAMES_TO_ADAPT = 500  # evenly drawn, for the change of reference energies
SURE = 3.0  # standard errors; earlier weights have the lowest score of all by choice, so two would come by luck
CLOSING_FRAMES = 10_000  # evenly drawn from each set, for the closing table, the pictures and the uncertainty
# What comes after the last step has to fit into `max_time` too
CLOSING_PASSES = 2.0  # times that a prediction of each of these frames takes: predictions, features, errors
CLOSING_PART = 0.1  # of `max_time`: where all of them would take longer, fewer are drawn
MOMENTS: dict[str, dict[str, torch.Size | None]] = {  # what an optimizer keeps of each weight; None: of the weight's own shape
    "AdamW": {"step": torch.Size([]), "exp_avg": None, "exp_avg_sq": None},
    "Muon": {"momentum_buffer": None},
}
FEWEST_FRAMES = 200  # but not fewer than these
PICTURES = 8.0  # s, with what matplotlib takes to load
PROBE = 1.0  # s of predictions, from which the rest is foreseen


class Trainer:
    """The state of a fit and its loop. `run` trains to the end, or until it is interrupted, and `finish` writes what a fit leaves.

    Several ranks have the same state and take the same decisions; each computes its share of every batch, and the first writes all files.
    """

    def __init__(self, prepared: Prepared, folder: Path, console: Console, started: float, ranks: Ranks = ALONE) -> None:
        self.prepared, self.console, self.started, self.ranks = prepared, console, started, ranks
        self.config = prepared.config.train
        self.folder = folder
        self.checkpoints = folder / self.config.checkpoint_dir
        self.train_graphs, self.valid_graphs = self._graphs(prepared.train, prepared.valid)
        self.items = self._make_items()
        self.board = report.tensorboard_writer(folder / "tensorboard") if self.config.tensorboard and ranks.first else None
        self.model = make_model(prepared, self.train_graphs)
        if prepared.start is None and ranks.first:
            start_readouts(self.model, self.train_graphs, prepared.train)
        ranks.copy_first(list(self.model.parameters()))
        self.average = make_average(self.model, self.config.ema_decay)
        self.optimizers = make_optimizers(self.model, self.config)
        self.schedule = Schedule(self.config)
        self.scaler = torch.amp.GradScaler(prepared.device.type, enabled=prepared.amp_dtype is torch.float16)
        huber_delta = self.config.huber_delta if self.config.loss == "huber" else None
        self.step = TrainStep(self.model, prepared.units, self.config.compile is True, prepared.amp_dtype, huber_delta)
        self.batch_size = int(self.config.batch_size or 1)
        self.budget = EdgeBudget(self.config.max_edges_per_step)
        self.micro_batches = MicroBatches(self.step, self.batch_size, self.budget, prepared.device, self._say, ranks)
        self.batches_per_epoch = math.ceil(len(self.items) / (self.batch_size * self.config.grad_accum_steps))
        self.epoch, self.position, self.elapsed = 0, 0, 0.0
        self.sums = torch.zeros(7, dtype=torch.float64)  # of loss terms and squared errors since the last validation, and their number
        self.best_score, self.best = math.inf, self._averaged_weights()
        self.reached, self.stopped = 0.0, False  # on which all ranks agree
        self.ended = False  # trained to the end, in this session or before
        self.seconds_per_frame = 0.0  # of a prediction; known after the first step of a fit with `max_time`
        self.spent_before = 0.0  # s on training in earlier sessions of this run
        self.clock: float | None = None  # when the first step of this session was done
        self.rows: list[dict[str, Any]] = []  # of metrics.csv
        self.may_compile = self.config.compile == "auto"
        if prepared.start is not None:
            self._resume(prepared.start)

    @property
    def averaged(self) -> AttentionACE:
        """The model with averaged weights."""
        return cast(AttentionACE, self.average.module)

    @cached_property
    def train_hash(self) -> str:
        """The `content_hash` of the training frames."""
        return content_hash(self.prepared.train)

    def _say(self, sentence: str) -> None:
        self.console.print(sentence, soft_wrap=True)

    def _graphs(self, *sets: Sequence[Labelled]) -> list[Sequence[Graph]]:
        r_max = self.prepared.config.model.r_max
        if not self.config.precompute_neighbors:
            return [fresh_graphs(frames, r_max) for frames in sets]
        with progress_bar(self.console) as bar:
            task = bar.add_task("neighbour lists", total=sum(map(len, sets)))

            def build(frames: Sequence[Labelled]) -> Sequence[Graph]:
                return build_graphs(frames, r_max, lambda n: bar.advance(task, n))

            return [self.ranks.build_once(build, frames) if frames else [] for frames in sets]

    def _make_items(self) -> Sequence[Batch]:
        def make(i: int) -> Batch:
            return make_item(self.train_graphs[i], self.prepared.train[i], self.prepared.dtype)

        items = MadeOnDemand(make, len(self.prepared.train))
        return list(items) if self.config.precompute_neighbors else items

    # The loop

    def run(self) -> bool:
        """Train to the end; False where Ctrl-C or SIGTERM came first, with everything saved."""
        if self.ended:
            return True
        with _stop_signals(self._may_give_up) as stop, progress_bar(self.console) as bar:
            try:
                self._run(stop, bar)
            except LostRank:
                self.save()  # a step is taken by all ranks or by none, so this is the state after the last one
                raise
            except _GivenUp:
                self.stopped = True
                self.save()  # no optimizer has stepped since the last step was done
        return not self.stopped

    def _may_give_up(self) -> bool:
        """Whether a signal need not wait for the end of this step: compiling takes minutes, and other ranks would wait for its end."""
        return self.step.compiling and self.ranks.size == 1

    def _run(self, stop: Sequence[int], bar: Progress) -> None:
        task = bar.add_task("fit", total=1000)
        while self._goes_on(stop):
            self._run_epoch(stop, lambda: bar.update(task, completed=round(1000 * self.progress())))
            if self._valid_is_due():
                bar.update(task, description=self._validate())
            if self.position == 0 and self.epoch % self.config.checkpoint_interval == 0:
                self.save()
        if self.reached >= 1.0 and self.sums[-1] > 0:
            self._validate()
        if self.schedule.ends:
            self.console.print(f"no better score in {self.config.early_stopping} validations (early_stopping): the fit ends here")
        self.ended = self.reached >= 1.0 or self.schedule.ends
        self.save()
        self._goes_on(stop)  # a signal may have come since

    def _goes_on(self, stop: Sequence[int]) -> bool:
        """Whether another step follows: `reached` is the progress by the clock of the first rank, and a signal to any rank counts."""
        said = torch.tensor([self.progress() if self.ranks.first else 0.0, len(stop)], dtype=torch.float64)
        self.ranks.add([said])
        self.reached, self.stopped = said[0].item(), said[1].item() > 0
        return self.reached < 1.0 and not self.stopped and not self.schedule.ends

    def progress(self) -> float:
        """From 0 at the first step to 1 at the last, by epochs and by time, whichever ends first."""
        done = 0.0
        if self.config.epochs:
            done = (self.epoch + self.position / self.batches_per_epoch) / self.config.epochs
        if self.config.max_time:
            now = time.monotonic()
            clock = now if self.clock is None else self.clock
            whole = self.started + self.config.max_time * 60 - self._seconds_to_close() - clock
            done = max(done, (self.spent_before + now - clock) / max(whole, 1e-9))
        return min(done, 1.0)

    def _seconds_to_close(self) -> float:
        """Foreseen from the last step to the end: the last validation, the closing table, the uncertainty, the pictures."""
        frames = sum(min(len(graphs), self.closing_frames) for graphs in (self.train_graphs, self.valid_graphs))
        predictions = len(self.valid_graphs) / self.ranks.size + CLOSING_PASSES * frames
        pictures = min(PICTURES, CLOSING_PART * (self.config.max_time or math.inf) * 60)
        return self.seconds_per_frame * predictions + pictures

    @property
    def closing_frames(self) -> int:
        """How many frames of each set the closing table looks at: CLOSING_FRAMES, or as many as `max_time` has time for."""
        if not self.config.max_time or not self.seconds_per_frame:
            return CLOSING_FRAMES
        affordable = CLOSING_PART * self.config.max_time * 60 / (2 * CLOSING_PASSES * self.seconds_per_frame)
        return min(CLOSING_FRAMES, max(FEWEST_FRAMES, int(affordable)))

    def _time_predictions(self, budget: float) -> None:
        """Look how long a prediction takes, on frames of both sets; say so where the fit cannot end within `budget` seconds."""
        graphs = sample(chained(self.train_graphs, self.valid_graphs), FEWEST_FRAMES)
        begin = now = time.monotonic()
        done = 0
        while done < len(graphs) and now - begin < PROBE:
            list(predict_each(self.averaged, [graphs[done * 7919 % len(graphs)]]))  # a prime: spread over both sets from the first on
            now, done = time.monotonic(), done + 1
        self.seconds_per_frame = self.ranks.from_first((now - begin) / done)
        before, after = (now - self.started) / 60, self._seconds_to_close() / 60
        if before + after > budget / 60:
            self._say(
                f"max_time: this fit will take {before + after:.1f} instead of {budget / 60:g} minutes: {before:.1f} until its first step "
                f"was done, {after:.1f} for validation and closing table, nothing for further steps"
            )

    def _run_epoch(self, stop: Sequence[int], tick: Callable[[], None]) -> None:
        for indices in self._batches()[self.position :]:
            if not self._goes_on(stop):
                break
            self._train_on(indices.tolist(), self.reached)
            tick()
        else:
            self.epoch, self.position = self.epoch + 1, 0

    def _train_on(self, indices: Sequence[int], progress: float) -> None:
        begin = time.monotonic()
        weights = loss_weights(progress, self.config).to(self.prepared.device, self.prepared.dtype)
        self._learn_free_atoms()
        errors = self.micro_batches(self._items(self._share(indices)), self.scaler.scale(weights))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        finite = bool(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm).isfinite())
        if not finite and not self.scaler.is_enabled():
            raise FlashACEError(
                f"the gradient of step {self._steps() + 1} is not finite (loss terms {errors[0].tolist()}); lower --learning-rate, "
                f"or look for broken frames among {[self.prepared.train[i].origin for i in indices]}"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate(progress)
            if finite:  # or the scale was too large for float16: then no optimizer steps, and the next scale is smaller
                self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        if finite:
            self.average.update_parameters(self.model)
            self.sums += torch.tensor([*errors.flatten().tolist(), 1.0], dtype=torch.float64)
        self.position += 1
        seconds = time.monotonic() - begin
        if self.clock is None:
            self._decide_on_compiling(seconds)
            if self.config.max_time:
                self._time_predictions(self.config.max_time * 60)
            self.clock = time.monotonic()
        self.elapsed = time.monotonic() - self.clock + self.spent_before

    def _learn_free_atoms(self) -> None:
        """The gradient of made-up sparse structures, on one rank: it goes into the sum of all. Their errors are counted nowhere."""
        weight, model = self.config.free_atoms_weight, self.prepared.config.model
        due = self._steps() % EVERY == 1  # not in the first step, whose time decides on compiling
        if not (due and weight and self.model.free_atoms and self.ranks.first):
            return
        purpose = 2  # keeps these numbers apart from the others that are drawn for this step
        random = np.random.default_rng([self.config.seed, self._steps(), purpose])
        batch = sparse_batch(self.model.e0, model.r_max, self.prepared.dtype, random)
        if batch is not None:
            weights = torch.tensor([weight, weight, 0.0], dtype=self.prepared.dtype, device=self.prepared.device)
            self.step(batch.to(self.prepared.device), self.scaler.scale(weights))

    def _share(self, indices: Sequence[int]) -> Sequence[int]:
        """Those frames of a step that this rank computes: about as many neighbour pairs (or atoms, without lists) as every other has."""
        if self.ranks.size == 1:
            return indices
        precomputed = self.config.precompute_neighbors
        sizes = [len(self.train_graphs[i].edge_vec) if precomputed else len(self.prepared.train[i].atoms) for i in indices]
        return [indices[i] for i in shares(sizes, self.ranks.size)[self.ranks.rank]]

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
        left = self.started + (self.config.max_time or math.inf) * 60 - time.monotonic()
        ahead = min(steps * seconds, left)
        compiler = self.prepared.device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
        if self.ranks.from_first(self.may_compile and ahead > COMPILE_PAYS and bool(compiler)):
            self.console.print("compiling the training step: one to three minutes, once")
            self.step.compiled = True
            weights = loss_weights(0.0, self.config).to(self.prepared.device, self.prepared.dtype)
            self.micro_batches([self.items[i] for i in self._share(self._batches()[0].tolist())], weights)
            self.model.zero_grad()

    def _batches(self) -> list[np.ndarray]:
        """The frames of each step of this epoch; it depends on seed and epoch alone, so that a resumed fit meets the same batches."""
        order = np.random.default_rng([self.config.seed, self.epoch]).permutation(len(self.items))
        size = self.batch_size * self.config.grad_accum_steps
        return [order[i : i + size] for i in range(0, len(order), size)]

    # Validation

    def _valid_is_due(self) -> bool:
        """Every epoch, but at least a hundred steps apart, and never twice after the same step; `run` adds the end."""
        due = bool(self.sums[-1] > 0) and self.position == 0 and self.epoch % math.ceil(100 / self.batches_per_epoch) == 0
        return due and self.ranks.from_first(self._has_time_to_validate())

    def _has_time_to_validate(self) -> bool:
        """Whether there is time for a validation now besides the one at the end."""
        if not self.config.max_time or self.reached >= 1.0:
            return True
        seconds = self.seconds_per_frame * len(self.valid_graphs) / self.ranks.size
        return time.monotonic() + seconds + self._seconds_to_close() < self.started + self.config.max_time * 60

    def _validate(self) -> str:
        """Errors of the averaged weights on the validation frames: a row of metrics.csv, and one line of text."""
        predictions = self._predict(self.valid_graphs)
        errors = self.ranks.from_first(error_rows(self.prepared.valid, predictions)[-1] if self.ranks.first else {})
        score = self._score(errors) if self.prepared.valid else math.nan
        self.schedule.validated(score)
        better = score < self.best_score
        if better:
            self.best_score, self.best = score, self._averaged_weights()
        terms, squares = (self.sums[:-1] / self.sums[-1].clamp(min=1.0)).view(2, 3).tolist()
        self.sums.zero_()
        if not self.ranks.first:
            return ""
        weights = loss_weights(self.progress(), self.config).tolist()
        units = asdict(self.prepared.units)
        row = {
            "epoch": round(self._steps() / self.batches_per_epoch, 3),
            "seconds": round(self.elapsed, 1),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "loss": sum(w * term for w, term in zip(weights, terms, strict=True)),
            **{
                f"train_{label}_rmse": 1e3 * units[label] * square**0.5 if getattr(self.prepared.labels, label).used else None
                for label, square in zip(LABELS, squares, strict=True)
            },
            **{f"valid_{name}": value for name, value in errors.items() if name not in ("config_type", "frames")},
        }
        self.rows.append(row)
        self.write_metrics()
        if self.board is not None:
            for name, value in row.items():
                if value is not None:
                    self.board.add_scalar(name, value, self._steps())
            self.board.flush()
        if better:
            save_checkpoint(self.checkpoints / BEST, self._state())
        text = f"epoch {row['epoch']:g}  loss {row['loss']:.3g}  validation: " + _rmse_text(errors)
        if not self.console.is_terminal:
            ahead = self.elapsed / 60 * (1 / max(self.progress(), 1e-3) - 1)
            self.console.print(f"{self.progress():4.0%}  {ahead:3.0f} min to go  {text}", soft_wrap=True)
        return text

    def _predict(self, graphs: Sequence[Graph]) -> Iterable[dict[str, Any]]:
        """`predict_each` with averaged weights; complete on the first rank, and shared between all of them."""
        rank, size = self.ranks.rank, self.ranks.size
        if size == 1:
            return predict_each(self.averaged, graphs)
        own = MadeOnDemand(lambda i: graphs[rank + i * size], len(range(rank, len(graphs), size)))
        predictions: list[dict[str, Any]] = [{}] * len(graphs)
        for first, found in enumerate(self.ranks.gather(predict_graphs(self.averaged, own))):
            predictions[first::size] = found
        return predictions

    def _steps(self) -> int:
        return self.epoch * self.batches_per_epoch + self.position

    def _score(self, errors: dict[str, Any]) -> float:
        """The loss of the last stage, from root mean square errors in meV."""
        weights, units = loss_weights(1.0, self.config).tolist(), asdict(self.prepared.units)
        rmse = [(errors[f"{label}_rmse"] or 0.0) / 1e3 / units[label] for label in LABELS]
        return sum(w * r**2 for w, r in zip(weights, rmse, strict=True))

    def write_metrics(self) -> None:
        """metrics.csv, whole: after a restart it has the rows up to the checkpoint and no others. The first rank has all rows."""
        path = self.folder / "metrics.csv"
        if not self.rows:
            path.unlink(missing_ok=True)
            return
        columns = dict.fromkeys(name for row in self.rows for name in row)  # another version may have had others
        with whole_file(path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    # Saving

    def _averaged_weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.averaged.named_parameters()}

    def save(self) -> None:
        """Write a checkpoint, and delete those that are not to be kept; the first rank does."""
        if not self.ranks.first:
            return
        save_checkpoint(self.checkpoints / checkpoint_name(self._steps()), self._state())
        keep_newest(self.checkpoints, self.config.keep_checkpoints)

    def _state(self) -> dict[str, Any]:
        """Everything that a fit needs to go on as if nothing had happened, on any number of ranks."""
        device = self.prepared.device
        return {
            "model": describe(self.model),
            "reference_energies": self.prepared.references.origin,
            "weights": dict(self.model.named_parameters()),
            "average": dict(self.averaged.named_parameters()),
            "averaged_steps": int(self.average.n_averaged),
            "optimizers": {type(optimizer).__name__: optimizer.state_dict()["state"] for optimizer in self.optimizers},
            "scaler": self.scaler.state_dict(),
            "schedule": {
                "order": self._order(),
                "epoch": self.epoch,
                "position": self.position,
                "elapsed": self.elapsed,
                "sums": self.sums,
                "best_score": self.best_score,
                "best": self.best,
                "rows": self.rows,
                "compiled": self.step.compiled,
                "learning_rate": self.schedule.state_dict(),
                "max_edges": self.budget.max_edges,
                "random": torch.get_rng_state(),
                "random_cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
                "ended": self.ended,
                "length": {"epochs": self.config.epochs, "max_time": self.config.max_time},
            },
        }

    def _order(self) -> dict[str, Any]:
        """What decides which frames the next step meets."""
        t = self.config
        return {
            "training frames": self.train_hash,
            "batch_size": t.batch_size,
            "grad_accum_steps": t.grad_accum_steps,
            "seed": t.seed,
        }

    def _resume(self, start: Start) -> None:
        """The averaged weights come back (the model has its own), and whatever of the rest is asked for."""
        self.averaged.load_state_dict(start.average, strict=True)
        if self.model.e0 != start.model["atomic_energies"]:  # the network makes up for it, or the fit begins with errors of eV
            for model in (self.model, self.averaged) * 2:  # once more: the bound of the energies bends a shift of eV by some meV
                remove_offset(model, sample(self.prepared.train, FRAMES_TO_ADAPT), sample(self.train_graphs, FRAMES_TO_ADAPT))
                self.ranks.copy_first(list(model.parameters()))
        self.best = self._averaged_weights()
        t, state = self.config, start.state
        asked = [name for name in ("resume_load_optimizer", "resume_load_scheduler", "resume_load_scaler") if getattr(t, name)]
        if state is None:
            if asked:
                raise FlashACEError(f"{start.path}: a model file holds weights only; leave out {', '.join(asked)}, or name a checkpoint")
            return
        self.average.n_averaged.fill_(state["averaged_steps"])
        if t.resume_load_optimizer:
            self._resume_optimizers(start.path, state["optimizers"])
        if t.resume_load_scheduler:
            self._resume_schedule(start.path, state["schedule"])
        if t.resume_load_scaler and state["scaler"]:
            if self.scaler.is_enabled() and state["scaler"].keys() != self.scaler.state_dict().keys():
                raise FlashACEError(f"{start.path}: expected the state of a gradient scaler, got {', '.join(state['scaler'])}")
            self.scaler.load_state_dict(state["scaler"])

    def _resume_optimizers(self, path: Path, saved: dict[str, Any]) -> None:
        """Momenta; learning rate, decay and the like are those of the options."""
        mine = {type(optimizer).__name__: optimizer for optimizer in self.optimizers}
        if saved.keys() != mine.keys():
            raise FlashACEError(
                f"{path}: expected the state of {' and '.join(mine)}, got {' and '.join(saved)}; "
                "choose the same `optimizer`, or leave out resume_load_optimizer"
            )
        for name, optimizer in mine.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for i, moments in saved[name].items():
                own = parameters[i].shape if i < len(parameters) else None
                expected = {key: list(own if shape is None else shape) for key, shape in MOMENTS[name].items()} if own is not None else {}
                got = {key: list(moment.shape) for key, moment in moments.items()}
                if got != expected or not all(moment.dtype.is_floating_point and moment.isfinite().all() for moment in moments.values()):
                    raise FlashACEError(
                        f"{path}: {name}: expected finite numbers {expected} for weights {i}, got {got}: this checkpoint is damaged; "
                        "name another, or leave out resume_load_optimizer"
                    )
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved[name]})

    def _resume_schedule(self, path: Path, saved: dict[str, Any]) -> None:
        for name, value in self._order().items():
            if value != saved["order"][name]:
                raise FlashACEError(
                    f"{path}: {name}: {saved['order'][name]} there and {value} here, so this is not the interrupted fit; "
                    "use the same, or leave out resume_load_scheduler"
                )
        if saved["position"] > self.batches_per_epoch:
            raise FlashACEError(
                f"{path}: expected at most {self.batches_per_epoch} steps of an epoch, got {saved['position']}: this checkpoint is damaged"
                "; name another, or leave out resume_load_scheduler"
            )
        self.epoch, self.position = saved["epoch"], saved["position"]
        self.elapsed = self.spent_before = saved["elapsed"]
        self.sums, self.best_score, self.rows = saved["sums"].detach().double(), saved["best_score"], saved["rows"]
        self.best = {name: weight.to(self.prepared.device) for name, weight in saved["best"].items()}
        if self.may_compile:
            self.step.compiled, self.may_compile = saved["compiled"], False
        self.schedule.load_state_dict(saved["learning_rate"])
        self.ended = self._had_ended(saved)
        if saved.get("ended") and not self.ended:
            self.schedule.not_better = 0  # early stopping may have ended the shorter fit
        self.budget.max_edges = min(self.budget.max_edges, saved["max_edges"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] and self.prepared.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random_cuda"][0], self.prepared.device)

    def _had_ended(self, saved: dict[str, Any]) -> bool:
        """Whether the fit was trained to its end, and is not to be any longer now."""
        t = self.config
        if not {"ended", "length"} <= saved.keys():  # format 1
            by_time = bool(t.max_time) and saved["elapsed"] >= 0.9 * (t.max_time or 0) * 60
            return by_time or saved["epoch"] >= (t.epochs or math.inf)
        before = saved["length"]
        longer = any((now or math.inf) > (before[name] or math.inf) for name, now in (("epochs", t.epochs), ("max_time", t.max_time)))
        return bool(saved["ended"]) and not longer

    def finish(self) -> None:
        """The chosen weights as model.pt, the closing table, the pictures. Ranks part here: the first does what is left to do."""
        model, predictions = self.averaged, {}
        sets: dict[str, tuple[Sequence[Labelled], Sequence[Graph]]] = {
            "train": (sample(self.prepared.train, self.closing_frames), sample(self.train_graphs, self.closing_frames)),
            "validation": (sample(self.prepared.valid, self.closing_frames), sample(self.valid_graphs, self.closing_frames)),
        }
        kept = self._choose_weights(*sets["validation"])
        offset = remove_offset(model, *sets["train"], self._energy_delta()) if self.ranks.first else 0.0
        self.ranks.copy_first(list(model.parameters()))
        for name, (frames, graphs) in sets.items():
            if frames:
                predictions[name] = frames, list(self._predict(graphs))
        self.ranks.leave()
        if not self.ranks.first:
            return
        rows = {name: error_rows(*predicted) for name, predicted in predictions.items()}
        sanity = sanity_of_fit(model, sets["train"][0])
        start = self.prepared.start
        try:
            model.uncertainty = estimate_uncertainty(model, sets["train"], sets["validation"], None if start is None else start.uncertainty)
        except FlashACEError as error:
            self._say(f"{error}; the model is saved without. `flashace calibrate` adds it")
        save_model(self.folder / "model.pt", model, self._provenance(rows) | {"weights": kept, "sanity": sanity._asdict()})
        report.learning_curve(self.folder / "metrics.csv", self.folder / "learning_curve.png")
        report.parity(predictions, self.folder / "parity.png")
        self.console.print(report.error_table(rows))
        if self.prepared.looked is not None:
            self.console.print(f"check: {self.prepared.looked.words()}", soft_wrap=True)
        self._say(f"weights: {kept}")
        self._say(f"energies: a constant offset of {1e3 * offset:.2g} meV/atom was taken out")
        if model.uncertainty is not None:
            self._say(f"uncertainty: {report.uncertainty_in_words(model.uncertainty.describe())}")
        self.console.print(
            f"{self._steps()} steps, {self._steps() / self.batches_per_epoch:.1f} epochs, {self.elapsed / 60:.1f} minutes of training"
        )
        self._say(in_a_sentence(sanity))

    def _choose_weights(self, frames: Sequence[Labelled], graphs: Sequence[Graph]) -> str:
        """The averaged weights of the end, or earlier ones that are better beyond doubt; returns which and why.

        A score over few frames says little, and the lowest of a hundred scores is low by luck: the earlier weights count as better where
        the validation frames say so one by one.
        """
        model, last = self.averaged, self._averaged_weights()
        if all(torch.equal(weight, last[name]) for name, weight in self.best.items()):
            return "of the end, averaged; no earlier ones had a better validation score"
        scores = []
        for weights in (self.best, last):
            model.load_state_dict(weights, strict=True)
            predictions = self._predict(graphs)
            pairs = zip(frames, predictions, strict=True) if self.ranks.first else ()
            scores.append(np.array([self._score(error_rows([frame], [predicted])[-1]) for frame, predicted in pairs]))
        earlier, why = self.ranks.from_first(earlier_is_better(*scores))
        model.load_state_dict(self.best if earlier else last, strict=True)
        return f"{'of the best validation score' if earlier else 'of the end'}, averaged; {why}"

    def _energy_delta(self) -> float:
        """eV/atom; larger errors of the energy count linearly in the loss."""
        return self.config.huber_delta * self.prepared.units.energy if self.config.loss == "huber" else math.inf

    def _provenance(self, rows: dict[str, Any]) -> dict[str, Any]:
        packages = ("flashace", "torch", "e3nn", "ase", "matscipy", "numpy")
        return {
            "training_data": {
                "files": list(self.config.data),
                "frames": len(self.prepared.train),
                "sha256": self.train_hash,
            },
            "reference_energies": self.prepared.references.origin,
            "check": "off" if self.prepared.looked is None else self.prepared.looked.words(),
            "errors": rows,
            "epochs": self._steps() / self.batches_per_epoch,
            "minutes": self.elapsed / 60,
            "seed": self.config.seed,
            "versions": {name: importlib.metadata.version(name) for name in packages},
        }


def earlier_is_better(earlier: np.ndarray, last: np.ndarray) -> tuple[bool, str]:
    """Whether frames tell that the first of two sets of weights is better, from the score of each frame [B] with both, and why.

    A paired t test over frames: B ≥ ENOUGH_TO_CHOOSE, and the mean difference above SURE standard errors. Scores that are not finite
    are worse than any.
    """
    if not np.isfinite(last).all():
        return True, "those of the end are not finite"
    if len(last) == 0:
        return False, "there are no validation frames to choose by"
    if len(last) < ENOUGH_TO_CHOOSE:
        return False, f"{len(last)} validation frames are too few to choose by ({ENOUGH_TO_CHOOSE} would do)"
    gain = last - earlier
    error = gain.std(ddof=1) / len(gain) ** 0.5
    sure = gain.mean() / error if error > 0 else 0.0
    return sure > SURE, f"on {len(gain)} validation frames earlier ones are better by {sure:.1f} standard errors ({SURE:g} are asked for)"


def fit(
    prepared: Prepared,
    folder: Path,
    console: Console,
    resume: bool = False,
    overwrite: bool = False,
    started: float | None = None,
    ranks: Ranks = ALONE,
) -> bool:
    """Fit and leave a run `folder`; False where the fit was interrupted and can be resumed.

    With `resume` it goes on in a folder that exists; with `overwrite` the fit in that folder is deleted, once this one is ready to start.
    All `ranks` call this with the same arguments, but for the device; the first one writes, and none of them talks to another any more
    afterwards. Raises FlashACEError where the folder for checkpoints holds those of another fit, and LostRank where a rank ends before.
    """
    with ExitStack() as locks:
        if not _first_does(ranks, lambda: locks.enter_context(locked(folder, tell=console.print))):
            return False
        trainer = Trainer(prepared, folder, console, time.monotonic() if started is None else started, ranks)
        if not _first_does(ranks, lambda: _prepare_folder(trainer, resume, overwrite, locks)):
            return False
        if trainer.ended and all((folder / name).is_file() for name in LEFT_BY_A_FIT):
            ranks.leave()
            console.print(_how_to_extend(trainer), soft_wrap=True)
            return True
        shared = f"; {ranks.size} ranks share each batch" if ranks.size > 1 else ""
        console.print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters; run folder {folder}{shared}")
        ended = trainer.run()
        if ended:
            trainer.finish()
        else:
            ranks.leave()
        return ended


def _first_does(ranks: Ranks, work: Callable[[], object]) -> bool:
    """The first rank works, the others wait; False where it failed, but there: it raises what went wrong."""
    done = False
    try:
        if ranks.first:
            work()
            done = True
    finally:
        done = ranks.from_first(done)
        if not done:
            ranks.leave()
    return done


def _prepare_folder(trainer: Trainer, resume: bool, overwrite: bool, locks: ExitStack) -> None:
    folder = trainer.folder
    own = trainer.checkpoints.resolve().is_relative_to(folder.resolve())
    if not own:
        locks.enter_context(locked(trainer.checkpoints, tell=trainer.console.print))
    if not resume:
        if checkpoints_in(trainer.checkpoints) and not (overwrite and own):
            raise FlashACEError(f"checkpoint_dir: {trainer.checkpoints} holds checkpoints of another fit; name another folder or empty it")
        for path in [*(folder / name for name in LEFT_BY_A_FIT), *checkpoints_in(trainer.checkpoints), trainer.checkpoints / BEST]:
            path.unlink(missing_ok=True)
    for path in folder.glob("*.partial"):  # of a writer that was killed: nobody else writes here now
        path.unlink(missing_ok=True)
    _write_config(folder / "config.yaml", trainer.prepared.config, resume)
    trainer.write_metrics()


def _write_config(path: Path, config: FitConfig, resume: bool) -> None:
    """The options of this fit; of one that goes on those that it had, but for its length, which may be another now."""
    if resume:
        before = load_config(path, {})
        config = replace(before, train=replace(before.train, epochs=config.train.epochs, max_time=config.train.max_time))
        if config == before:
            return
    write_config(path, config)


def _how_to_extend(trainer: Trainer) -> str:
    t = trainer.config
    longer = f"--epochs {2 * t.epochs}" if t.epochs else f"--max-time {2 * (t.max_time or 0):g}"
    return (
        f"this fit has ended, after {trainer.epoch} epochs and {trainer.elapsed / 60:.1f} minutes of training; nothing was changed. "
        f"To make it longer:\n    flashace fit --resume {trainer.folder} {longer}"
    )


class _GivenUp(BaseException):
    """A signal came while a step could be given up; no error, so that nothing on the way takes it for one."""


@contextmanager
def _stop_signals(may_give_up: Callable[[], bool]) -> Iterator[list[int]]:
    """The signals that asked for an end: Ctrl-C and SIGTERM are heard between two steps; a second one ends everything at once.

    Not under torchrun: it passes on what it hears, so a signal of the queue to all processes arrives twice.
    Where `may_give_up` says so, the first one raises _GivenUp at once. In a thread none is heard: Python gives them to the main thread.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def hear(signum: int, frame: Any) -> None:
        if received and not is_torchelastic_launched():
            raise KeyboardInterrupt
        received.append(signum)
        if may_give_up():
            raise _GivenUp

    before = {signum: signal.signal(signum, hear) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except LostRank:
        before.clear()  # torchrun ends what is left of the fit; the error is to be read before
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def progress_bar(console: Console) -> Progress:
    """Shown on a terminal only, and gone when it is done."""
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
