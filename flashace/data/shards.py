"""Labelled files of any size in; a folder of arrays out, and out of that the same frames, read one by one.

docs/data.md describes the folder. Positions, cells and labels keep all their digits, so that a fit is the same as on the files.
"""

import json
import os
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any, overload

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flashace.data.files import structures
from flashace.data.frames import NO_KEYS, LabelCount, LabelKeys, Labelled, Labeller, LabelSummary, content_hash, read_labelled
from flashace.data.labels import EVER, LABELS, Label
from flashace.data.lazy import take
from flashace.data.origin import Fault, Origin
from flashace.errors import FlashACEError
from flashace.files import to_disk, undone_by_signals

FORMAT = 1
MANIFEST = "manifest.json"
BLOCK = 2**22  # bytes read at once for a checksum
TOLD = 1000  # frames between two reports of progress
# type and shape of one row. NaN is a label that a frame does not have
Shapes = dict[str, tuple[str, tuple[int, ...]]]
OF_ATOMS: Shapes = {"numbers": ("|u1", ()), "positions": ("<f8", (3,))}
OF_FRAMES: Shapes = {
    "cell": ("<f8", (3, 3)),
    "pbc": ("|b1", (3,)),
    "config_type": ("<i4", ()),  # place in the manifest's list
    "origin": ("<i8", (2,)),  # place of the file in the manifest's list, and of the frame in the file
}
UNITS = {"positions": "Å", "cell": "Å", **{name: label.unit for name, label in LABELS.items()}}


class Shards(Sequence[Labelled]):
    """The frames of a folder that `convert` made, read from its arrays when asked for; nothing is kept.

    Their `atoms` have no calculator: the labels stand in `REF_energy`, `REF_forces` and so on, besides `config_type`.
    Raises FlashACEError for a folder that is not whole or of another version, when it is opened; and from then on for what is no frame,
    so also where another program cuts off a file that is open (what is mapped into memory would end the process with SIGBUS).
    """

    def __init__(self, folder: str | Path, checked: bool = False) -> None:
        """`checked`: another process has compared the checksums a moment ago."""
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self._labels = _labels_of(self.manifest)
        self._of_atoms, self._of_frames = _rows(self._labels)
        sizes = _shapes(self.manifest["frames"], self.manifest["atoms"], self._labels)
        self._arrays = {name: _Rows(self.folder / f"{name}.npy", *expected) for name, expected in sizes.items()}
        if not checked:
            for name, checksum in self.manifest.get("crc32", {}).items():
                self._arrays[name].compare(checksum)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the name of the folder, not what is in it."""
        return Shards, (self.folder.resolve(), True)

    def __len__(self) -> int:
        return int(self.manifest["frames"])

    @overload
    def __getitem__(self, index: int) -> Labelled: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Labelled]: ...
    def __getitem__(self, index: int | slice) -> Labelled | Sequence[Labelled]:
        indices = range(len(self))[index]
        if not isinstance(indices, int):
            return take(self, np.array(indices))
        i = indices
        first, end = self._arrays["offsets"].read(i, 2).tolist()
        if not 0 <= first < end <= self.manifest["atoms"]:
            raise self._broken(i, f"atoms {first} to {end} of {self.manifest['atoms']}")
        row = {name: self._arrays[name].read(first, end - first) for name in self._of_atoms}
        row |= {name: self._arrays[name].read(i, 1)[0] for name in self._of_frames}
        (file, place), kind = row["origin"].tolist(), int(row["config_type"])
        if not (0 <= kind < len(self.manifest["config_types"]) and 0 <= file < len(self.manifest["files"])):
            raise self._broken(i, f"config_type {kind} and file {file} of the manifest")
        if not (row["numbers"].min() > 0 and row["numbers"].max() < len(chemical_symbols) and np.isfinite(row["positions"]).all()):
            raise self._broken(i, f"atomic numbers {sorted(set(row['numbers'].tolist()))}, or positions that are not finite")
        if not np.isfinite(row["cell"]).all():
            raise self._broken(i, "a cell that is not finite")
        config_type = self.manifest["config_types"][kind]
        atoms = Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=row["pbc"])
        if config_type:
            atoms.info["config_type"] = config_type
        values: dict[str, Any] = {}
        for label in self._labels:
            value = _known(row[label.name])
            if value is not None:
                (atoms.arrays if label.per_atom else atoms.info)[f"REF_{label.name}"] = value
                values[label.name] = value if label.shape_in(len(atoms)) else float(value)
        return Labelled.of(atoms, values, config_type, Origin(self.manifest["files"][file], place))

    def _broken(self, i: int, got: str) -> FlashACEError:
        return FlashACEError(f"{self.folder}: frame {i}: expected atoms, got {got}: these shards are damaged; convert the files again")

    def summary(self) -> LabelSummary:
        """Where `convert` found the labels."""
        return LabelSummary(len(self), {name: LabelCount(**self.manifest["labels"].get(name, {})) for name in LABELS})

    def check(self, keys: LabelKeys, required: Iterable[str]) -> None:
        """Raises FlashACEError where the labels were not taken from these keys, or where required ones are missing."""
        for label in LABELS:
            key, used = keys[label], self.manifest["labels"].get(label, {}).get("used", {})
            known = key is None or key == self.manifest["keys"].get(label) or (used and set(used) <= {key, f"calculator {key}"})
            if not known:
                raise FlashACEError(
                    f"{self.folder}: expected {label} under the key {key!r}, but `flashace convert` took it from "
                    f"{', '.join(used) or 'nowhere'}; leave out --{label}-key, or convert the files again with it"
                )
            if label in required and not used:
                raise FlashACEError(
                    f"{self.folder}: expected {label} in at least one of {len(self)} frames, found none; convert the files again, "
                    f"naming the right key with --{label}-key"
                )


def read_data(
    paths: str | Path | Sequence[str | Path],
    keys: LabelKeys = NO_KEYS,
    required: Sequence[str] = ("energy", "forces"),
    complain: Callable[[Fault], Any] | None = None,
) -> tuple[Sequence[Labelled], LabelSummary]:
    """The frames of one folder of shards, left on disk, or what `read_labelled` reads; and the summary of the sources.

    Raises what either does, and FlashACEError for shards beside other data.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not any(map(is_shards, paths)):
        return read_labelled(paths, keys, required, complain)
    if len(paths) > 1:
        raise FlashACEError(
            f"{', '.join(map(str, paths))}: expected files, or one folder of shards and nothing beside it; "
            "`flashace convert` all the files into one, so that their labels are chosen together"
        )
    shards = Shards(paths[0])
    shards.check(keys, required)
    return shards, shards.summary()


def is_shards(path: str | Path) -> bool:
    """Whether a folder was made by `convert`."""
    return (Path(path) / MANIFEST).is_file() and any((Path(path) / f"{name}.npy").is_file() for name in _shapes(0, 0, LABELS.values()))


def convert(
    paths: Sequence[str | Path],
    folder: str | Path,
    keys: LabelKeys = NO_KEYS,
    overwrite: bool = False,
    progress: Callable[[str, int, int | None], Any] = lambda what, done, total: None,
) -> Shards:
    """Write the frames of these files, with the labels that `read_labelled` gives them, as a folder of shards; and open it.

    The files are read twice, frame by frame: what they have decides where labels come from. The folder appears whole or not at all.
    `progress` hears now and then what is done, to how many frames, and of how many, once that is known.
    Raises what `read_labelled` does, and FlashACEError for a folder that is there, unless it holds shards and `overwrite` is set.
    """
    folder = Path(folder)
    _check_places(paths, folder, overwrite)
    labeller = Labeller(keys, ("energy",), paths)
    for atoms, origin in structures(paths):
        labeller.look(atoms, origin)
        if labeller.frames % TOLD == 0:
            progress("looking for labels", labeller.frames, None)
    labeller.decide()
    scratch = _scratch(folder)
    fresh, old = scratch / "new", scratch / "old"
    with undone_by_signals():
        scratch.mkdir(parents=True)  # not in the `try`: one that is there by now is another conversion's
        try:
            fresh.mkdir()
            _write(fresh, paths, labeller, keys, lambda done: progress("writing", done, labeller.frames))
            for path in (*fresh.iterdir(), fresh):
                to_disk(path)
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
            to_disk(folder.parent)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(scratch, ignore_errors=True)
    return Shards(folder)


def _check_places(paths: Sequence[str | Path], folder: Path, overwrite: bool) -> None:
    converted = [str(path) for path in paths if is_shards(path)]
    if converted:
        raise FlashACEError(f"{', '.join(converted)}: expected files to convert, got shards; name the files that they were made from")
    if folder.exists() and not (overwrite and is_shards(folder)):
        mend = "name another, or say --overwrite" if is_shards(folder) else "name a folder that does not exist"
        raise FlashACEError(f"{folder}: expected a new folder for the shards, but it is there already; {mend}")
    others = sorted({path.name for path in folder.glob("*")} - {MANIFEST, *(f"{name}.npy" for name in _shapes(0, 0, LABELS.values()))})
    if others:
        raise FlashACEError(
            f"{folder}: expected nothing but shards in the folder to overwrite, got {', '.join(others[:5])}; move them elsewhere"
        )
    if _scratch(folder).exists():
        raise FlashACEError(
            f"{_scratch(folder)}: expected no such folder: a conversion to {folder} is running, or one was killed; delete it when none "
            "runs (an `old` in it holds the shards that were to be overwritten)"
        )


def _scratch(folder: Path) -> Path:
    """Where shards stand until they are whole."""
    return folder.with_name(f"{folder.name}.partial")


def _write(folder: Path, paths: Sequence[str | Path], labeller: Labeller, keys: LabelKeys, tell: Callable[[int], Any]) -> None:
    config_types: dict[str, int] = {}
    files: dict[str, int] = {}
    elements = np.zeros(256, dtype=np.int64)
    shapes = _shapes(labeller.frames, labeller.atoms, LABELS.values())
    done = np.zeros(2, dtype=np.int64)  # frames, atoms

    def written(stack: ExitStack) -> Iterator[Labelled]:
        arrays = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in shapes}
        for name, (dtype, shape) in shapes.items():
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(arrays[name], header)
        arrays["offsets"].write(np.zeros(1, dtype="<i8").tobytes())
        for atoms, origin in structures(paths):
            frame = labeller.label(atoms, origin)
            nonlocal elements
            elements += np.bincount(atoms.numbers, minlength=256)
            done[:] += 1, len(atoms)
            row: dict[str, Any] = {
                "offsets": done[1],
                "numbers": atoms.numbers,
                "positions": atoms.positions,
                "cell": atoms.cell.array,
                "pbc": atoms.pbc,
                "config_type": config_types.setdefault(frame.config_type, len(config_types)),
                "origin": (files.setdefault(origin.file, len(files)), origin.index),
            }
            for label, its in LABELS.items():
                value = frame.label(label)
                row[label] = np.full(its.shape_in(len(atoms)), np.nan) if value is None else value
            for name, values in row.items():
                arrays[name].write(np.ascontiguousarray(values, dtype=shapes[name][0]).tobytes())
            if done[0] % TOLD == 0:
                tell(int(done[0]))
            yield frame

    with ExitStack() as stack:
        sha256 = content_hash(written(stack))
    if done.tolist() != [labeller.frames, labeller.atoms]:
        raise FlashACEError(
            f"{', '.join(map(str, paths))}: expected {labeller.frames} frames, as a moment ago, got {done[0]}; "
            "convert them when nothing writes to them any more"
        )
    manifest = {
        "format": FORMAT,
        "frames": labeller.frames,
        "atoms": labeller.atoms,
        "sha256": sha256,
        "elements": {chemical_symbols[z]: int(elements[z]) for z in np.flatnonzero(elements)},
        "keys": dict(keys),
        "labels": {label: asdict(count) for label, count in labeller.summary().counts.items()},
        "units": UNITS,
        "config_types": list(config_types),
        "files": list(files),
    }
    manifest["crc32"] = {name: _Rows(folder / f"{name}.npy", *expected).crc32() for name, expected in shapes.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def _rows(labels: Iterable[Label]) -> tuple[Shapes, Shapes]:
    """Type and shape of one row of the arrays that have a row per atom, and of those that have one per frame."""
    of_atoms, of_frames = OF_ATOMS.copy(), OF_FRAMES.copy()
    for label in labels:
        (of_atoms if label.per_atom else of_frames)[label.name] = "<f8", label.shape
    return of_atoms, of_frames


def _shapes(frames: int, atoms: int, labels: Iterable[Label]) -> Shapes:
    """Type and shape of every array."""
    of_atoms, of_frames = _rows(labels)
    return {
        "offsets": ("<i8", (frames + 1,)),
        **{name: (dtype, (atoms, *row)) for name, (dtype, row) in of_atoms.items()},
        **{name: (dtype, (frames, *row)) for name, (dtype, row) in of_frames.items()},
    }


def _labels_of(manifest: Mapping[str, Any]) -> list[Label]:
    """Those of the table that these shards have: earlier versions knew fewer."""
    return [label for name, label in LABELS.items() if name in manifest["labels"]]


Number = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Count(_Strict):
    used: dict[str, Number]
    ignored: dict[str, Number]


def _with_those_of_every_version(of_labels: dict[str, Any]) -> dict[str, Any]:
    lacking = [name for name in EVER if name not in of_labels]
    if lacking:
        raise ValueError(f"expected {', '.join(EVER)}, got nothing of {', '.join(lacking)}")
    return of_labels


class _Manifest(_Strict):
    """What is read of a manifest."""

    frames: Annotated[int, Field(ge=1, lt=2**48)]
    atoms: Annotated[int, Field(ge=1, lt=2**48)]
    keys: Annotated[dict[str, str | None], AfterValidator(_with_those_of_every_version)]
    labels: Annotated[dict[str, _Count], AfterValidator(_with_those_of_every_version)]
    config_types: list[str]
    files: list[str]
    crc32: dict[str, Number] = {}  # none in shards of earlier versions


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        json.dumps(manifest, ensure_ascii=False).encode()  # half a surrogate pair could not be printed
        number = manifest["format"] if isinstance(manifest, dict) and "format" in manifest else "none"
    except (ValueError, RecursionError) as error:
        raise FlashACEError(f"{path}: expected the manifest of shards, got {error}; convert the files again") from error
    if type(number) is not int or number != FORMAT:
        raise FlashACEError(
            f"{path}: expected the manifest of shards of format {FORMAT}, got format {str(number)[:50]}; "
            "convert the files again with `flashace convert`"
        )
    try:
        _Manifest.model_validate(manifest)
        unknown = manifest.get("crc32", {}).keys() - _shapes(0, 0, _labels_of(manifest)).keys()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FlashACEError(
            f"{path}: expected the manifest of shards, got {'.'.join(map(str, first['loc']))}: {first['msg']}; convert the files again"
        ) from error
    if unknown:
        raise FlashACEError(f"{path}: expected checksums of arrays, got one of {', '.join(sorted(unknown))}; convert the files again")
    return dict(manifest)


def _known(values: np.ndarray) -> np.ndarray | None:
    """A copy in memory; None of a label that is missing."""
    return None if np.isnan(values).any() else values.copy()


class _Rows:
    """An array in a file, of which rows are read: never mapped, because what is cut off under a map ends the process."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row = path, np.dtype(dtype), shape[1:]
        self.bytes_per_row = self.dtype.itemsize * int(np.prod(self.row))
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version} of numpy's format")
                found, fortran_order, kind = np.lib.format.read_array_header_1_0(file)
                self._start = file.tell()
                self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
            size = os.fstat(self._file).st_size
        except (OSError, ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:  # the header is Python
            raise FlashACEError(f"{path}: expected an array of {dtype}, {shape}, got {error}; convert the files again") from error
        expected = self._start + self.bytes_per_row * shape[0]
        if (kind.str, found, fortran_order) != (dtype, shape, False):
            raise FlashACEError(f"{path}: expected an array of {dtype}, {shape}, got {kind.str}, {found}; convert the files again")
        if size != expected:
            raise FlashACEError(f"{path}: expected a file of {expected} bytes, got {size}; convert the files again")

    def read(self, first: int, count: int) -> np.ndarray:
        """[count, …]: rows of the array, in memory of their own."""
        size = count * self.bytes_per_row
        content = os.pread(self._file, size, self._start + first * self.bytes_per_row)
        if len(content) != size:
            raise FlashACEError(
                f"{self.path}: expected rows {first} to {first + count}, got {len(content)} of {size} bytes: the file was cut off while it "
                "was read; convert the files again"
            )
        return np.frombuffer(bytearray(content), self.dtype).reshape(count, *self.row)

    def crc32(self) -> int:
        """Of all that the file has after its header."""
        checksum, place = 0, self._start
        while block := os.pread(self._file, BLOCK, place):
            checksum, place = zlib.crc32(block, checksum), place + len(block)
        return checksum

    def compare(self, checksum: int) -> None:
        """Raises FlashACEError where the content has another checksum."""
        if self.crc32() != checksum:
            raise FlashACEError(f"{self.path}: these shards are damaged: the content is not what was written; convert the files again")
