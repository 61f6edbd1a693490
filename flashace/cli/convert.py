"""`flashace convert`: files of structures in, shards out."""

from typing import Any

import click

from flashace.cli.fields import LABEL_KEYS, WithFields
from flashace.cli.shared import label_keys
from flashace.cli.terminal import console


@click.command(cls=WithFields, fields=LABEL_KEYS)
@click.argument("data", nargs=-1, required=True)
@click.argument("shards", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Delete the shards that the folder holds.")
def convert(data: tuple[str, ...], shards: str, overwrite: bool, **keys: Any) -> None:
    """Write DATA as a folder SHARDS of memory-mapped arrays: `flashace fit SHARDS` then needs no more memory for more data."""
    from flashace.data.shards import convert as convert_files
    from flashace.evaluate import report
    from flashace.train.log import progress_bar

    with progress_bar(console) as bar:
        task = bar.add_task("")

        def show(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        converted = convert_files(data, shards, label_keys(keys), overwrite, show)
    console.print(report.label_table(converted.summary()))
    console.print(f"shards  {shards}: {len(converted)} frames, {converted.manifest['atoms']} atoms", soft_wrap=True)
