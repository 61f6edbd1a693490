"""Files of structures in; frames with their energies, forces and stresses out, and a summary of where these were found.

Three rules hold for every set of files. The source of a label is decided once for each file, in this order: the key that the user names,
`REF_energy` / `REF_forces` / `REF_stress` (or `REF_virial`, `REF_virials`), and the calculator results in the file; a frame whose label
would be lost by that is an error, unless the user named the key. A frame that lacks a label has `None` there, and the summary counts it.
Whatever is contradictory, not finite or of the wrong shape is an error that names the frame.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from flashace.data.files import structures
from flashace.data.labels import EVER, LABELS
from flashace.data.lazy import take
from flashace.data.origin import Fault, FrameError, Origin
from flashace.data.sound import check_structure
from flashace.data.sources import NO_KEY, source_groups, sources_in, unused_in, value_of
from flashace.errors import FlashACEError


class LabelKeys(Mapping[str, str | None]):
    """Names that the user gives to labels; `None` looks for `REF_*` and then at the calculator results, "none" leaves the label out.

    A key is looked up in `info`, `arrays` (labels of atoms alone) and calculator results. A stress key with "virial" in its name holds
    virials. Raises FlashACEError for the name of no label.
    """

    def __init__(self, **keys: str | None) -> None:
        unknown = keys.keys() - LABELS.keys()
        if unknown:
            raise FlashACEError(f"keys of labels: expected some of {', '.join(LABELS)}, got {', '.join(sorted(unknown))}; correct them")
        self._named = keys

    def __getitem__(self, label: str) -> str | None:
        return self._named.get(LABELS[label].name)

    def __iter__(self) -> Iterator[str]:
        return iter(LABELS)

    def __len__(self) -> int:
        return len(LABELS)


NO_KEYS = LabelKeys()


@dataclass(frozen=True, eq=False)
class Labelled:
    """One frame and what is known about it; `None` is a label that the frame does not have.

    The first three are those of any potential, whose physics the code knows by name. `label` gives any of the table.
    """

    atoms: Atoms  # as read: with its info, arrays and calculator results
    energy: float | None  # eV, total
    forces: np.ndarray | None  # [N, 3] eV/Å, constraints not applied
    stress: np.ndarray | None  # [3, 3] eV/Å³, ASE's sign, symmetric
    config_type: str  # info["config_type"], "" where there is none
    origin: Origin
    others: Mapping[str, Any] = field(default_factory=dict)  # further labels of the table, those that the frame has

    @classmethod
    def of(cls, atoms: Atoms, labels: Mapping[str, Any], config_type: str, origin: Origin) -> "Labelled":
        """From labels by name; None, and what is not there, is missing."""
        others = {name: value for name, value in labels.items() if name not in EVER and value is not None}
        return cls(atoms, labels.get("energy"), labels.get("forces"), labels.get("stress"), config_type, origin, others)

    def label(self, name: str) -> Any:
        """A label by its name in the table; None where the frame does not have it."""
        return getattr(self, name) if name in EVER else self.others.get(name)

    def without(self, name: str) -> "Labelled":
        """The same frame, which no longer has this label."""
        if name in EVER:
            return replace(self, **{name: None})  # type: ignore[arg-type]
        return replace(self, others={other: value for other, value in self.others.items() if other != name})

    @property
    def is_isolated_atom(self) -> bool:
        """Whether config_type says so: IsolatedAtom, isolated_atom, …"""
        return self.config_type.lower().replace("_", "") == "isolatedatom"


@dataclass(frozen=True)
class LabelCount:
    """One label over a set of frames. `used`: source -> frames that took it. `ignored`: source -> frames that are left
    without the label although they have this source, because the user named another key."""

    used: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelSummary:
    """What `read_labelled` found. Sources read `REF_energy`, or `calculator energy` for calculator results.

    `unused`: what else frames have and nothing here reads -> frames: weights of their own, and virials per atom.
    """

    frames: int
    counts: Mapping[str, LabelCount]  # of each label of the table
    unused: dict[str, int] = field(default_factory=dict)


def read_labelled(
    paths: str | Path | Sequence[str | Path],
    keys: LabelKeys = NO_KEYS,
    required: Sequence[str] = ("energy", "forces"),
    complain: Callable[[Fault], Any] | None = None,
) -> tuple[list[Labelled], LabelSummary]:
    """All frames of one or several files or folders (`structures` says which), with their labels and a summary of the sources.

    `required` names the labels that at least one frame must have: `("energy",)` for a file of isolated atoms. Within
    calculator results, a frame with forces takes `free_energy`, whose derivative they are, before `energy`. Virials
    (6, 9 or 3×3 numbers) become stress = −virial / volume, and must agree with a stress of the same frame. Where a frame is not periodic in
    three directions, a stress of nothing but zeros, or of nothing but NaN, is none.

    `complain` hears of the faults of single frames, which then lose that label or, where the structure itself is broken, are left out.

    Raises FlashACEError for a file that cannot be read or is empty, an explicit key that no frame has, a required label
    that no frame has, and, unless there is `complain`, a file in which some frames have a label under another name than the rest, a frame
    with no atoms, unknown elements or numbers beyond all bounds, and labels that are not finite, misshapen or contradictory.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    frames = list(structures(paths))
    labeller = Labeller(keys, required, paths, complain)
    frames = [(atoms, origin) for atoms, origin in frames if labeller.look(atoms, origin)]
    labeller.decide()
    return [labeller.label(atoms, origin) for atoms, origin in frames], labeller.summary()


class Labeller:
    """The labels of one set of frames that need not be in memory: `look` at each of them, `decide`, then `label` each.

    Arguments and errors are those of `read_labelled`.
    """

    def __init__(
        self, keys: LabelKeys, required: Sequence[str], paths: Sequence[str | Path], complain: Callable[[Fault], Any] | None = None
    ):
        self.required, self.where, self.complain = required, _listed(paths), complain
        self.frames = self.atoms = 0  # looked at
        self._any = False
        self._keys = keys
        self._groups = {name: source_groups(label, keys[name]) for name, label in LABELS.items()}
        self._best: Counter[tuple[str, str, int]] = Counter()  # file, label, first group of sources that a frame has -> frames
        self._chosen: dict[tuple[str, str], int] = {}  # file, label -> group
        self._counts = {label: (Counter[str](), Counter[str]()) for label in LABELS}  # used, ignored
        self._unused: Counter[str] = Counter()
        self._places: dict[str, set[str]] = {"info": set(), "arrays": set(), "calculator results": set()}

    def look(self, atoms: Atoms, origin: Origin) -> bool:
        """What sources a frame has; False where its structure is broken and there is `complain`, so that it has to be left out."""
        self._any = True
        try:
            check_structure(atoms, origin)
        except FrameError as error:
            if self.complain is None:
                raise
            self.complain(error.fault)
            return False
        self.frames, self.atoms = self.frames + 1, self.atoms + len(atoms)
        for label, groups in self._groups.items():
            best = next((i for i, group in enumerate(groups) if sources_in(atoms, LABELS[label], group)), None)
            if best is not None:
                self._best[origin.file, label, best] += 1
        self._unused.update(unused_in(atoms))
        results = getattr(atoms.calc, "results", {})
        for place, names in zip(self._places.values(), (atoms.info, atoms.arrays, results), strict=True):
            place.update(map(str, names))
        return True

    def decide(self) -> None:
        """Take each label of a file from the first group of sources that any of its frames has."""
        if not self._any:
            raise FlashACEError(f"{self.where}: expected at least one frame, got none; name a file with structures")
        for label, key in self._keys.items():
            present = {group for _, of, group in self._best if of == label}
            if key not in (None, NO_KEY) and 0 not in present:
                raise FlashACEError(
                    f"{self.where}: expected {label} under the key {key!r}, but no frame has it; "
                    f"{self._keys_that_exist()}; correct --{label}-key or leave it out"
                )
            if label in self.required and key == NO_KEY:
                raise FlashACEError(
                    f"{self.where}: {label} is needed here, but --{label}-key {NO_KEY} leaves it out; name a key, or none at all"
                )
            if label in self.required and not present:
                raise FlashACEError(
                    f"{self.where}: expected {label} in at least one of {self.frames} frames, found none; looked for "
                    f"{_listed(chain(*self._groups[label]))}; {self._keys_that_exist()}; name the right key with --{label}-key"
                )
        for file, label, group in self._best:
            named = self._keys[label] is not None
            self._chosen[file, label] = 0 if named else min(group, self._chosen.get((file, label), group))
        if self.complain is None:
            self._refuse_losses()

    def _refuse_losses(self) -> None:
        """Raises FlashACEError for frames that have a label, but not where the rest of their file has it, unless the key was named."""
        for (file, label, group), frames in self._best.items():
            chosen = self._chosen[file, label]
            if group != chosen and self._keys[label] is None:
                raise FlashACEError(f"{file}: {self._loss(label, chosen, self._best[file, label, chosen], group, frames)}")

    def _loss(self, label: str, chosen: int, have: int, group: int, lost: int) -> str:
        groups = [" or ".join(self._groups[label][i]) for i in (chosen, group)]
        return (
            f"expected {label} under one name in this file, got {groups[0]} in {have} frames and only {groups[1]} in {lost}; "
            f"rename them to one, or name with --{label}-key the one to read, so that the others are left out (`flashace check` lists them)"
        )

    def label(self, atoms: Atoms, origin: Origin) -> Labelled:
        """The frame with its labels."""
        values = {label: self._value(label, atoms, origin) for label in LABELS}
        return Labelled.of(atoms, values, str(atoms.info.get("config_type", "")), origin)

    def summary(self) -> LabelSummary:
        """Where the labels of all frames so far were found."""
        counts = {label: LabelCount(dict(used), dict(ignored)) for label, (used, ignored) in self._counts.items()}
        return LabelSummary(self.frames, counts, unused=dict(self._unused))

    def _value(self, label: str, atoms: Atoms, origin: Origin) -> Any:
        groups = self._groups[label]
        chosen = self._chosen.get((origin.file, label))
        if chosen is None:  # no frame of this file has it
            return None
        sources = sources_in(atoms, LABELS[label], groups[chosen])
        if not sources:
            self._count_as_lost(label, atoms, origin, chosen)
            return None
        try:
            value = value_of(LABELS[label], atoms, sources, origin)
        except FrameError as error:
            if self.complain is None:
                raise
            self.complain(error.fault)
            return None
        self._counts[label][0].update(sources[:1])
        return value

    def _count_as_lost(self, label: str, atoms: Atoms, origin: Origin, chosen: int) -> None:
        lost = sources_in(atoms, LABELS[label], chain(*self._groups[label][chosen + 1 :]))[:1]
        self._counts[label][1].update(lost)
        if lost and self.complain is not None and self._keys[label] is None:
            expected = " or ".join(self._groups[label][chosen])
            text = f"expected {label} under one name in this file, {expected}, got {lost[0]}"
            self.complain(Fault(origin, "other name", f"{label} under {expected}", text, "rename it in these frames"))

    def _keys_that_exist(self) -> str:
        places = {**self._places, "arrays": self._places["arrays"] - {"numbers", "positions"}}
        return "the keys that exist are " + ", ".join(f"{place}: {_listed(sorted(keys))}" for place, keys in places.items())


def isolated_atom_energies(frames: Sequence[Labelled]) -> tuple[dict[str, float], Sequence[Labelled]]:
    """Element -> energy in eV from frames with config_type IsolatedAtom (or isolated_atom, …); and the other frames.

    Raises FlashACEError for such a frame with several atoms or no energy, and for two energies of one element.
    """
    tolerance = 1e-4  # eV; the same calculation, printed with fewer digits
    first: dict[str, tuple[float, Origin]] = {}
    isolated = np.zeros(len(frames), dtype=bool)
    for i, frame in enumerate(frames):
        isolated[i] = frame.is_isolated_atom
        if not isolated[i]:
            continue
        if len(frame.atoms) != 1 or frame.energy is None:
            raise FlashACEError(
                f"{frame.origin}: config_type {frame.config_type!r}: expected one atom and its energy, got "
                f"{len(frame.atoms)} atoms and energy {frame.energy}; correct or remove this frame"
            )
        element = str(frame.atoms.symbols[0])
        energy, origin = first.setdefault(element, (frame.energy, frame.origin))
        if abs(frame.energy - energy) > tolerance:
            raise FlashACEError(
                f"isolated {element}: expected one energy, got {energy} eV in {origin} and {frame.energy} eV in "
                f"{frame.origin}; keep the one that belongs to this data"
            )
    return {element: energy for element, (energy, _) in first.items()}, take(frames, np.flatnonzero(~isolated))


def content_hash(frames: Iterable[Labelled]) -> str:
    """SHA-256 (hex) of numbers, positions, cells, boundary conditions and labels in their order; file names, info
    and further arrays do not count."""
    digest = hashlib.sha256()
    for frame in frames:
        atoms = frame.atoms
        digest.update(np.asarray([len(atoms), *atoms.numbers, *atoms.pbc], dtype="<i8").tobytes())
        for numbers in (atoms.positions, atoms.cell.array, *(frame.label(name) for name in EVER)):
            digest.update(b"none" if numbers is None else np.asarray(numbers, dtype="<f8").tobytes())
        for name, numbers in sorted(frame.others.items()):  # with their names: data without them keeps the hash that it always had
            digest.update(name.encode() + np.asarray(numbers, dtype="<f8").tobytes())
    return digest.hexdigest()


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"
