"""Names of files and folders in; their structures out, one by one, each with the place where it stands."""

import os
import stat
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db import connect
from ase.io import iread
from ase.io.bundletrajectory import BundleTrajectory
from ase.io.formats import filetype

from flashace.data.extxyz import read_extxyz
from flashace.data.origin import Origin
from flashace.errors import FlashACEError

# the first of these in a folder counts
VASP = tuple(f"{name}{packed}" for name in ("vasprun.xml", "OUTCAR") for packed in ("", ".gz", ".bz2", ".xz"))
LMDB = (".aselmdb", ".lmdb")
SINGLE = (".extxyz", ".xyz", ".traj", ".db")  # not looked for in folders


def structures(paths: Iterable[str | Path]) -> Iterator[tuple[Atoms, Origin]]:
    """Every structure of every file, as ASE reads it, and where it stands; nothing is kept in memory.

    A file may be of any format that ASE reads. Of a folder, these are read at any depth, in the order of their names: one `vasprun.xml` or
    else `OUTCAR` of each folder (also `.gz`, `.bz2`, `.xz`), with all ionic steps, and all files `*.aselmdb` and `*.lmdb`.

    Raises FlashACEError for what is not there, cannot be read or has nothing to read in it.
    """
    for path in paths:
        for file in files_of(Path(path)):
            for i, atoms in enumerate(_read(file)):
                yield atoms, Origin(str(file), i)


def files_of(path: Path) -> list[Path]:
    """The file itself, or those of a folder that `structures` reads; raises as that does."""
    _check_path(path)
    if not path.is_dir() or BundleTrajectory.is_bundle(str(path)):
        return [path]
    found: list[Path] = []
    others: list[Path] = []
    for folder, below, names in os.walk(path):
        below.sort()
        calculation = next(([name] for name in VASP if name in names), [])
        found += [Path(folder) / name for name in (*calculation, *sorted(name for name in names if name.endswith(LMDB)))]
        others += [Path(folder) / name for name in sorted(names) if name.endswith(SINGLE)]
    if not found:
        listed = f"{', '.join(map(str, others[:3]))}{', …' if len(others) > 3 else ''}"
        mend = (
            f"{listed}: these are read when they are named one by one" if others else "name the files themselves, or the folder above them"
        )
        raise FlashACEError(f"{path}: expected a folder with vasprun.xml, OUTCAR, *.aselmdb or *.lmdb somewhere in it, found none; {mend}")
    for file in found:
        _check_path(file)
    return found


def _check_path(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise FlashACEError(f"{shown}: expected a name in UTF-8, got other bytes in it; rename the file") from error
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        name, at, _ = str(path).rpartition("@")
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = "found no such file" if absent else f"got {getattr(error, 'strerror', None) or error}"
        mend = "check the path"
        if at and Path(name).exists():
            mend = f"all frames are read; for some of them: `ase convert {path} part.extxyz`, then name part.extxyz"
        raise FlashACEError(f"{path}: expected a file of structures, {why}; {mend}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FlashACEError(f"{path}: expected a file of structures, got a pipe or a device; write it to a file first")


def _read(path: Path) -> Iterator[Atoms]:
    try:
        if path.name.endswith(LMDB):
            rows = connect(path, type="aselmdb", readonly=True, use_lock_file=False).select()
            yield from map(_atoms_of, rows)
        elif (form := filetype(str(path))) in ("db", "json"):  # ase.io.iread drops a row's own keys, config_type among them
            yield from map(_atoms_of, connect(path, type=form, use_lock_file=False).select())
        elif form == "extxyz":
            yield from read_extxyz(path)
        else:
            if form == "traj":
                _check_one_trajectory(path)
            yield from iread(str(path), index=":", do_not_split_by_at_sign=True)
    except FlashACEError:
        raise
    except Exception as error:  # each of ASE's readers raises what its parser happens to raise
        lacking = path.name.endswith(LMDB) and isinstance(error, ModuleNotFoundError)
        mend = "`pip install 'flashace[lmdb]'`" if lacking else "check that it is complete, or convert it to .extxyz"
        raise FlashACEError(f"{path}: expected a file that ase.io.read can read, got {type(error).__name__}: {error}; {mend}") from error


def _check_one_trajectory(path: Path) -> None:
    """Raises FlashACEError where `cat` has put several trajectories into one file: ASE would read the first, without a word."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        joined = content.find(b"- of UlmASE-Trajectory", 1) > 0
    if joined:
        raise FlashACEError(
            f"{path}: expected one trajectory, got several joined in one file, of which only the first would be read; "
            "join them with `ase convert a.traj b.traj both.traj`"
        )


def _atoms_of(row: Any) -> Atoms:
    atoms = row.toatoms()
    atoms.info.update(row.key_value_pairs)
    atoms.info.update(row.data)
    return atoms
