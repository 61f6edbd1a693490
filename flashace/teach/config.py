"""Options of what a teacher does; every option, its default and its meaning stand in a dataclass."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from flashace.errors import FlashACEError
from flashace.files import whole_file

PLACE = "teacher"  # folder in a run folder, of what a teacher has taught before the fit
USUAL = 2000  # frames of a teacher, where neither their number nor a time is given
Config = TypeVar("Config", bound="SampleConfig")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SampleConfig:
    """Which teacher, and what it labels."""

    teacher: str = Field("", description="emt, tblite, chgnet, sevennet, flashace:MODEL, or module:Class of any ASE calculator")
    teacher_arg: tuple[str, ...] = Field((), description="name=value: an argument of the teacher; as often as needed")
    num: int | None = Field(
        None, ge=1, description="frames to make, isolated atoms not counted; 2000 where not given, or what a fifth of max_time allows"
    )
    output: str | None = Field(None, description="file for the frames, .extxyz or .xyz")
    temperatures: tuple[float, ...] = Field((), description="of the dynamics, in K, as often as needed; from the seeds where not given")
    max_force: float = Field(40.0, gt=0, description="eV/Å; frames with a larger force on an atom are put aside, dynamics ends there")
    max_atoms: int = Field(64, ge=1, description="crystals are repeated up to so many atoms")
    seed: int = Field(0, ge=0, description="seed of everything that is random")
    workers: int = Field(1, ge=1, description="processes that label")
    timeout: float = Field(600.0, gt=0, description="seconds that a teacher may take for one task; then it is put aside")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class DistillConfig(SampleConfig):
    """And how a student follows the teacher by itself."""

    output: str | None = Field(None, description="run folder; runs/<name of the seeds>, numbered from the second on, where not given")
    error: float = Field(50.0, gt=0, description="meV/Å: asked of the forces in the student's own dynamics, against the teacher")
    rounds: int = Field(3, ge=0, description="times, at most, that the student learns from its own dynamics")
    round_frames: int = Field(200, ge=8, description="frames of that dynamics in a round; a quarter of them is held out")
    max_time: float | None = Field(None, gt=0, description="minutes of sampling, fits and rounds; the certificate comes after them")
    bound: tuple[str, ...] = Field((), description="name=number, asked of a row of the certificate, such as laws=0; as often as needed")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class LearnConfig(SampleConfig):
    """And how a model learns from what it meets by itself."""

    num: int | None = Field(None, ge=1, description="labels to buy in a round, at most; 10 where not given")
    output: str | None = Field(None, description="run folder; runs/<name of the seeds>, numbered from the second on, where not given")
    temperatures: tuple[float, ...] = Field((), description="of the dynamics, in K, as often as needed")
    pressures: tuple[float, ...] = Field(
        (), description="of the dynamics of crystals and liquids, in GPa, as often as needed; their cells stay as they are where not given"
    )
    time: float = Field(2.0, gt=0, description="ps: length of each trajectory, one for each seed, temperature and pressure")
    stop: float | None = Field(
        None,
        gt=0,
        description="eV: a trajectory stops where an atom's energy is more uncertain; three times that of calibration by default",
    )
    rounds: int = Field(10, ge=0, description="times, at most, that labels are bought after those of the seeds")


def sample_config(options: Mapping[str, Any], kind: type[Config] = SampleConfig) -> Config:  # type: ignore[assignment]
    """Of those `options` that are given. Raises FlashACEError for unknown names and values of the wrong kind."""
    named = {name: value for name, value in options.items() if value is not None and value != ()}
    try:
        config = kind(**named)
    except ValidationError as error:
        wrong = (f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise FlashACEError("; ".join(wrong)) from error
    if any(temperature <= 0 for temperature in config.temperatures):
        raise FlashACEError(f"`temperatures`: expected numbers above 0, in K, got {config.temperatures}; correct them")
    return config


def write_options(path: Path, config: SampleConfig) -> None:
    """YAML that `read_options` reads back, but for the place of the output."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items() if name != "output"}
    with whole_file(path) as aside:
        aside.write_text(yaml.safe_dump({name: value for name, value in plain.items() if value is not None}, sort_keys=False), "utf-8")


def read_options(path: Path, kind: type[Config]) -> Config:
    """Raises FlashACEError for a file that is not what `write_options` writes."""
    try:
        options = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FlashACEError(f"{path}: expected YAML, got {error}; give the options again with a new run folder") from error
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise FlashACEError(f"{path}: expected `name: value` lines, got {str(options)[:80]}; give the options again with a new run folder")
    return sample_config(options, kind)
