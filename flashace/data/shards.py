"""Labelled files of any size in; a folder of arrays out, and out of that the same frames, read one by one.

docs/data.md describes the folder. Positions, cells and labels keep all their digits, so that a fit is the same as on the files.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from flashace.data.files import structures
from flashace.data.frames import NO_KEYS, LabelCount, LabelKeys, Labelled, Labeller, LabelSummary, content_hash, read_labelled
from flashace.data.labels import LABELS
from flashace.data.lazy import take
from flashace.data.origin import Fault, Origin
from flashace.data.rows import Rows
from flashace.data.shard_layout import FORMAT, MANIFEST, UNITS, labels_of, read_manifest, rows_of, shapes_of
from flashace.errors import FlashACEError
from flashace.files import to_disk, undone_by_signals

TOLD = 1000  # frames between two reports of progress


class Shards(Sequence[Labelled]):
    """The frames of a folder that `convert` made, read from its arrays when asked for; nothing is kept.

    Their `atoms` have no calculator: the labels stand in `REF_energy`, `REF_forces` and so on, besides `config_type`.
    Raises FlashACEError for a folder that is not whole or of another version, when it is opened; and from then on for what is no frame,
    so also where another program cuts off a file that is open (what is mapped into memory would end the process with SIGBUS).
    """

    def __init__(self, folder: str | Path, checked: bool = False) -> None:
        """`checked`: another process has compared the checksums a moment ago."""
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._labels = labels_of(self.manifest)
        self._of_atoms, self._of_frames = rows_of(self._labels)
        sizes = shapes_of(self.manifest["frames"], self.manifest["atoms"], self._labels)
        self._arrays = {name: Rows(self.folder / f"{name}.npy", *expected) for name, expected in sizes.items()}
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
    return (Path(path) / MANIFEST).is_file() and any((Path(path) / f"{name}.npy").is_file() for name in shapes_of(0, 0, LABELS.values()))


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
    others = sorted({path.name for path in folder.glob("*")} - {MANIFEST, *(f"{name}.npy" for name in shapes_of(0, 0, LABELS.values()))})
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


class _Writer:
    """The arrays of a new folder, one frame after the other, and its manifest."""

    def __init__(self, folder: Path, labeller: Labeller) -> None:
        self.folder, self.labeller = folder, labeller
        self.shapes = shapes_of(labeller.frames, labeller.atoms, LABELS.values())
        self.config_types: dict[str, int] = {}
        self.files: dict[str, int] = {}
        self.elements = np.zeros(256, dtype=np.int64)
        self.frames = self.atoms = 0  # written

    def written(self, paths: Sequence[str | Path], tell: Callable[[int], Any]) -> Iterator[Labelled]:
        """Each frame of the files, when it is written."""
        with ExitStack() as stack:
            arrays = {name: stack.enter_context((self.folder / f"{name}.npy").open("wb")) for name in self.shapes}
            for name, (dtype, shape) in self.shapes.items():
                np.lib.format.write_array_header_1_0(arrays[name], {"descr": dtype, "fortran_order": False, "shape": shape})
            arrays["offsets"].write(np.zeros(1, dtype="<i8").tobytes())
            for atoms, origin in structures(paths):
                frame = self.labeller.label(atoms, origin)
                for name, values in self._row(frame).items():
                    arrays[name].write(np.ascontiguousarray(values, dtype=self.shapes[name][0]).tobytes())
                if self.frames % TOLD == 0:
                    tell(self.frames)
                yield frame

    def _row(self, frame: Labelled) -> dict[str, Any]:
        """What each array gets of the next frame."""
        atoms = frame.atoms
        self.elements += np.bincount(atoms.numbers, minlength=256)
        self.frames, self.atoms = self.frames + 1, self.atoms + len(atoms)
        row: dict[str, Any] = {
            "offsets": self.atoms,
            "numbers": atoms.numbers,
            "positions": atoms.positions,
            "cell": atoms.cell.array,
            "pbc": atoms.pbc,
            "config_type": self.config_types.setdefault(frame.config_type, len(self.config_types)),
            "origin": (self.files.setdefault(frame.origin.file, len(self.files)), frame.origin.index),
        }
        for name, label in LABELS.items():
            value = frame.label(name)
            row[name] = np.full(label.shape_in(len(atoms)), np.nan) if value is None else value
        return row

    def write_manifest(self, sha256: str, keys: LabelKeys) -> None:
        """Once all arrays are closed."""
        manifest = {
            "format": FORMAT,
            "frames": self.frames,
            "atoms": self.atoms,
            "sha256": sha256,
            "elements": {chemical_symbols[z]: int(self.elements[z]) for z in np.flatnonzero(self.elements)},
            "keys": dict(keys),
            "labels": {label: asdict(count) for label, count in self.labeller.summary().counts.items()},
            "units": UNITS,
            "config_types": list(self.config_types),
            "files": list(self.files),
            "crc32": {name: Rows(self.folder / f"{name}.npy", *expected).crc32() for name, expected in self.shapes.items()},
        }
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def _write(folder: Path, paths: Sequence[str | Path], labeller: Labeller, keys: LabelKeys, tell: Callable[[int], Any]) -> None:
    writer = _Writer(folder, labeller)
    sha256 = content_hash(writer.written(paths, tell))
    if (writer.frames, writer.atoms) != (labeller.frames, labeller.atoms):
        raise FlashACEError(
            f"{', '.join(map(str, paths))}: expected {labeller.frames} frames, as a moment ago, got {writer.frames}; "
            "convert them when nothing writes to them any more"
        )
    writer.write_manifest(sha256, keys)


def _known(values: np.ndarray) -> np.ndarray | None:
    """A copy in memory; None of a label that is missing."""
    return None if np.isnan(values).any() else values.copy()
