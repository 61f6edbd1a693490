"""A prepared fit in; the model that it is to start from, which a teacher has taught on the training frames, out."""

import time
from pathlib import Path

import numpy as np
from rich.console import Console

from flashace.calculator import choose_dtype
from flashace.potential.model_file import load_model, read_header, save_model
from flashace.teach.config import PLACE, SampleConfig, read_options, write_options
from flashace.teach.sample import sample
from flashace.teach.student import learn
from flashace.teach.teachers import teacher
from flashace.train.prepare import Prepared

MOST_SEEDS = 1000  # evenly drawn of the training frames
SHARE = 0.75  # of what is left of `max_time` once the teacher has labelled; the rest is for the labels of the user


def taught(prepared: Prepared, settings: SampleConfig, folder: Path, console: Console, started: float) -> Path | None:
    """Frames around the training frames (never those of validation), labelled by the teacher, and a model fitted to them.

    All of it stays in `folder`/teacher, and what is there is not made twice. `started` is when the fit was, by time.monotonic. None where
    Ctrl-C or SIGTERM came first, with everything saved.
    """
    place = folder / PLACE
    place.mkdir(parents=True, exist_ok=True)
    write_options(place / "config.yaml", settings)
    frames = place / "frames.extxyz"
    if not frames.exists():
        drawn = sorted(set(np.linspace(0, len(prepared.train) - 1, MOST_SEEDS).astype(int).tolist()))
        sample([prepared.train[i].atoms for i in drawn], settings, frames, console)
    limit = prepared.config.train.max_time
    minutes = None if limit is None else max(SHARE * (limit - (time.monotonic() - started) / 60), 0.1)
    return learn([frames], prepared.config, place / "student", console, minutes)


def settings_in(folder: Path) -> SampleConfig | None:
    """With which a teacher was asked in this run folder; None where none was. Raises FlashACEError for a damaged file."""
    path = folder / PLACE / "config.yaml"
    return read_options(path, SampleConfig) if path.exists() else None


def sign(model: Path, settings: SampleConfig) -> None:
    """Write into the model file who taught it, and the licence of that."""
    named = teacher(settings.teacher, settings.teacher_arg)
    header = read_header(model)
    network = load_model(model, choose_dtype(header["dtype"]))
    save_model(model, network, header["provenance"] | {"teacher": {"name": named.source, "licence": named.licence}})
