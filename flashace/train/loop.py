"""A prepared fit in; epochs of training steps, and at the end a run folder with model, table and pictures."""

import math
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from flashace.data.labels import LABELS
from flashace.data.lazy import chained
from flashace.errors import FlashACEError
from flashace.potential.derivatives import EdgeBudget
from flashace.train.batches import Batches, with_graphs
from flashace.train.clock import Clock
from flashace.train.closing import Outcome, close
from flashace.train.course import Course
from flashace.train.first_model import first_model
from flashace.train.lock import locked
from flashace.train.log import Entry, Log, progress_bar
from flashace.train.micro import MicroBatches
from flashace.train.offset import remove_offset
from flashace.train.optim.schedule import Schedule, loss_weights
from flashace.train.optim.update import Update
from flashace.train.prepare import Prepared
from flashace.train.ranks import ALONE, LostRank, Ranks
from flashace.train.replay import by_source
from flashace.train.run_folder import RunFolder
from flashace.train.session import Session
from flashace.train.signals import GivenUp, stop_signals
from flashace.train.sparse import EVERY, TAUGHT, sparse_batch
from flashace.train.step import TrainStep
from flashace.train.validation import Validation

COMPILE_PAYS = 12 * 60  # s of plain training above which compiling is worth its one to three minutes
STEPS_APART = 100  # of two validations, at least


class Trainer:
    """The parts of a fit, and its story. `run` trains to the end, or until it is interrupted, and `finish` writes what a fit leaves.

    Several ranks have the same state and take the same decisions; each computes its share of every batch, and the first writes all files.
    """

    def __init__(self, prepared: Prepared, folder: Path, console: Console, started: float, ranks: Ranks = ALONE) -> None:
        t = prepared.config.train
        self.prepared, self.config, self.ranks = prepared, t, ranks
        self.folder = RunFolder(folder, folder / t.checkpoint_dir)
        sets = prepared.train, prepared.valid, prepared.replay.train, prepared.replay.valid
        self.train, self.valid, replay, self.replay = with_graphs(sets, prepared.config.model.r_max, t.precompute_neighbors, ranks, console)
        self.batches = Batches(self.train, t, prepared.dtype, ranks, replay)
        self.log = Log(folder, console, tensorboard=t.tensorboard and ranks.first)
        self.model = first_model(prepared, self.batches.both.graphs, ranks)
        self.update = Update(self.model, t, prepared.device, prepared.amp_dtype)
        self.schedule = Schedule(t)
        self.step = TrainStep(self.model, prepared.units, t.compile, prepared.amp_dtype, t.linear_above)
        self.budget = EdgeBudget(t.max_edges_per_step)
        self.micro_batches = MicroBatches(self.step, int(t.batch_size or 1), self.budget, prepared.device, self.log.say, ranks)
        self.validation = Validation(self.update.averaged, self.valid, loss_weights(1.0, t).tolist(), prepared.units, ranks)
        self.course = Course(self.batches.per_epoch)
        self.clock = Clock(started, t, len(prepared.train), len(prepared.valid) + len(prepared.replay.valid), ranks.size)
        self.reached, self.stopped = 0.0, False  # on which all ranks agree
        self.session = self._session()
        if prepared.start is not None:
            self.session.resume(prepared.start)

    def _session(self) -> Session:
        return Session(
            folder=self.folder.checkpoints,
            prepared=self.prepared,
            ranks=self.ranks,
            batches=self.batches,
            model=self.model,
            update=self.update,
            schedule=self.schedule,
            step=self.step,
            budget=self.budget,
            validation=self.validation,
            course=self.course,
            clock=self.clock,
            log=self.log,
        )

    # The loop

    def run(self) -> bool:
        """Train to the end; False where Ctrl-C or SIGTERM came first, with everything saved."""
        if self.course.ended:
            return True
        with stop_signals(self._may_give_up) as stop, progress_bar(self.log.console) as bar:
            task = bar.add_task("fit", total=1000)
            try:
                self._run(
                    stop,
                    tick=lambda: bar.update(task, completed=round(1000 * self.progress())),
                    tell=lambda text: bar.update(task, description=text),
                )
            except LostRank:
                self.session.save()  # a step is taken by all ranks or by none, so this is the state after the last one
                raise
            except GivenUp:
                self.stopped = True
                self.session.save()  # no optimizer has stepped since the last step was done
        return not self.stopped

    def _run(self, stop: Sequence[int], tick: Callable[[], None], tell: Callable[[str], None]) -> None:
        course = self.course
        while self._goes_on(stop):
            self._run_epoch(stop, tick)
            if self._validation_is_due():
                tell(self.validate())
            if course.position == 0 and course.epoch % self.config.checkpoint_interval == 0:
                self.session.save()
        if self.reached >= 1.0 and course.tally.steps > 0:
            self.validate()
        if self.schedule.ends:
            self.log.console.print(f"no better score in {self.config.early_stopping} validations (early_stopping): the fit ends here")
        course.ended = self.reached >= 1.0 or self.schedule.ends
        self.session.save()
        self._goes_on(stop)  # a signal may have come since

    def _run_epoch(self, stop: Sequence[int], tick: Callable[[], None]) -> None:
        for indices in self.batches.of_epoch(self.course.epoch)[self.course.position :]:
            if not self._goes_on(stop):
                break
            self.train_on(indices, self.reached)
            tick()
        else:
            self.course.epoch, self.course.position = self.course.epoch + 1, 0

    def _goes_on(self, stop: Sequence[int]) -> bool:
        """Whether another step follows: `reached` is the progress by the clock of the first rank, and a signal to any rank counts."""
        said = torch.tensor([self.progress() if self.ranks.first else 0.0, len(stop)], dtype=torch.float64)
        self.ranks.add([said])
        self.reached, self.stopped = said[0].item(), said[1].item() > 0
        return self.reached < 1.0 and not self.stopped and not self.schedule.ends

    def _may_give_up(self) -> bool:
        """Whether a signal need not wait for the end of this step: compiling takes minutes, and other ranks would wait for its end."""
        return self.step.compiling and self.ranks.size == 1

    def progress(self) -> float:
        """From 0 at the first step to 1 at the last, by epochs and by time, whichever ends first."""
        return self.clock.progress(self.course.epochs)

    # A step

    def train_on(self, indices: Sequence[int], progress: float) -> None:
        """One step with these training frames. Raises FlashACEError where the gradient is not finite."""
        begin = self.clock.now()
        self._learn_free_atoms()
        errors = self.micro_batches(self.batches.own(indices, self.course.epoch), self.update.scaler.scale(self._weights(progress)))
        finite = self.update.clip()
        if not finite and not self.update.scaler.is_enabled():
            raise FlashACEError(
                f"the gradient of step {self.course.steps + 1} is not finite (loss terms {errors[0].tolist()}); lower --learning-rate, "
                f"or look for broken frames among {[str(self.batches.both.frames[i].origin) for i in indices]}"
            )
        self.update.move(self.schedule.learning_rate(progress), finite)
        if finite:
            self.course.tally.add(errors)
        self.course.position += 1
        if self.clock.first_step is None:
            self._after_the_first_step(self.clock.now() - begin)
        self.clock.step_done()

    def _learn_free_atoms(self) -> None:
        """The gradient of made-up sparse structures, on one rank: it goes into the sum of all. Their errors are counted nowhere."""
        weight, p, steps = self.config.free_atoms_weight, self.prepared, self.course.steps
        due = steps % EVERY == 1  # not in the first step, whose time decides on compiling
        if not (due and weight and self.model.free_atoms and self.ranks.first):
            return
        purpose = 2  # keeps these numbers apart from the others that are drawn for this step
        random = np.random.default_rng([self.config.seed, steps, purpose])
        batch = sparse_batch(self.model.e0, p.config.model.r_max, p.dtype, random)
        if batch is not None:
            weights = torch.tensor([weight * (label in TAUGHT) for label in LABELS], dtype=p.dtype, device=p.device)
            self.step(batch.to(p.device), self.update.scaler.scale(weights))

    def _weights(self, progress: float) -> torch.Tensor:
        return loss_weights(progress, self.config).to(self.prepared.device, self.prepared.dtype)

    def _after_the_first_step(self, seconds: float) -> None:
        """Foresee the rest, from the seconds that the step took."""
        self.decide_on_compiling(seconds)
        if self.config.max_time:
            self.clock.seconds_per_frame = self.validation.seconds_per_frame(chained(self.train.graphs, self.valid.graphs))
            warning = self.clock.too_short()
            if warning is not None:
                self.log.say(warning)
        self.clock.first_step_done()

    def decide_on_compiling(self, seconds: float) -> None:
        """Compile where the fit is long enough to earn it back, at so many seconds a step."""
        steps = self.batches.per_epoch * self.config.epochs if self.config.epochs else math.inf
        ahead = min(steps * seconds, self.clock.seconds_left())
        compiler = self.prepared.device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
        if self.ranks.from_first(self.step.undecided and ahead > COMPILE_PAYS and bool(compiler)):
            self.log.console.print("compiling the training step: one to three minutes, once")
            self.step.compiled = True
            epoch = self.course.epoch
            self.micro_batches(self.batches.own(self.batches.of_epoch(epoch)[0], epoch), self._weights(0.0))
            self.model.zero_grad()

    # Validation

    def _validation_is_due(self) -> bool:
        """Every epoch, but at least STEPS_APART steps apart, and never twice after the same step; `run` adds the end."""
        course = self.course
        due = course.tally.steps > 0 and course.position == 0 and course.epoch % math.ceil(STEPS_APART / course.per_epoch) == 0
        return due and self.ranks.from_first(self.reached >= 1.0 or self.clock.has_time_to_validate())

    def validate(self) -> str:
        """Errors of the averaged weights on the validation frames: a row of metrics.csv, and one line of text."""
        errors = self.validation.errors()
        replay = self.validation.errors_of(self.replay) if self.replay.frames else {}
        score = self.validation.score(errors) if self.prepared.valid else math.nan
        self.schedule.validated(score)
        better = self.validation.is_better(score)
        training = self.course.tally.take()
        if not self.ranks.first:
            return ""
        steps = self.course.steps
        entry = Entry(
            epochs=steps / self.course.per_epoch,
            seconds=self.clock.elapsed,
            learning_rate=self.update.learning_rate,
            weights=loss_weights(self.progress(), self.config).tolist(),
            training=training,
            errors=errors,
            replay=replay,
        )
        row = entry.row(self.prepared.labels, self.prepared.units)
        self.log.add(row, steps)
        if better:
            self.session.save_best()
        text = entry.in_words(row)
        self.log.show(text, self.progress(), self.clock.elapsed)
        return text

    # The end

    def finish(self) -> None:
        """The chosen weights as model.pt, the closing table, the pictures. Ranks part here: the first does what is left to do."""
        model = self.update.averaged
        train, valid = (frames.sample(self.clock.closing_frames) for frames in (self.train, self.valid))
        weights = self.validation.choose(valid)
        delta = math.inf if self.config.linear_above is None else self.config.linear_above * self.prepared.units["energy"]  # eV/atom
        offset = remove_offset(model, *train, delta) if self.ranks.first else 0.0
        self.ranks.copy_first(list(model.parameters()))
        old = {f"replay: {source}": self.replay.only(indices) for source, indices in by_source(self.replay.frames).items()}
        sets = {"train": train, "validation": valid, **old}
        predictions = {name: list(self.validation.predict(found.graphs)) for name, found in sets.items() if found.frames}
        self.ranks.leave()
        if self.ranks.first:
            steps = self.course.steps
            outcome = Outcome(
                train=train,
                valid=valid,
                replay=old,
                predictions=predictions,
                weights=weights,
                offset=offset,
                steps=steps,
                epochs=steps / self.course.per_epoch,
                seconds=self.clock.elapsed,
                data_hash=self.batches.content_hash,
            )
            close(self.prepared, model, outcome, self.folder.path, self.log)


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
        if not ranks.first_does(lambda: locks.enter_context(locked(folder, tell=console.print))):
            return False
        trainer = Trainer(prepared, folder, console, Clock.now() if started is None else started, ranks)
        if not ranks.first_does(lambda: _take_folder(trainer, resume, overwrite, locks)):
            return False
        if trainer.course.ended and trainer.folder.is_whole:
            ranks.leave()
            trainer.log.say(_how_to_extend(trainer))
            return True
        shared = f"; {ranks.size} ranks share each batch" if ranks.size > 1 else ""
        console.print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters; run folder {folder}{shared}")
        ended = trainer.run()
        if ended:
            trainer.finish()
        else:
            ranks.leave()
        return ended


def _take_folder(trainer: Trainer, resume: bool, overwrite: bool, locks: ExitStack) -> None:
    config, tell = trainer.prepared.config, trainer.log.console.print
    if resume:
        trainer.folder.go_on(config, locks, tell)
    else:
        trainer.folder.make_ready(config, overwrite, locks, tell)
    trainer.log.write()


def _how_to_extend(trainer: Trainer) -> str:
    t = trainer.config
    longer = f"--epochs {2 * t.epochs}" if t.epochs else f"--max-time {2 * (t.max_time or 0):g}"
    return (
        f"this fit has ended, after {trainer.course.epoch} epochs and {trainer.clock.elapsed / 60:.1f} minutes of training; nothing was "
        f"changed. To make it longer:\n    flashace fit --resume {shlex.quote(str(trainer.folder.path))} {longer}"
    )
