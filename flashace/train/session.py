"""The parts of a fit in, the content of its checkpoints out, and back: everything to the last bit, or only what is asked for."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashace.errors import FlashACEError
from flashace.potential.derivatives import EdgeBudget
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import describe
from flashace.train.batches import Batches
from flashace.train.checkpoint import BEST, Start, checkpoint_name, keep_newest, save_checkpoint
from flashace.train.clock import Clock
from flashace.train.config import TrainConfig
from flashace.train.course import Course, Tally
from flashace.train.log import Log
from flashace.train.offset import remove_offset
from flashace.train.optim.schedule import Schedule
from flashace.train.optim.update import Update
from flashace.train.prepare import Prepared
from flashace.train.ranks import Ranks
from flashace.train.step import TrainStep
from flashace.train.validation import Validation

FRAMES_TO_ADAPT = 500  # evenly drawn, for the change of reference energies


@dataclass(frozen=True)
class Session:
    """What a fit needs to go on as if nothing had happened, on any number of ranks. `folder` is for its checkpoints."""

    folder: Path
    prepared: Prepared
    ranks: Ranks
    batches: Batches
    model: AttentionACE
    update: Update
    schedule: Schedule
    step: TrainStep
    budget: EdgeBudget
    validation: Validation
    course: Course
    clock: Clock
    log: Log

    @property
    def config(self) -> TrainConfig:
        """The options of the fit."""
        return self.prepared.config.train

    def save(self) -> None:
        """Write a checkpoint, and delete those that are not to be kept; the first rank does."""
        if self.ranks.first:
            save_checkpoint(self.folder / checkpoint_name(self.course.steps), self.state())
            keep_newest(self.folder, self.config.keep_checkpoints)

    def save_best(self) -> None:
        """Write the checkpoint that is kept for its score."""
        save_checkpoint(self.folder / BEST, self.state())

    def state(self) -> dict[str, Any]:
        """What `State` of checkpoint.py describes."""
        device = self.prepared.device
        return {
            "model": describe(self.model),
            "reference_energies": self.prepared.references.origin,
            "replay": self.prepared.replay.shifts,
            "weights": dict(self.model.named_parameters()),
            **self.update.state(),
            "schedule": {
                "order": self.batches.order(),
                "epoch": self.course.epoch,
                "position": self.course.position,
                "elapsed": self.clock.elapsed,
                "sums": self.course.tally.numbers,
                "best_score": self.validation.best_score,
                "best": self.validation.best,
                "rows": self.log.rows,
                "compiled": self.step.compiled,
                "learning_rate": self.schedule.state_dict(),
                "max_edges": self.budget.max_edges,
                "random": torch.get_rng_state(),
                "random_cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
                "ended": self.course.ended,
                "length": {"epochs": self.config.epochs, "max_time": self.config.max_time},
            },
        }

    def resume(self, start: Start) -> None:
        """The averaged weights come back (the model has its own), and whatever of the rest is asked for.

        Raises FlashACEError where something is asked for that `start` does not have, or that is of another fit.
        """
        self.update.averaged.load_state_dict(start.average, strict=True)
        if start.adapts or self.model.e0 != start.model["atomic_energies"]:
            self._adapt_to_other_energies()
        self.validation.best = self.validation.current()
        t, state = self.config, start.state
        asked = [name for name in ("resume_load_optimizer", "resume_load_scheduler", "resume_load_scaler") if getattr(t, name)]
        if state is None:
            if asked:
                raise FlashACEError(f"{start.path}: a model file holds weights only; leave out {', '.join(asked)}, or name a checkpoint")
            return
        self.update.average.n_averaged.fill_(state["averaged_steps"])
        if t.resume_load_optimizer:
            self.update.load_optimizers(state["optimizers"], start.path)
        if t.resume_load_scheduler:
            self._resume_schedule(start.path, state["schedule"])
        if t.resume_load_scaler:
            self.update.load_scaler(state["scaler"], start.path)

    def _adapt_to_other_energies(self) -> None:
        """The network makes up for other reference energies, or the fit begins with errors of eV."""
        few = self.batches.train.sample(FRAMES_TO_ADAPT)
        for model in (self.model, self.update.averaged) * 2:  # once more: the bound of the energies bends a shift of eV by some meV
            remove_offset(model, few.frames, few.graphs)
            self.ranks.copy_first(list(model.parameters()))

    def _resume_schedule(self, path: Path, saved: dict[str, Any]) -> None:
        self._check_order(path, saved)
        self.course.epoch, self.course.position, self.course.tally = saved["epoch"], saved["position"], Tally(saved["sums"])
        self.course.ended = had_ended(saved, self.config)
        self.clock.elapsed = self.clock.spent_before = saved["elapsed"]
        self.log.rows = saved["rows"]
        self.validation.best_score = saved["best_score"]
        self.validation.best = {name: weight.to(self.prepared.device) for name, weight in saved["best"].items()}
        if self.step.undecided:
            self.step.compiled, self.step.undecided = saved["compiled"], False
        self.schedule.load_state_dict(saved["learning_rate"])
        if saved.get("ended") and not self.course.ended:
            self.schedule.not_better = 0  # early stopping may have ended the shorter fit
        self.budget.max_edges = min(self.budget.max_edges, saved["max_edges"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] and self.prepared.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random_cuda"][0], self.prepared.device)

    def _check_order(self, path: Path, saved: dict[str, Any]) -> None:
        """Raises FlashACEError where the next step would meet other frames."""
        for name, value in self.batches.order().items():
            if value != saved["order"].get(name):
                raise FlashACEError(
                    f"{path}: {name}: {saved['order'].get(name)} there and {value} here, so this is not the interrupted fit; "
                    "use the same, or leave out resume_load_scheduler"
                )
        if saved["position"] > self.course.per_epoch:
            raise FlashACEError(
                f"{path}: expected at most {self.course.per_epoch} steps of an epoch, got {saved['position']}: this checkpoint is damaged"
                "; name another, or leave out resume_load_scheduler"
            )


def had_ended(saved: dict[str, Any], t: TrainConfig) -> bool:
    """Whether the fit was trained to its end, and is not to be any longer now."""
    if not {"ended", "length"} <= saved.keys():  # format 1
        by_time = bool(t.max_time) and saved["elapsed"] >= 0.9 * (t.max_time or 0) * 60
        return by_time or saved["epoch"] >= (t.epochs or math.inf)
    before = saved["length"]
    longer = any((now or math.inf) > (before[name] or math.inf) for name, now in (("epochs", t.epochs), ("max_time", t.max_time)))
    return bool(saved["ended"]) and not longer
