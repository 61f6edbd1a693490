"""`flashace sample`: seeds in, structures around them with the labels of a teacher out."""

from pathlib import Path
from typing import Any

import click

from flashace.cli.fields import WithFields
from flashace.cli.shared import check_output
from flashace.cli.teaching import tell_charges
from flashace.cli.terminal import console
from flashace.errors import FlashACEError


@click.command(cls=WithFields, kinds=("flashace.teach.config:SampleConfig",))
@click.argument("seeds", nargs=-1, required=True)
@click.option("--overwrite", is_flag=True, help="Make the file anew where it is there.")
@click.option("--dry-run", is_flag=True, help="Show the decisions and stop.")
def sample(seeds: tuple[str, ...], overwrite: bool, dry_run: bool, **flags: Any) -> None:
    """Explore around the structures of SEEDS and label what is found. A run that was ended goes on when it is typed again."""
    from flashace.data.files import structures
    from flashace.teach.config import USUAL, SampleConfig, sample_config
    from flashace.teach.sample import decisions, forget_failures, plan
    from flashace.teach.sample import sample as run_sample

    config: SampleConfig = sample_config(flags)
    if config.output is None and not dry_run:
        raise FlashACEError("--output: expected a file for the frames, got none; name one, such as -o sampled.extxyz")
    check_output("--output", config.output, *seeds)
    found = [atoms for atoms, _ in structures(seeds)]
    tell_charges(found)
    if dry_run:
        console.print(decisions(plan(found, config.num or USUAL, config.seed, config), found, config))
        console.print("temperatures of crystals: where none are given, the run takes the melting point that the teacher's energies tell")
        return
    output = Path(config.output or "")
    if output.suffix not in (".extxyz", ".xyz"):
        raise FlashACEError(f"--output {output}: expected a name that ends in .extxyz, since that is what is written; correct it")
    if output.exists() and not overwrite:
        raise FlashACEError(f"--output {output}: expected a new file, this one is there; name another, or say --overwrite")
    if output.exists():
        forget_failures(output)
    try:
        run_sample(found, config, output, console)
    except KeyboardInterrupt:
        console.print("interrupted; everything is saved. To go on, type the same again", soft_wrap=True)
        raise SystemExit(130) from None
    console.print(f"frames  {output}", soft_wrap=True)
