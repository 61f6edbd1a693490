"""`flashace distill`: seeds and a teacher in, a student with its certificate out."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashace.cli.fields import OF_A_FIT, WithFields
from flashace.cli.run_folder import OF_DISTILL as OPTIONS
from flashace.cli.run_folder import default_folder
from flashace.cli.teaching import best_of, nothing_written, tell_charges
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from ase import Atoms

    from flashace.teach.certificate import Certificate
    from flashace.teach.config import Config, DistillConfig, SampleConfig
    from flashace.teach.rounds import Round
    from flashace.train.config import FitConfig

LEFT_BY_DISTILL = (
    "seeds.extxyz", "config.yaml", "sampled.*", "frames.extxyz", "held_out.extxyz", "student", "round-*", "rounds.csv", "seconds",
    "model.pt", "certificate.json", "certificate_*.png", "*.partial", OPTIONS,
)  # fmt: skip
# of the model and its fits; the rest is what `fit` does without being asked
OF_THE_STUDENT = ("size", "r_max", "l_max", "correlation", "num_layers", "hidden_dim", "num_channels", "device", "dtype", "compile")
OF_DISTILL = (
    "teacher", "teacher_arg", "num", "error", "rounds", "round_frames", "max_time", "bound", "temperatures", "max_force", "max_atoms",
    "workers", "timeout", "seed", "output",
)  # fmt: skip


@click.command(cls=WithFields, kinds=("flashace.teach.config:DistillConfig", *OF_A_FIT), fields=(*OF_DISTILL, *OF_THE_STUDENT))
@click.argument("seeds", nargs=-1)
@click.option("--overwrite", is_flag=True, help="Delete the run that the folder holds.")
@click.option("--resume", type=click.Path(), help="Run folder of an interrupted run: go on where it stopped.")
def distill(seeds: tuple[str, ...], overwrite: bool, resume: str | None, **flags: Any) -> None:
    """A model that does what a teacher does, from the structures of SEEDS alone: sample, fit, correct the student where it goes by itself.

    Ends with model.pt and its certificate. Exit status 0 where all asked bounds hold (--error and --bound), 1 where one does not.
    """
    from flashace.teach import rounds as stages
    from flashace.teach.budget import with_number
    from flashace.teach.config import DistillConfig
    from flashace.train.lock import locked

    with ExitStack() as locks:
        if resume is not None:
            folder = Path(resume)
            locks.enter_context(locked(folder, tell=console.print))
            structures, settings, like = asked_before(folder, seeds, {"overwrite": overwrite or None, **flags}, OPTIONS, DistillConfig)
        else:
            structures, settings, like = _asked(seeds, flags)
            with nothing_written():
                best_of([settings.teacher], settings.teacher_arg, like.model.r_max, structures, [], settings.timeout)
                settings = with_number(settings, structures, settings.max_time)
            folder = default_folder(seeds[0], overwrite, locks) if settings.output is None else Path(settings.output)
            locks.enter_context(locked(folder, tell=console.print))
            spare(folder, seeds, settings.teacher)
            take(folder, overwrite, structures, settings, like, OPTIONS, LEFT_BY_DISTILL)
            structures = seeds_of(folder)  # with the digits that a run that goes on reads, or its tasks would be others
        try:
            rounds = stages.distill(structures, settings, like, folder, console)
            found = None if rounds is None else _certified(rounds, structures, settings, folder)
        except KeyboardInterrupt:
            found = None
        if found is None:
            go_on = f"flashace distill --resume {shlex.quote(str(folder))}"
            console.print(f"interrupted; everything is saved. To go on:\n    {go_on}", soft_wrap=True)
            raise SystemExit(130)
    console.print(f"model        {folder / 'model.pt'}\ncertificate  {folder / 'certificate.json'} and pictures beside it", soft_wrap=True)
    if not found.passed():
        console.print("a bound that was asked for does not hold: see NOT HELD above")
        raise SystemExit(1)


def _asked(seeds: tuple[str, ...], flags: dict[str, Any]) -> "tuple[list[Atoms], DistillConfig, FitConfig]":
    from flashace.data.files import structures
    from flashace.teach.certificate import check_bounds
    from flashace.teach.config import DistillConfig, sample_config
    from flashace.train.config import make_config

    if not seeds:
        raise FlashACEError("SEEDS: expected a file with a structure at least, got none; name one, or --resume a run folder")
    settings = sample_config({name: flags[name] for name in OF_DISTILL}, DistillConfig)
    if not settings.teacher:
        raise FlashACEError("--teacher: expected the name of a teacher, got none; say tblite for molecules, chgnet for crystals")
    check_bounds(bounds_of(settings))
    student = {name: flags[name] for name in (*OF_THE_STUDENT, "seed") if flags[name] is not None}
    found = [atoms for atoms, _ in structures(seeds)]
    tell_charges(found)
    return found, settings, make_config(student)


def bounds_of(settings: "DistillConfig") -> dict[str, float]:
    """What the certificate is asked for. Raises FlashACEError for what is not name=number."""
    bounds = {"trajectory_forces": settings.error}
    for text in settings.bound:
        name, _, number = text.partition("=")
        try:
            bounds[name] = float(number)
        except ValueError:
            raise FlashACEError(f"--bound: expected name=number, such as laws=0, got {text!r}; correct it") from None
    return bounds


def asked_before(
    folder: Path, seeds: tuple[str, ...], flags: dict[str, Any], options: str, kind: "type[Config]"
) -> "tuple[list[Atoms], Config, FitConfig]":
    """With what the run in `folder` began; its file of `options` has a `kind`. Raises FlashACEError without one, and where more is said."""
    from flashace.teach.config import read_options
    from flashace.train.config import load_config

    given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None and value != ()]
    if seeds or given:
        raise FlashACEError(f"--resume: expected nothing beside it, got {', '.join([*seeds, *given])}; a run goes on with what it has")
    if not (folder / options).exists():
        command = f"flashace {Path(options).stem}"
        raise FlashACEError(f"--resume {folder}: expected the run folder of a `{command}`, found no {options} in it; name another")
    return seeds_of(folder), read_options(folder / options, kind), load_config(folder / "config.yaml", {})


def seeds_of(folder: Path) -> "list[Atoms]":
    """What the run began with."""
    from flashace.data.extxyz import read_extxyz

    return list(read_extxyz(folder / "seeds.extxyz"))


def spare(folder: Path, seeds: tuple[str, ...], teacher: str) -> None:
    """Raises FlashACEError where the run folder has what the run reads, which would be deleted."""
    kind, _, model = teacher.partition(":")
    for path in [*seeds, *([model] if kind == "flashace" else [])]:
        if Path(path).resolve().is_relative_to(folder.resolve()):
            raise FlashACEError(f"{folder}: expected a run folder without {path}, which the run reads and would delete; name another")


def take(
    folder: Path,
    overwrite: bool,
    structures: "list[Atoms]",
    settings: "SampleConfig",
    like: "FitConfig",
    options: str,
    left: Sequence[str],
) -> None:
    """Into an empty folder go seeds and options, by which a run goes on. Raises FlashACEError for one that is in use; with `overwrite`,
    what a run with such a file of `options` has `left` is deleted."""
    import shutil

    from ase import Atoms
    from ase.io import write

    from flashace.files import whole_file
    from flashace.teach.config import write_options
    from flashace.train.config import write_config

    ours = (folder / options).exists()
    if any(path.name != ".lock" for path in folder.iterdir()) and not (ours and overwrite):
        how = f"--resume {shlex.quote(str(folder))}, or --overwrite it" if ours else "name another with --output"
        raise FlashACEError(f"{folder}: expected an empty run folder, this one is in use; {how}")
    for path in (path for name in left for path in list(folder.glob(name))):  # what else is there is the user's
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with whole_file(folder / "seeds.extxyz") as aside:
        bare = [Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc) for atoms in structures]
        write(aside, bare, format="extxyz")  # what else they have may not be written, or break a line
    write_config(folder / "config.yaml", like)
    write_options(folder / options, settings)  # last: where it is, the others are


def _certified(rounds: "list[Round]", structures: "list[Atoms]", settings: "DistillConfig", folder: Path) -> "Certificate":
    """model.pt, the best of all rounds, with its certificate, which is shown too."""
    import shutil

    from flashace.data.shards import read_data
    from flashace.files import whole_file
    from flashace.teach.certificate import certificate, certificate_table, certify
    from flashace.teach.guarded import Guarded
    from flashace.teach.rounds import best_of as best_round
    from flashace.teach.teachers import teacher

    best = best_round(rounds)
    named = teacher(settings.teacher, settings.teacher_arg)
    with Guarded(named, settings.timeout) as calculator:
        found = certificate(
            best.model,
            calculator,
            structures,
            held_out=list(read_data(str(folder / "held_out.extxyz"))[0]),
            trajectories=list(read_data(str(best.place / "held_out.extxyz"))[0]),
            bounds=bounds_of(settings),
            folder=folder,
            name=named.source,
            licence=named.licence,
            say=lambda text: console.print(f"certificate: {text}", soft_wrap=True),
        )
    with whole_file(folder / "model.pt") as aside:
        shutil.copyfile(best.model, aside)
    certify(folder / "model.pt", found)
    console.print(certificate_table(found))
    return found
