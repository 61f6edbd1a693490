"""The command line: what a user types in, what the rest of the house does out. A file for each command; the only folder with click.

What needs PyTorch, which takes seconds to import, is imported by the command that needs it: help is there at once.
"""

import io
import sys
from importlib import import_module
from typing import Any

import click
from ase.calculators.calculator import CalculationFailed

from flashace.cli.terminal import PLAINER
from flashace.errors import FlashACEError

COMMANDS = [
    "calibrate",
    "check",
    "convert",
    "distill",
    "evaluate",
    "export",
    "fit",
    "info",
    "label",
    "learn",
    "sample",
    "select",
    "serve",
    "verify",
]  # of the files with these names


class _Group(click.Group):
    """The commands, each from its file. Our own errors are one line for the user, not a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return COMMANDS

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return getattr(import_module(f"flashace.cli.{name}"), name) if name in COMMANDS else None

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=PLAINER)
        try:
            return super().invoke(ctx)
        except (FlashACEError, CalculationFailed, OSError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=_Group)
@click.version_option(package_name="flashace")
def main() -> None:
    """Attention on the Atomic Cluster Expansion: fit, check and use interatomic potentials."""
