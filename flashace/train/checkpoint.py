"""The whole state of a fit in, one file out, and back. A file appears whole or not at all, and the newest whole one is found."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashace.errors import FlashACEError
from flashace.model_file import describe, load_model
from flashace.uncertainty import Uncertainty

BEST = "best.pt"


@dataclass(frozen=True)
class Start:
    """What a fit starts from: the model and its averaged weights; of a checkpoint also `state`, all that `save_checkpoint` was given."""

    path: Path
    model: dict[str, Any]  # config, atomic_energies, scale, avg_num_neighbors: see `describe`
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    reference_energies: str  # where they came from
    state: dict[str, Any] | None  # None of a model file
    uncertainty: Uncertainty | None = None  # of a model file that has it


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and text; the file of the same name is replaced in one step, once the new one is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the new name has to reach the disk too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. Raises FlashACEError where there is none, or it cannot be read."""
    if not path.is_file():
        raise FlashACEError(f"expected a checkpoint at {path}, found none; name the run folder of an interrupted fit")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises what its parser happens to raise
        raise FlashACEError(f"{path}: this checkpoint cannot be read ({error})") from error


def checkpoint_name(steps: int) -> str:
    """The file of the state after so many steps; names sort by steps."""
    return f"step-{steps:09d}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """All but the best, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{9}\.pt", path.name))


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the newest ones and the best, and what an interrupted writer left."""
    for path in [*checkpoints_in(folder)[:-keep], *folder.glob("*.pt.partial")]:
        path.unlink(missing_ok=True)


def read_start(path: Path, tell: Callable[[str], Any] = lambda message: None) -> Start:
    """A checkpoint, the newest whole one of a folder of checkpoints, or a model file.

    `tell` hears of newer checkpoints that cannot be read. Raises FlashACEError where there is nothing to start from.
    """
    if path.is_dir():
        path, state = _newest(path, tell)
    elif path.is_file() and path.open("rb").read(2) == b"PK":  # torch.save writes a zip file
        state = load_checkpoint(path)
    else:
        model = load_model(path, torch.float64)
        weights: dict[str, torch.Tensor] = {**dict(model.named_parameters())}
        return Start(path, describe(model), weights, weights, "", None, model.uncertainty)
    if "weights" not in state:
        raise FlashACEError(f"{path}: expected a checkpoint of FlashACE, got a file of another program")
    return Start(path, state["model"], state["weights"], state["average"], state["reference_energies"], state)


def _newest(folder: Path, tell: Callable[[str], Any]) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that can be read."""
    paths = checkpoints_in(folder)
    for path in reversed(paths):
        try:
            return path, load_checkpoint(path)
        except FlashACEError as error:
            tell(f"{error}; trying the one before")
    raise FlashACEError(
        f"{folder}: expected a checkpoint, found {len(paths)} that cannot be read; name another folder, a checkpoint or a model.pt"
    )
