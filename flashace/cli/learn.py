"""`flashace learn`: a few structures and somebody who labels in, a model that runs from them without being unsure out."""

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashace.cli.distill import OF_THE_STUDENT as OF_A_STUDENT
from flashace.cli.distill import asked_before, seeds_of, spare, take
from flashace.cli.fields import OF_A_FIT, WithFields
from flashace.cli.run_folder import OF_LEARN as OPTIONS
from flashace.cli.run_folder import default_folder
from flashace.cli.teaching import tell_charges
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from ase import Atoms

    from flashace.teach.config import LearnConfig
    from flashace.teach.learning import Outcome
    from flashace.train.config import FitConfig

OF_THE_STUDENT = (*OF_A_STUDENT, "epochs")
LEFT_BY_LEARN = ("seeds.extxyz", "config.yaml", "round-*", "rounds.csv", "model.pt", "*.partial", OPTIONS)
OF_LEARN = (
    "teacher", "teacher_arg", "num", "temperatures", "pressures", "time", "stop", "rounds", "max_force", "max_atoms", "workers", "timeout",
    "seed", "output",
)  # fmt: skip
WAITS = 3  # exit status


@click.command(cls=WithFields, kinds=("flashace.teach.config:LearnConfig", *OF_A_FIT), fields=(*OF_LEARN, *OF_THE_STUDENT))
@click.argument("seeds", nargs=-1)
@click.option("--overwrite", is_flag=True, help="Delete the run that the folder holds.")
@click.option("--resume", type=click.Path(), help="Run folder of a run that waits for labels, or was interrupted: go on.")
def learn(seeds: tuple[str, ...], overwrite: bool, resume: str | None, **flags: Any) -> None:
    """A model from a few structures, by dynamics that stops where the model is unsure: these frames are labelled and learned, until a whole
    run stays sure.

    The teacher is an ASE calculator, as in `distill`, or files:DIR. Then the frames to label are written there, a folder each, the program
    ends, and `--resume RUN` reads what has been labelled and goes on.

    Exit status 0 where a whole run stayed sure, 1 where the rounds were used up before, 3 where it waits for labels.
    """
    from flashace.teach.config import LearnConfig
    from flashace.teach.learning import FILES, labels_of_seeds, learn_by_doing
    from flashace.train.lock import locked

    with ExitStack() as locks:
        if resume is not None:
            folder = Path(resume)
            locks.enter_context(locked(folder, tell=console.print))
            structures, settings, like = asked_before(folder, seeds, {"overwrite": overwrite or None, **flags}, OPTIONS, LearnConfig)
        else:
            structures, settings, like = _asked(seeds, flags)
            folder = default_folder(seeds[0], overwrite, locks) if settings.output is None else Path(settings.output)
            locks.enter_context(locked(folder, tell=console.print))
            spare(folder, seeds, settings.teacher)
            take(folder, overwrite, structures, settings, like, OPTIONS, LEFT_BY_LEARN)
            structures = seeds_of(folder)  # with the digits that a run that goes on reads
            if settings.teacher.startswith(FILES):
                labels_of_seeds(seeds, folder)
        try:
            outcome = learn_by_doing(structures, settings, like, folder, console)
        except KeyboardInterrupt:
            outcome = None
        _end(outcome, folder, f"flashace learn --resume {shlex.quote(str(folder))}")


def _asked(seeds: tuple[str, ...], flags: dict[str, Any]) -> "tuple[list[Atoms], LearnConfig, FitConfig]":
    from dataclasses import replace

    from flashace.data.files import structures
    from flashace.teach.config import LearnConfig, sample_config
    from flashace.teach.learning import FILES, UNDER_PRESSURE
    from flashace.teach.sampling.seed import look_at
    from flashace.teach.teachers import teacher
    from flashace.train.config import make_config

    if not seeds:
        raise FlashACEError("SEEDS: expected a file with a structure at least, got none; name one, or --resume a run folder")
    settings = sample_config({name: flags[name] for name in OF_LEARN}, LearnConfig)
    if not settings.teacher:
        raise FlashACEError(
            "--teacher: expected an ASE calculator or files:DIR, got none; say files:calculations to label with any program"
        )
    if not settings.temperatures:
        raise FlashACEError("--temperatures: expected at least one, in K, got none; say how hot the model is to run")
    if settings.teacher.startswith(FILES):
        there = settings.teacher.removeprefix(FILES)
        if not there:
            raise FlashACEError("--teacher files:DIR: expected the name of a folder, got none; say files:calculations")
        settings = replace(settings, teacher=f"{FILES}{Path(there).resolve()}")  # a run may go on from elsewhere
    else:
        teacher(settings.teacher, settings.teacher_arg)
    student = {name: flags[name] for name in (*OF_THE_STUDENT, "seed") if flags[name] is not None}
    found = [atoms for atoms, _ in structures(seeds)]
    tell_charges(found)
    shapes = {look_at(atoms).shape for atoms in found}
    if settings.pressures and not shapes & set(UNDER_PRESSURE):
        raise FlashACEError(
            f"--pressures: expected a crystal or a liquid among SEEDS, got {', '.join(sorted(shapes))}; leave it out, or give such seeds"
        )
    return found, settings, make_config(student)


def _end(outcome: "Outcome | None", folder: Path, go_on: str) -> None:
    import shutil

    from flashace.files import whole_file

    if outcome is None:
        console.print(f"interrupted; everything is saved. To go on:\n    {go_on}", soft_wrap=True)
        raise SystemExit(130)
    if outcome.how == "waiting":
        first, last = outcome.places[0], outcome.places[-1]
        console.print(
            f"{len(outcome.places)} frames to label, a folder each, {first} to {last.name}: structure.extxyz, and POSCAR where it is "
            "periodic. Leave vasprun.xml, OUTCAR or extended XYZ with energy and forces there, or one file for all beside these folders. "
            f"Then, or with some of them:\n    {go_on}",
            soft_wrap=True,
        )
        raise SystemExit(WAITS)
    assert outcome.model is not None
    with whole_file(folder / "model.pt") as aside:
        shutil.copyfile(outcome.model, aside)
    last_round = outcome.rounds[-1]
    console.print(f"model   {folder / 'model.pt'}, from {last_round.labels} labels\nrounds  {folder / 'rounds.csv'}", soft_wrap=True)
    if outcome.how == "rounds":
        console.print(f"the last run was still unsure in {last_round.stopped} of {last_round.trajectories} trajectories: more --rounds")
        raise SystemExit(1)
    console.print(f"a whole run of {last_round.picoseconds:.3g} ps stayed below {1e3 * last_round.threshold:.3g} meV")
