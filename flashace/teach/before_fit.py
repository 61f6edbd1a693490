"""A prepared fit in; the model that it is to start from, which a teacher has taught on the training frames, out."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from flashace.files import whole_file
from flashace.teach.config import PLACE, SampleConfig, read_options, write_options
from flashace.teach.sample import sample
from flashace.teach.spent import seconds_in, told_in
from flashace.teach.student import learn
from flashace.teach.teacher_errors import KindErrors, TeacherErrors
from flashace.train.prepare import Prepared

MOST_SEEDS = 1000  # evenly drawn of the training frames
SHARE = 0.75  # of what is left of `max_time` once the teacher has labelled; the rest is for the labels of the user
COMPARISON = "comparison.json"  # in the folder of a lesson: `TeacherErrors.kinds` of the teacher
SPENT = "seconds"  # and how long the lesson took


@dataclass(frozen=True)
class Lesson:
    """With which a teacher is asked, and how it did on the frames of the user: None for one that goes on, whose folder has it."""

    settings: SampleConfig
    errors: TeacherErrors | None = None


def begin(lesson: Lesson, folder: Path) -> None:
    """By what is in `folder`/teacher then, a run that goes on knows of its lesson."""
    place = folder / PLACE
    place.mkdir(parents=True, exist_ok=True)
    if lesson.errors is not None:
        with whole_file(place / COMPARISON) as aside:
            aside.write_text(json.dumps([asdict(kind) for kind in lesson.errors.kinds], indent=1), "utf-8")
    write_options(place / "config.yaml", lesson.settings)  # last: where it is, a lesson is


def taught(prepared: Prepared, settings: SampleConfig, folder: Path, console: Console, started: float) -> Path | None:
    """Frames around the training frames (never those of validation), labelled by the teacher, and a model fitted to them.

    All of it stays in `folder`/teacher, which `begin` has made, and what is there is not made twice. `started` is when the fit was, by
    time.monotonic, had it never been interrupted. None where Ctrl-C or SIGTERM came first, with everything saved.
    """
    place = folder / PLACE
    frames = place / "frames.extxyz"
    with told_in(place / SPENT, started):
        if not frames.exists():
            sample(seeds_of(prepared), settings, frames, console)
        limit = prepared.config.train.max_time
        minutes = None if limit is None else max(SHARE * (limit - (time.monotonic() - started) / 60), 0.1)
        return learn([frames], prepared.config, place / "student", console, minutes)


def seeds_of(prepared: Prepared) -> list[Atoms]:
    """Training frames, evenly drawn."""
    drawn = sorted(set(np.linspace(0, len(prepared.train) - 1, MOST_SEEDS).astype(int).tolist()))
    return [prepared.train[i].atoms for i in drawn]


def settings_in(folder: Path) -> SampleConfig | None:
    """With which a teacher was asked in this run folder; None where none was. Raises FlashACEError for a damaged file."""
    path = folder / PLACE / "config.yaml"
    return read_options(path, SampleConfig) if path.exists() else None


def comparison_in(folder: Path) -> list[KindErrors]:
    """How the teacher did on the frames of the user, kind by kind; nothing where that is not told."""
    try:
        return TypeAdapter(list[KindErrors]).validate_json((folder / PLACE / COMPARISON).read_bytes())
    except (OSError, ValidationError):
        return []


def seconds_spent(folder: Path) -> float:
    """How long the lesson in this run folder took so far, in all sessions together."""
    return seconds_in(folder / PLACE / SPENT)
