"""What `fit` and `distill` have in common: what a teacher can and cannot teach, shown before it is asked for thousands of labels."""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.calculators.calculator import CalculationFailed

from flashace.cli.run_folder import holds_lesson
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from ase import Atoms

    from flashace.data.frames import Labelled
    from flashace.teach.before_fit import Lesson
    from flashace.teach.guarded import Guarded
    from flashace.teach.teacher_errors import TeacherErrors
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


@contextmanager
def nothing_written() -> Iterator[None]:
    """Exits with status 130 where Ctrl-C comes meanwhile."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted before anything was written. To begin again, type the same")
        raise SystemExit(130) from None


def choose(prepared: "Prepared", asked: Asked, folder: Path | None) -> "Lesson | None":
    """The teacher that a fit is to learn from first: of those asked for, or that of a run `folder` that goes on and has not done so yet."""
    from flashace.teach.before_fit import Lesson, settings_in
    from flashace.teach.budget import with_number
    from flashace.teach.config import SampleConfig, sample_config

    if folder is not None:
        over = prepared.config.train.pretrained is not None or prepared.start is not None
        before = None if over else settings_in(folder)
        return None if before is None else Lesson(before)
    if not asked.teachers:
        return None
    t = prepared.config.train
    if t.pretrained is not None or t.resume_from is not None:
        raise FlashACEError("teacher: expected a fit from scratch, got one that starts from weights; leave out --teacher, or the weights")
    frames = list(prepared.train)
    settings: SampleConfig = sample_config({**asked.options, "teacher": asked.teachers[0], "seed": t.seed})
    structures = [frame.atoms for frame in frames]
    with nothing_written():
        name, errors = best_of(asked.teachers, settings.teacher_arg, prepared.config.model.r_max, structures, frames, settings.timeout)
        return Lesson(with_number(replace(settings, teacher=name), structures, t.max_time), errors)


def teach(prepared: "Prepared", options: "FitConfig", lesson: "Lesson", folder: Path, started: float) -> dict[str, Any]:
    """The options by which the fit starts from what the teacher has taught. Exits with status 130 where Ctrl-C or SIGTERM came first.

    `options` are those of the fit as they were given, with what was left open.
    """
    from flashace.teach.before_fit import begin, taught
    from flashace.train.config import write_config

    begin(lesson, folder)  # first: with the options of the fit alone, it would go on without a teacher
    write_config(folder / "config.yaml", options)  # by which `--resume` finds what was asked for
    try:
        model = taught(prepared, lesson.settings, folder, console, started)
    except KeyboardInterrupt:
        model = None
    if model is None:
        console.print(interrupted(folder), soft_wrap=True)
        raise SystemExit(130)
    return {"pretrained": str(model)}


def interrupted(folder: Path) -> str:
    """What is said then."""
    return f"interrupted; everything is saved. To go on:\n    flashace fit --resume {shlex.quote(str(folder))}"


def spent_before(folder: Path | None) -> float:
    """Seconds that the lesson of a fit which goes on in `folder` took in earlier sessions."""
    from flashace.teach.before_fit import seconds_spent

    return seconds_spent(folder) if folder is not None and holds_lesson(folder) else 0.0


def give_certificate(prepared: "Prepared", folder: Path) -> None:
    """Where a fit learned from a teacher, its model file says so and has a certificate. Exits with status 130 where Ctrl-C comes first."""
    from flashace.potential.model_file import read_header
    from flashace.teach.after_fit import certificate_of_fit, seconds_for
    from flashace.teach.before_fit import seeds_of, settings_in
    from flashace.teach.certificate import certificate_table, certify
    from flashace.teach.guarded import Guarded
    from flashace.teach.teachers import Teacher

    settings = settings_in(folder) if holds_lesson(folder) else None
    if settings is None or read_header(folder / "model.pt")["provenance"].get("certificate") is not None:
        return
    named, began = Teacher(settings.teacher, settings.teacher_arg), time.monotonic()
    seconds = seconds_for(prepared.config.train.max_time)
    console.print(f"certificate: some {seconds / 60:.2g} minutes at most, which do not count as --max-time", soft_wrap=True)
    try:
        with Guarded(named, settings.timeout) as calculator:
            found = certificate_of_fit(
                folder,
                calculator,
                seeds_of(prepared),
                seconds,
                named.source,
                named.licence,
                say=lambda text: console.print(f"certificate: {text}", soft_wrap=True),
            )
        certify(folder / "model.pt", found)
    except KeyboardInterrupt:
        console.print(f"model.pt is whole, and has no certificate yet\n{interrupted(folder)}", soft_wrap=True)
        raise SystemExit(130) from None
    console.print(certificate_table(found))
    console.print(f"certificate: it took {time.monotonic() - began:.0f} s", soft_wrap=True)


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
    names: Sequence[str],
    arguments: Sequence[str],
    r_max: float,
    structures: "Sequence[Atoms]",
    frames: "Sequence[Labelled]",
    timeout: float,
) -> "tuple[str, TeacherErrors | None]":
    """The name of the teacher whose errors on the labelled `frames` are least, and of the only one; with these errors. Prints them, and its
    floor.

    One that cannot be made, or can do none of the structures, is put aside. Raises FlashACEError where that leaves none.
    """
    from flashace.teach.floor import floor_of, floor_table
    from flashace.teach.guarded import Guarded
    from flashace.teach.teacher_errors import Comparison
    from flashace.teach.teachers import teacher

    if len(names) > 1 and arguments:
        raise FlashACEError(
            f"teacher_arg: expected one teacher to give {', '.join(arguments)} to, got {', '.join(names)}; leave one of both out"
        )
    teachers = {name: teacher(name, arguments) for name in names}
    aside: dict[str, str] = {}
    with ExitStack() as processes:
        calculators = {name: processes.enter_context(Guarded(found, timeout)) for name, found in teachers.items()}
        _start(calculators, aside)
        errors = _errors_on(frames, calculators, aside) if frames and calculators else {}
        while calculators:
            best = Comparison(errors).best if errors else next(iter(calculators))
            try:
                floor = floor_of(calculators[best], structures, r_max)
            except FlashACEError as error:
                _put_aside(best, str(error), calculators, aside)
                errors.pop(best, None)
                continue
            console.print(floor_table(floor, best))
            for sentence in floor.in_words():
                console.print(sentence, soft_wrap=True)
            return best, errors.get(best)
    raise FlashACEError("; ".join(f"{name}: {why}" for name, why in aside.items()))


def _start(calculators: "dict[str, Guarded]", aside: dict[str, str]) -> None:
    for name, calculator in list(calculators.items()):
        try:
            calculator.start()
        except (FlashACEError, CalculationFailed) as error:
            _put_aside(name, str(error), calculators, aside)


def _errors_on(frames: "Sequence[Labelled]", calculators: "dict[str, Guarded]", aside: dict[str, str]) -> "dict[str, TeacherErrors]":
    """Those of each teacher, which are shown; one that can do no frame is put aside."""
    from flashace.teach.teacher_errors import compare_teachers, teacher_table

    comparison = compare_teachers(calculators, frames)
    console.print(teacher_table(comparison.teachers))
    for name, why in comparison.put_aside.items():
        _put_aside(name, why, calculators, aside)
    for name, errors in comparison.teachers.items():
        if errors.failed:
            console.print(f"{name} failed on {len(errors.failed)} frames, such as {errors.failed[0]}", soft_wrap=True)
    return dict(comparison.teachers)


def _put_aside(name: str, why: str, calculators: "dict[str, Guarded]", aside: dict[str, str]) -> None:
    calculators.pop(name)
    aside[name] = why
    console.print(f"{name} is put aside: {why}", soft_wrap=True)
