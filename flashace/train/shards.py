"""Labelled files of any size in; a folder of memory-mapped arrays out, and out of that the same frames, read one by one.

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

from flashace.errors import FlashACEError
from flashace.train.data import LABELS, LabelCount, LabelKeys, Labelled, Labeller, LabelSummary, content_hash, read_labelled
from flashace.train.files import structures
from flashace.train.lazy import take

FORMAT = 1
NO_KEYS = LabelKeys()
MANIFEST = "manifest.json"
TOLD = 1000  # frames between two reports of progress
# type and shape of one row. NaN is a label that a frame does not have
PER_ATOM: dict[str, tuple[str, tuple[int, ...]]] = {"numbers": ("|u1", ()), "positions": ("<f8", (3,)), "forces": ("<f8", (3,))}
PER_FRAME: dict[str, tuple[str, tuple[int, ...]]] = {
    "cell": ("<f8", (3, 3)),
    "pbc": ("|b1", (3,)),
    "energy": ("<f8", ()),
    "stress": ("<f8", (3, 3)),
    "config_type": ("<i4", ()),  # place in the manifest's list
    "origin": ("<i8", (2,)),  # place of the file in the manifest's list, and of the frame in the file
}
UNITS = {"positions": "Å", "cell": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}


class Shards(Sequence[Labelled]):
    """The frames of a folder that `convert` made, read from its arrays when asked for; nothing is kept.

    Their `atoms` have no calculator: the labels stand in `REF_energy`, `REF_forces` and `REF_stress`, besides `config_type`.
    Raises FlashACEError for a folder that is not whole, or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        sizes = _shapes(self.manifest["frames"], self.manifest["atoms"])
        self._arrays = {name: _load(self.folder / f"{name}.npy", *expected) for name, expected in sizes.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the name of the folder, not what is in it."""
        return Shards, (self.folder.resolve(),)

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
        a, i = self._arrays, indices
        atoms_of_frame = slice(*a["offsets"][i : i + 2].tolist())
        config_type = self.manifest["config_types"][a["config_type"][i]]
        file, place = a["origin"][i].tolist()
        atoms = Atoms(a["numbers"][atoms_of_frame], a["positions"][atoms_of_frame], cell=a["cell"][i], pbc=a["pbc"][i])
        energy, forces, stress = (_known(values) for values in (a["energy"][i], a["forces"][atoms_of_frame], a["stress"][i]))
        if config_type:
            atoms.info["config_type"] = config_type
        for name, value, holder in (("energy", energy, atoms.info), ("forces", forces, atoms.arrays), ("stress", stress, atoms.info)):
            if value is not None:
                holder[f"REF_{name}"] = value
        origin = f"{self.manifest['files'][file]}#{place}"
        return Labelled(atoms, None if energy is None else float(energy), forces, stress, config_type, origin)

    def summary(self) -> LabelSummary:
        """Where `convert` found the labels."""
        return LabelSummary(len(self), *[LabelCount(**self.manifest["labels"][label]) for label in LABELS])

    def check(self, keys: LabelKeys, required: Iterable[str]) -> None:
        """Raises FlashACEError where the labels were not taken from these keys, or where required ones are missing."""
        for label in LABELS:
            key, used = getattr(keys, label), self.manifest["labels"][label]["used"]
            known = key is None or key == self.manifest["keys"][label] or (used and set(used) <= {key, f"calculator {key}"})
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
    complain: Callable[[str], Any] | None = None,
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
    return (Path(path) / MANIFEST).is_file() and any((Path(path) / f"{name}.npy").is_file() for name in _shapes(0, 0))


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
    try:
        scratch.mkdir(parents=True)
        fresh.mkdir()
        _write(fresh, paths, labeller, keys, lambda done: progress("writing", done, labeller.frames))
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
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
    others = sorted({path.name for path in folder.glob("*")} - {MANIFEST, *(f"{name}.npy" for name in _shapes(0, 0))})
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
    shapes = _shapes(labeller.frames, labeller.atoms)
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
            file, _, place = origin.rpartition("#")
            row = {
                "offsets": done[1],
                "numbers": atoms.numbers,
                "positions": atoms.positions,
                "cell": atoms.cell.array,
                "pbc": atoms.pbc,
                "energy": np.nan if frame.energy is None else frame.energy,
                "forces": np.full((len(atoms), 3), np.nan) if frame.forces is None else frame.forces,
                "stress": np.full((3, 3), np.nan) if frame.stress is None else frame.stress,
                "config_type": config_types.setdefault(frame.config_type, len(config_types)),
                "origin": (files.setdefault(file, len(files)), int(place)),
            }
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
        "keys": asdict(keys),
        "labels": {label: asdict(getattr(labeller.summary(), label)) for label in LABELS},
        "units": UNITS,
        "config_types": list(config_types),
        "files": list(files),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def _shapes(frames: int, atoms: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every array."""
    return {
        "offsets": ("<i8", (frames + 1,)),
        **{name: (dtype, (atoms, *row)) for name, (dtype, row) in PER_ATOM.items()},
        **{name: (dtype, (frames, *row)) for name, (dtype, row) in PER_FRAME.items()},
    }


def _read_manifest(folder: Path) -> dict[str, Any]:
    needed = {"format", "frames", "atoms", "keys", "labels", "config_types", "files"}
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        lacking = sorted(needed - manifest.keys())
    except (ValueError, AttributeError) as error:
        raise FlashACEError(f"{folder / MANIFEST}: expected the manifest of shards, got {error}; convert the files again") from error
    if lacking or manifest["format"] != FORMAT:
        came = f"no {', '.join(lacking)}" if lacking else f"format {manifest['format']}"
        raise FlashACEError(
            f"{folder / MANIFEST}: expected the manifest of shards of format {FORMAT}, got {came}; "
            "convert the files again with `flashace convert`"
        )
    return dict(manifest)


def _known(values: np.ndarray) -> np.ndarray | None:
    """A copy in memory; None of a label that is missing."""
    return None if np.isnan(values).any() else values.copy()


def _load(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise FlashACEError(f"{path}: expected an array of {dtype}, {shape}, got {error}; convert the files again") from error
    if array.dtype.str != dtype or array.shape != shape:
        raise FlashACEError(f"{path}: expected an array of {dtype}, {shape}, got {array.dtype.str}, {array.shape}; convert the files again")
    return array
