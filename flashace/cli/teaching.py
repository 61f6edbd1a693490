"""What `fit` and `distill` have in common: what a teacher can and cannot teach, shown before it is asked for thousands of labels."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashace.cli.run_folder import holds_lesson
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from ase import Atoms

    from flashace.data.frames import Labelled
    from flashace.teach.config import SampleConfig
    from flashace.train.config import FitConfig
    from flashace.train.prepare import Prepared


@dataclass(frozen=True)
class Asked:
    """What was typed of teachers at a fit that began at `started` (s, of time.monotonic)."""

    teachers: tuple[str, ...]
    options: dict[str, Any]
    started: float


def asked_of(teachers: tuple[str, ...], flags: dict[str, Any], started: float) -> Asked:
    """Takes out of `flags` what is about a teacher. Raises FlashACEError for such options without a teacher."""
    from flashace.teach.config import SampleConfig
    from flashace.train.config import TrainConfig

    of_a_fit = {field.name for field in fields(TrainConfig)}
    own = {field.name: flags.pop(field.name) for field in fields(SampleConfig) if field.name not in of_a_fit and field.name in flags}
    options = {name: value for name, value in own.items() if value is not None and value != ()}
    if options and not teachers:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise FlashACEError(f"{names}: expected --teacher beside it, got none; name a teacher, or leave it out")
    return Asked(teachers, options, started)


def choose(prepared: "Prepared", asked: Asked, folder: Path | None) -> "SampleConfig | None":
    """The teacher that a fit is to learn from first: of those asked for, or that of a run `folder` that goes on and has not done so yet."""
    from flashace.teach.before_fit import settings_in
    from flashace.teach.budget import with_number
    from flashace.teach.config import SampleConfig, sample_config

    if folder is not None:
        return None if prepared.config.train.pretrained is not None or prepared.start is not None else settings_in(folder)
    if not asked.teachers:
        return None
    t = prepared.config.train
    if t.pretrained is not None or t.resume_from is not None:
        raise FlashACEError("teacher: expected a fit from scratch, got one that starts from weights; leave out --teacher, or the weights")
    frames = list(prepared.train)
    name = best_of(asked.teachers, asked.options.get("teacher_arg", ()), prepared.config.model.r_max, [f.atoms for f in frames], frames)
    settings: SampleConfig = sample_config({**asked.options, "teacher": name, "seed": t.seed})
    return with_number(settings, [frame.atoms for frame in frames], t.max_time)


def teach(prepared: "Prepared", options: "FitConfig", settings: "SampleConfig", folder: Path, started: float) -> dict[str, Any]:
    """The options by which the fit starts from what the teacher has taught. Exits with status 130 where Ctrl-C or SIGTERM came first.

    `options` are those of the fit as they were given, with what was left open.
    """
    from flashace.teach.before_fit import taught
    from flashace.train.config import write_config

    write_config(folder / "config.yaml", options)  # by which `--resume` finds what was asked for
    try:
        model = taught(prepared, settings, folder, console, started)
    except KeyboardInterrupt:
        model = None
    if model is None:
        console.print(f"interrupted; everything is saved. To go on:\n    flashace fit --resume {folder}", soft_wrap=True)
        raise SystemExit(130)
    return {"pretrained": str(model)}


def sign(folder: Path) -> None:
    """Where a fit learned from a teacher, its model file says so."""
    from flashace.teach import before_fit

    settings = before_fit.settings_in(folder) if holds_lesson(folder) else None
    if settings is not None:
        before_fit.sign(folder / "model.pt", settings)


def tell_charges(structures: "Sequence[Atoms]") -> None:
    """A line, where some have what a teacher does not hear of."""
    from flashace.teach.labelling import is_charged

    number = sum(map(is_charged, structures))
    if number:
        console.print(
            f"{number} of {len(structures)} seeds have charges or magnetic moments, which the teacher does not hear of: "
            "they are labelled as neutral and without",
            soft_wrap=True,
        )


def best_of(
    names: Sequence[str], arguments: Sequence[str], r_max: float, structures: "Sequence[Atoms]", frames: "Sequence[Labelled]"
) -> str:
    """The name of the teacher whose errors on the labelled `frames` are least, and of the only one; prints the errors and its floor.

    Raises FlashACEError where none can do the structures.
    """
    from flashace.teach.floor import floor_of, floor_table
    from flashace.teach.teacher_errors import compare_teachers, teacher_table
    from flashace.teach.teachers import Teacher, teacher

    if len(names) > 1 and arguments:
        raise FlashACEError(
            f"teacher_arg: expected one teacher to give {', '.join(arguments)} to, got {', '.join(names)}; leave one of both out"
        )
    teachers: dict[str, Teacher] = {name: teacher(name, arguments) for name in names}
    calculators = {name: found.calculator() for name, found in teachers.items()}
    best = names[0]
    if frames:
        comparison = compare_teachers(calculators, frames)
        console.print(teacher_table(comparison.teachers))
        best = comparison.best
        for name, why in comparison.put_aside.items():
            console.print(f"{name} is put aside: {why}", soft_wrap=True)
        for name, errors in comparison.teachers.items():
            if errors.failed:
                console.print(f"{name} failed on {len(errors.failed)} frames, such as {errors.failed[0]}", soft_wrap=True)
    floor = floor_of(calculators[best], structures, r_max)
    console.print(floor_table(floor, best))
    for sentence in floor.in_words():
        console.print(sentence, soft_wrap=True)
    return best
