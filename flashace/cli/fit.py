"""`flashace fit`: labelled structures in, a model out."""

import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from flashace.cli.fields import OF_A_FIT, OF_A_TEACHER, WithFields
from flashace.cli.run_folder import config_of_run, default_folder, holds_lesson, refuse_existing, refuse_others, spare_inputs
from flashace.cli.teaching import Asked, asked_of, choose, give_certificate, interrupted, spent_before, teach
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from flashace.train.config import FitConfig, TrainConfig
    from flashace.train.prepare import Prepared

CONFIG_PLACES = (Path("config.yaml"), Path("training/config.yaml"))


@click.command(cls=WithFields, kinds=(*OF_A_FIT, OF_A_TEACHER))
@click.argument("data", nargs=-1)
@click.option("-c", "--config", type=click.Path(), help="YAML with any of the options; flags overrule it.")
@click.option("--overwrite", is_flag=True, help="Delete the fit that the run folder holds.")
@click.option("--dry-run", is_flag=True, help="Show the decisions and stop.")
@click.option("--resume", type=click.Path(), help="Run folder of an interrupted fit: go on where it stopped.")
@click.option("--teacher", multiple=True, help="Learn from a teacher first; of several, from the best on DATA.")
def fit(config: str | None, overwrite: bool, dry_run: bool, resume: str | None, teacher: tuple[str, ...], **flags: Any) -> None:
    """Fit a model to labelled structures (any format that ASE reads, or shards of `flashace convert`)."""
    from flashace.train.loop import fit as run_fit
    from flashace.train.ranks import joined

    started = time.monotonic()
    _keep_freed_memory()
    asked = asked_of(teacher, flags, started)
    with joined() as ranks, ExitStack() as locks:
        console.quiet = not ranks.first
        plan = None
        try:
            if asked.teachers and ranks.size > 1:
                raise FlashACEError(
                    f"teacher: expected one process, got {ranks.size}; say `flashace sample` first, then fit what it leaves"
                )
            if ranks.first:
                plan = _plan(config, overwrite, dry_run, resume, flags, asked, locks)
        finally:
            plan = ranks.from_first(plan)  # none where the first has failed, and says so itself
            if plan is None:
                ranks.leave()
        if plan is None:
            return
        prepared, folder, spent = plan
        started -= spent
        prepared = replace(prepared, device=ranks.device(prepared.device))
        ended = run_fit(prepared, folder, console, resume=resume is not None, overwrite=overwrite, started=started, ranks=ranks)
    if not ended:
        console.print(interrupted(folder), soft_wrap=True)
        raise SystemExit(130)
    if ranks.first:
        give_certificate(prepared, folder)
    console.print(f"model     {folder / 'model.pt'}\npictures  {folder / 'learning_curve.png'}, {folder / 'parity.png'}", soft_wrap=True)


def _plan(
    config: str | None, overwrite: bool, dry_run: bool, resume: str | None, flags: dict[str, Any], asked: Asked, locks: ExitStack
) -> "tuple[Prepared, Path, float] | None":
    """What is fitted, the run folder, locked, and what a lesson took of its time in earlier sessions, in s; shows the decisions. None for a
    dry run."""
    from flashace.evaluate import report
    from flashace.teach.config import PLACE
    from flashace.train.config import write_config
    from flashace.train.lock import locked
    from flashace.train.prepare import prepare

    if resume is not None:
        config = config_of_run(resume, config, flags)
        locks.enter_context(locked(Path(resume), tell=console.print))  # before its checkpoint is read
    folder = None if resume is None else Path(resume)
    path, options = _configuration(config, flags, resume)
    prepared = prepare(options, folder, _say)
    console.print(report.label_table(prepared.labels))
    decisions = Table(show_header=False, title="Decisions", title_justify="left")
    for row in prepared.decisions():
        decisions.add_row(*row)
    console.print(decisions)
    if folder is None:
        _stop_on_wrong_labels(prepared)
    lesson, spent = choose(prepared, asked, folder), spent_before(folder)
    if dry_run:
        return None
    output = prepared.config.train.output
    if folder is None:
        folder = default_folder(prepared.config.train.data[0], overwrite, locks) if output is None else Path(output)
        locks.enter_context(locked(folder, tell=console.print))
        refuse_others(folder, lesson is not None)
        if not overwrite:
            refuse_existing(folder)
        spare_inputs(folder, prepared.config.train, path)
        if holds_lesson(folder):
            shutil.rmtree(folder / PLACE)  # the lesson of another fit: what it held out, this one may learn
            for left in [folder / "certificate.json", *folder.glob("certificate_*.png")]:
                left.unlink(missing_ok=True)
    if lesson is not None:
        start = teach(prepared, options, lesson, folder, asked.started - spent)
        prepared = prepare(_configuration(config, flags | start, resume)[1], None if resume is None else folder, _say)
        write_config(folder / "config.yaml", prepared.config)  # which a fit that goes on leaves as it is
    return prepared, folder, spent


def _say(message: str) -> None:
    console.print(message, soft_wrap=True)


def _configuration(path: str | None, flags: dict[str, Any], resume: str | None) -> "tuple[str | None, FitConfig]":
    """From -c, from data on the command line alone, or from the first config file in the usual places; and which file that was."""
    from flashace.train.config import load_config

    if path is None and not flags["data"]:
        found = [place for place in CONFIG_PLACES if place.is_file()]
        if not found:
            raise FlashACEError(f"expected DATA or --config, or one of {', '.join(map(str, CONFIG_PLACES))} here; got none of them")
        path = str(found[0])
        console.print(f"options from {path}")
    options = load_config(path, flags)
    if path is not None:
        _check_paths(path, options.train, [name for name, value in flags.items() if value not in (None, ())], resume)
    return path, options


def _check_paths(config: str, options: "TrainConfig", flags: Sequence[str], resume: str | None) -> None:
    """Raises FlashACEError for what the file of options names and is not there: the path alone would not say who named it."""
    named: dict[str, tuple[str | None, ...]] = {"data": options.data, "valid": options.valid, "replay": options.replay}
    if resume is None:  # the checkpoint has what these give
        named |= {"isolated_atoms": (options.isolated_atoms,), "resume_from": (options.resume_from,), "pretrained": (options.pretrained,)}
    for option, paths in named.items():
        for path in paths:
            if path is not None and option not in flags and not os.path.exists(path) and "@" not in path:
                raise FlashACEError(
                    f"{config}: `{option}` names {path}, which is not there, seen from {Path.cwd()}; "
                    "correct it in this file, or run from the folder where its paths hold"
                )


def _stop_on_wrong_labels(prepared: "Prepared") -> None:
    """Prints what is surely wrong with the frames of a fit, and raises FlashACEError where `check` says stop."""
    from flashace.check.finding import finding_table, mends

    wrong = [] if prepared.looked is None else list(prepared.looked.wrong)
    if not wrong:
        return
    console.print(finding_table(wrong))
    console.print(mends(wrong), soft_wrap=True)
    if prepared.config.train.check == "stop":
        names = ", ".join(finding.what for finding in wrong)
        raise FlashACEError(
            f"labels: surely wrong are {names}; mend them as printed above, or say --check leave_out to fit without these labels, "
            "or --check warn to fit all the same"
        )


def _keep_freed_memory() -> None:
    """Ask glibc not to give memory back after every tensor: on one CPU core a training step took 0.8 of its time so."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in {-3: 2**30, -1: 2**31 - 1, -2: 2**26}.items():  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(parameter, value)
