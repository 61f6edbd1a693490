"""The two dataclasses of options in, the tables of docs/options.md out: `python -m flashace.train.options > docs/options.md`."""

from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from flashace.potential.model import ModelConfig
from flashace.train.config import TrainConfig

HEADER = """\
# Options of a fit

One flat list in a YAML file (`flashace fit -c FILE`). Each of them is a flag of `flashace fit` too, with `-` for `_`: `--num-layers 3`,
`--no-zbl`; a flag wins over the file. `data` is the argument DATA, and mappings ({symbol: number}) stand in the file alone.
This page is generated: `python -m flashace.train.options > docs/options.md`.
"""


def option_tables() -> str:
    """Markdown: every option with its default, what it may be, and its meaning."""
    parts = [HEADER]
    for title, kind in (("Fit", TrainConfig), ("Model", ModelConfig)):
        parts.append(f"\n## {title}\n\n| option | default | values | meaning |\n|---|---|---|---|\n")
        parts += [_row(f.name, f.type, f.default) for f in fields(kind)]
    return "".join(parts)


def _row(name: str, kind: Any, field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    text = "" if default is None or default == () else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    bounds = "".join(f", {_bound(m)}" for m in field.metadata if _bound(m))
    return f"| `{name}` | {text} | {_values(kind)}{bounds} | {field.description} |\n"


def _values(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is Annotated:
        return _values(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_values(part) for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is dict:
        key, value = map(_values, get_args(kind))
        return f"{{{key}: {value}}}"
    if get_origin(kind) is tuple:
        return f"list of {_values(get_args(kind)[0])}s"
    return {bool: "true, false", int: "whole number", float: "number", str: "text"}[kind]


def _bound(limit: Any) -> str:
    """`≥ 1` of a limit of pydantic."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return ", ".join(f"{sign} {getattr(limit, name):g}" for name, sign in signs.items() if hasattr(limit, name))


if __name__ == "__main__":
    print(option_tables(), end="")
