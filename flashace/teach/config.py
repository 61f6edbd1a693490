"""Options of what a teacher does; every option, its default and its meaning stand in a dataclass."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from flashace.errors import FlashACEError


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SampleConfig:
    """Which teacher, and what it labels."""

    teacher: str = Field("", description="emt, tblite, chgnet, sevennet, flashace:MODEL, or module:Class of any ASE calculator")
    teacher_arg: tuple[str, ...] = Field((), description="name=value: an argument of the teacher; as often as needed")
    num: int = Field(2000, ge=1, description="frames to make, those of isolated atoms not counted")
    output: str | None = Field(None, description="file for the frames, .extxyz or .xyz")
    temperatures: tuple[float, ...] = Field((), description="of the dynamics, in K, as often as needed; from the seeds where not given")
    max_force: float = Field(40.0, gt=0, description="eV/Å; frames with a larger force on an atom are put aside, dynamics ends there")
    max_atoms: int = Field(64, ge=1, description="crystals are repeated up to so many atoms")
    seed: int = Field(0, ge=0, description="seed of everything that is random")
    workers: int = Field(1, ge=1, description="processes that label")
    timeout: float = Field(600.0, gt=0, description="seconds that a teacher may take for one task; then it is put aside")


def sample_config(options: Mapping[str, Any]) -> SampleConfig:
    """Of those `options` that are given. Raises FlashACEError for values of the wrong kind."""
    named = {name: value for name, value in options.items() if value is not None and value != ()}
    try:
        config = SampleConfig(**named)
    except ValidationError as error:
        wrong = (f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise FlashACEError("; ".join(wrong)) from error
    if any(temperature <= 0 for temperature in config.temperatures):
        raise FlashACEError(f"`temperatures`: expected numbers above 0, in K, got {config.temperatures}; correct them")
    return config
