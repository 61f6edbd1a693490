""" "module:Class" and its arguments in; what makes calculators for `verify`, out."""

import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from ase.calculators.calculator import Calculator

from flashace.errors import FlashACEError
from flashace.verify.state import FAILURES


def calculator_factory(
    name: str, model: str, device: str | None = None, arguments: Sequence[str] = ()
) -> tuple[Callable[[str], Calculator], bool]:
    """`make_calculator` for `verify` from "module:Class", and whether the class lets one choose its precision.

    The class (or function) is called with `model` unless that is "-"; by keyword with each of `arguments` ("name=value", the value as
    JSON or else as text), with `device` if given, and with `dtype` or `default_dtype` if it has one that `arguments` leave open.
    Raises FlashACEError for a name that cannot be imported, for arguments of another form, and where the call fails.
    """
    module, _, attribute = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), attribute)
        accepted = inspect.signature(build).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FlashACEError(
            f"calculator: expected module:Class, such as mace.calculators:MACECalculator, got {name!r} ({error}); "
            "install its package, or put the folder of your file on PYTHONPATH"
        ) from error
    given = _keywords(arguments) | ({} if device is None else {"device": device})
    dtype = next((word for word in ("dtype", "default_dtype") if word in accepted and word not in given), None)

    def make(precision: str) -> Calculator:
        keywords = given | ({dtype: precision} if dtype else {})
        try:
            return build(*([] if model == "-" else [model]), **keywords)
        except FlashACEError:
            raise
        except FAILURES as error:
            raise FlashACEError(
                f"calculator: expected arguments that {name} takes, got MODEL={model} and {keywords} ({type(error).__name__}: {error}); "
                "give others with --arg name=value, and MODEL as - where it takes none"
            ) from error

    return make, dtype is not None


def _keywords(arguments: Sequence[str]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for argument in arguments:
        word, equals, value = argument.partition("=")
        if not equals or not word.isidentifier():
            raise FlashACEError(f"arg: expected name=value, such as enable_cueq=true, got {argument!r}")
        try:
            keywords[word] = json.loads(value)
        except ValueError:
            keywords[word] = value
    return keywords
