"""Where a fit writes: a folder that is free, spares what the fit reads, or holds the run that goes on."""

import itertools
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashace.cli.shared import files_read, same_file
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from flashace.train.config import TrainConfig

LENGTHS = ("epochs", "max_time")
OF_DISTILL = "distill.yaml"  # the options of a `flashace distill`
OF_LEARN = "learn.yaml"  # and of a `flashace learn`


def default_folder(data: str, overwrite: bool, locks: ExitStack) -> Path:
    """runs/<name>, or the first of runs/<name>-2, -3, … that is free; made, and locked, before another fit can take the same."""
    from flashace.train.lock import locked

    first = Path("runs") / Path(data).stem
    if overwrite:
        return first
    for folder in itertools.chain([first], (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))):
        try:
            locks.enter_context(locked(folder, new=True, tell=console.print))
        except FileExistsError:
            continue
        break
    return folder


def holds_lesson(folder: Path) -> bool:
    """Whether a fit has left there what a teacher taught it; a user's folder may have the same name."""
    from flashace.teach.config import PLACE

    if not (folder / PLACE / "config.yaml").exists():
        return False
    from flashace.teach.before_fit import settings_in

    try:
        return settings_in(folder) is not None
    except FlashACEError:
        return False


def refuse_others(folder: Path, teacher: bool) -> None:
    """Raises FlashACEError where `flashace distill` or `learn` has the folder and, with a `teacher`, where its lesson would mix with
    files of others."""
    from flashace.teach.config import PLACE

    for name in (OF_DISTILL, OF_LEARN):
        if (folder / name).exists():
            command = f"flashace {Path(name).stem}"
            raise FlashACEError(f"{folder}: expected a run folder of a fit, this one is of `{command}`; name another with --output")
    if teacher and (folder / PLACE).exists() and not holds_lesson(folder):
        raise FlashACEError(f"{folder}: expected a run folder without {folder / PLACE}, which no fit has made; name another with --output")


def refuse_existing(folder: Path) -> None:
    from flashace.train.checkpoint import checkpoints_in
    from flashace.train.run_folder import LEFT_BY_A_FIT

    if any((folder / name).exists() for name in LEFT_BY_A_FIT) or holds_lesson(folder) or checkpoints_in(folder / "checkpoints"):
        raise FlashACEError(
            f"{folder}: this run folder holds a fit already; name another with --output, or say --overwrite, "
            f"or --resume {shlex.quote(str(folder))}"
        )


def spare_inputs(folder: Path, options: "TrainConfig", config: str | None) -> None:
    """Raises FlashACEError where the run folder would lose what the fit reads."""
    from flashace.teach.config import PLACE
    from flashace.train.run_folder import LEFT_BY_A_FIT

    read = [config, *options.data, *options.valid, *options.replay, options.isolated_atoms, options.resume_from, options.pretrained]
    for path in filter(None, read):
        if Path(path).resolve().is_relative_to((folder / PLACE).resolve()) or any(
            same_file(folder / name, file) for name in ("config.yaml", *LEFT_BY_A_FIT) for file in files_read(Path(path))
        ):
            raise FlashACEError(f"{folder}: expected a run folder in which {path}, which the fit reads, is not overwritten; name another")
    start = options.resume_from or options.pretrained
    if start is not None and same_file(folder, _run_folder(Path(start), options.checkpoint_dir)):
        raise FlashACEError(f"{folder}: expected another run folder than the one to start from, which this would overwrite; name another")


def _run_folder(start: Path, checkpoint_dir: str) -> Path:
    """Of a run folder, its checkpoints, or one of them."""
    return next((path for path in (start, *start.parents[:2]) if (path / checkpoint_dir).is_dir()), start)


def config_of_run(run: str, config: str | None, flags: dict[str, Any]) -> str:
    """The configuration file of a run that goes on. Raises FlashACEError where flags are given that do not make it longer."""
    from flashace.train.config import load_config

    given = [name for name, value in flags.items() if value not in (None, ()) and name not in LENGTHS]
    if given or config:
        raise FlashACEError(
            f"--resume {run} takes its options from that folder; leave out {', '.join(given or ['config'])} (--epochs and --max-time alone "
            "may be given, to make it longer)"
        )
    for name in (OF_DISTILL, OF_LEARN):
        if (Path(run) / name).exists():
            command = f"flashace {Path(name).stem}"
            raise FlashACEError(
                f"--resume {run}: expected the folder of a fit, this run goes on with `{command} --resume {shlex.quote(str(run))}`"
            )
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise FlashACEError(f"--resume {run}: expected the folder of a run, found no {path}; name one, or start the fit anew")
    before = load_config(path, {}).train
    for name in LENGTHS:
        old, new = getattr(before, name), flags[name]
        if new is not None and (old is None or new <= old):
            flag, has = name.replace("_", "-"), f"has {old:g}" if old else f"has none: its length is {_length_in_words(before)}"
            raise FlashACEError(f"--{flag} {new:g}: expected more than {run} had, to make that fit longer, but it {has}")
    return str(path)


def _length_in_words(train: "TrainConfig") -> str:
    return " or ".join(f"--{name.replace('_', '-')} {getattr(train, name):g}" for name in LENGTHS if getattr(train, name))
