"""The whole state of a fit in, one file out, and back. A file appears whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from flashace.errors import FlashACEError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and text; the file of the same name is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. Raises FlashACEError where there is none, or it cannot be read."""
    if not path.is_file():
        raise FlashACEError(f"--resume: expected a checkpoint at {path}, found none; name the run folder of an interrupted fit")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises what its parser happens to raise
        raise FlashACEError(f"{path}: this checkpoint cannot be read ({error})") from error
