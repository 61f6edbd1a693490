"""A compiler's command in; a shared library, compiled on this machine once and kept in the user's cache, out."""

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from types import MappingProxyType

from flashace.errors import FlashACEError
from flashace.files import whole_file

COMPILERS = {"C": ("CC", "cc", "gcc", "clang"), "C++": ("CXX", "c++", "g++", "clang++")}  # a variable of the environment, then names

NONE: Mapping[str, str] = MappingProxyType({})


def find_compiler(language: str) -> str:
    """Path of a compiler of C or C++. Raises FlashACEError where there is none."""
    variable, *names = COMPILERS[language]
    found = next((path for name in (os.environ.get(variable), *names) if name and (path := shutil.which(name))), None)
    if found is None:
        one_of = f"{variable}, {', '.join(names[:-1])} or {names[-1]}"
        raise FlashACEError(f"expected a {language} compiler ({one_of}), found none; install one")
    return found


def cached_library(
    command: Sequence[str], sources: Sequence[Path], name: str, made_of: Sequence[str] = (), headers: Mapping[str, str] = NONE
) -> Path:
    """The library that the command makes of the first source, compiled unless it is there already.

    `name` has a place for a key of all that went into it: the command, the texts of the sources and of the headers, the compiler's version
    and `made_of`.
    Raises FlashACEError where there is nothing to compile with, or nowhere to keep it.
    """
    try:
        texts = [*(source.read_text() for source in sources), *headers.values()]
        parts = [*command, *texts, *made_of, _version(command[0])]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
        library = _cache() / name.format(key)
        if not library.is_file():
            library.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(library) as fresh:  # others may be looking for the same file
                compile_library([*command, str(sources[0]), "-lm"], fresh, headers)
        return library
    except OSError as error:
        raise FlashACEError(
            f"expected a compiler and a folder to write to and to run from, got {command[0]} and {_cache()}: {error}; "
            "set CC or CXX, or XDG_CACHE_HOME, to another"
        ) from error


def compile_library(command: Sequence[str], library: Path, headers: Mapping[str, str] = NONE) -> None:
    """`headers` are made for this library alone: name → text.

    Nothing is left of a compilation that ends early, within `whole_file` by a signal too.
    Raises FlashACEError with what the compiler says.
    """
    with tempfile.TemporaryDirectory() as scratch:  # where it exists no more, an orphan of the compiler has nowhere to write to
        made = Path(scratch) / "made.so"
        for name, text in headers.items():
            (Path(scratch) / name).write_text(text)
        whole, environment = [*command, f"-I{scratch}", "-o", str(made)], {**os.environ, "TMPDIR": scratch}
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until there is somebody to end
        try:
            program = Popen(whole, stdout=DEVNULL, stderr=PIPE, text=True, env=environment, start_new_session=True)
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, heard)
                said = program.communicate()[1]
            except BaseException:  # the compiler has started others; all of them are one group
                os.killpg(program.pid, signal.SIGKILL)
                program.communicate()
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        if program.returncode:
            raise FlashACEError(f"`{' '.join(command)}` could not compile: {said[-500:].strip()}; try another compiler")
        shutil.copy(made, library)


def processor() -> str:
    """What tells one kind of processor from another: code for this one may not run on another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashace"
    except RuntimeError as error:  # a user without a home
        raise FlashACEError(f"{error} Set XDG_CACHE_HOME to a folder to write to") from error


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
