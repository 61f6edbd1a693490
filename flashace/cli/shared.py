"""What several commands need: files that they read and write, frames, labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from flashace.data.frames import LabelKeys, Labelled
    from flashace.structure.graph import Graph

device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
dtype_option = click.option("--dtype", default="float32", show_default=True, help="float32 or float64.")


def check_output(option: str, output: str | None, *inputs: str) -> None:
    """Raises FlashACEError for a file that is to be written and is one of those that the command reads, or has no place.

    Before the work, since it would be lost.
    """
    if output is None:
        return
    target = Path(output)
    for path in inputs:
        if any(same_file(target, file) for file in files_read(Path(path))):
            raise FlashACEError(f"{option} {output}: expected another file than those that are read, which this would overwrite")
    if target.is_dir():
        raise FlashACEError(f"{option} {output}: expected a file to write, got a folder; name a file in it")
    if not target.parent.is_dir():
        raise FlashACEError(f"{option} {output}: expected a folder {target.parent} to write to, found none; make it")


def files_read(path: Path) -> list[Path]:
    """The files that are there and that a command reads when it is given `path`."""
    from flashace.data.files import files_of
    from flashace.data.shards import is_shards

    if is_shards(path):
        return [*path.iterdir()]
    try:
        return files_of(path)
    except FlashACEError:  # the reader says it, and knows what it was to be
        return []


def same_file(one: Path, other: Path) -> bool:
    """Whether both are there and one file, whatever their names."""
    return one.exists() and other.exists() and one.samefile(other)


def write_json(path: str, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    Path(path).write_text(text, "utf-8", errors="backslashreplace")  # of half a pair of surrogates, just what JSON has


def graphs_of(frames: "Sequence[Labelled]", r_max: float) -> "Sequence[Graph]":
    """Once for frames in memory, and at each access for those of shards."""
    from flashace.data.graphs import build_graphs, fresh_graphs

    return build_graphs(frames, r_max) if isinstance(frames, list) else fresh_graphs(frames, r_max)


def label_keys(keys: dict[str, Any]) -> "LabelKeys":
    from flashace.data.frames import LabelKeys

    return LabelKeys(**{name.removesuffix("_key"): key for name, key in keys.items()})
