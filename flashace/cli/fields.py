"""The dataclasses of options in, flags of a command out: an option, its default and its meaning are typed in one place, its field."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from importlib import import_module
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import click

LABEL_KEYS = ("energy_key", "forces_key", "stress_key")
SHORT = {"output": "-o", "num": "-n"}
OF_A_TEACHER = "flashace.teach.config:SampleConfig"
OF_A_FIT = "flashace.train.config:TrainConfig", "flashace.potential.config:ModelConfig"


class WithFields(click.Command):
    """A command with a flag, without a default of its own, for each field of the dataclasses `kinds` (module:Class), or for those named.

    They are made when somebody asks for them: the dataclasses take a tenth of a second to import, which `flashace --help` can spare.
    """

    def __init__(self, *args: Any, fields: Sequence[str] | None = None, kinds: Sequence[str] = OF_A_FIT, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields, self.kinds = fields, kinds

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = len(self.params)
        params = super().get_params(ctx)
        return [*params[:own], *self._flags, *params[own:]]

    @cached_property
    def _flags(self) -> list[click.Option]:
        kinds = [getattr(import_module(module), name) for module, name in (kind.split(":") for kind in self.kinds)]
        arguments = {param.name for param in self.params}  # `data` of a fit
        known: dict[str, Any] = {}  # a name that two of them have is that of the first
        for f in (f for kind in kinds for f in fields(kind) if f.name not in arguments):
            known.setdefault(f.name, f)
        made = (_flag(name, known[name].type, known[name].default) for name in self.fields or known)
        return [flag for flag in made if flag is not None]


def _flag(name: str, kind: Any, field: Any) -> click.Option | None:
    """None for what a command line has no form for: a mapping."""
    kinds = [part for part in _parts(kind) if get_origin(part) is not dict]
    flag = f"--{name.replace('_', '-')}"
    if not kinds:
        return None
    text = f"{field.description[0].upper()}{field.description[1:]}.{_default(field.get_default(call_default_factory=True))}"
    if kinds == [bool]:
        return click.Option([f"{flag}/--no-{name.replace('_', '-')}"], default=None, help=text)
    names = [flag, *([SHORT[name]] if name in SHORT else [])]
    if get_origin(kinds[0]) is tuple:
        return click.Option(names, multiple=True, help=text)
    if kinds in ([int], [float], [str]):
        return click.Option(names, type=kinds[0], help=text)
    words = [word for part in kinds for word in (("true", "false") if part is bool else get_args(part))]
    return click.Option(names, type=str, metavar=f"[{'|'.join(words)}]", help=text)


def _parts(kind: Any) -> Iterator[Any]:
    """`float | dict[…] | None` -> float, dict[…]."""
    if get_origin(kind) is Annotated:
        yield from _parts(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for part in get_args(kind):
            yield from _parts(part)
    elif kind is not type(None):
        yield kind


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    return f"  [default: {str(value).lower() if isinstance(value, bool) else value}]"
