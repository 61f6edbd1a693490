"""A frame and a row of the table of labels in; where the frame has that label, and its value in our units and shape, out."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from flashace.data.labels import Label
from flashace.data.origin import Fault, FrameError, Origin

NO_KEY = "none"  # as the name of a key: this label is left out
LARGEST = 1e15  # eV, eV/Å, eV/Å³: beyond any label, and its square is still a number of float32
WEIGHT = re.compile(r"(config_)?((energy|forces?|stress|virials?)_)?weights?", re.IGNORECASE)  # of frames, for other programs


def lookup(atoms: Atoms, source: str) -> Any:
    """What a source such as `REF_energy` or `calculator energy` holds; None where the frame does not have it."""
    place, _, name = source.rpartition(" ")
    if place == "calculator":
        return getattr(atoms.calc, "results", {}).get(name)
    return atoms.info.get(source, atoms.arrays.get(source))


def source_groups(label: Label, key: str | None) -> list[tuple[str, ...]]:
    """The sources of a label; a file takes it from the first group that any of its frames has. `key` is what the user named."""
    explicit = () if key == NO_KEY else (str(key), f"calculator {key}")
    return [label.named, label.found] if key is None else [explicit, label.named, label.found]


def sources_in(atoms: Atoms, label: Label, sources: Iterable[str]) -> list[str]:
    """Those of `sources` that this frame has; the first is the one to use."""
    have = [source for source in sources if _has(atoms, label, source)]
    if {"calculator free_energy", "calculator energy"} <= set(have) and lookup(atoms, "calculator forces") is None:
        have.remove("calculator free_energy")  # it comes first only for the sake of the forces
    return have


def unused_in(atoms: Atoms) -> list[str]:
    """What one could think is read, and is not: weights other than 1, and virials of single atoms."""
    weights = [str(name) for name, value in atoms.info.items() if WEIGHT.fullmatch(str(name)) and np.any(np.asarray(value) != 1)]
    per_atom = [f"{name} of each atom" for name in atoms.arrays if WEIGHT.fullmatch(name) or name.lower() in ("virial", "virials")]
    return weights + per_atom


def value_of(label: Label, atoms: Atoms, sources: Sequence[str], origin: Origin) -> float | np.ndarray:
    """The label from the first of `sources`; of a label per volume, which may stand there as virials too, the others must agree with it.

    Raises FrameError for what is no such label.
    """
    if not label.per_volume:
        return _value_from(sources[0], label, atoms, origin)
    if atoms.cell.rank < 3:
        text = f"{sources[0]}: a {label.name} needs a cell with three vectors, got {atoms.cell.rank}"
        mend = f"add the cell, remove the {label.name} of this frame, or leave out all {label.name} with --{label.name}-key none"
        raise FrameError(Fault(origin, "no cell", sources[0], text, mend))
    first, *others = [_value_from(source, label, atoms, origin) for source in sources]
    for source, value in zip(sources[1:], others, strict=True):
        if not _agree(value, first):
            text = (
                f"expected {sources[0]} and {source} to agree as {label.name} = -virial / volume, got xx, yy, zz = "
                f"{np.diag(first)} and {np.diag(value)} {label.unit}"
            )
            mend = f"name the right one with --{label.name}-key"
            raise FrameError(Fault(origin, "contradictory", f"{sources[0]} and {source}", text, mend))
    return first


def _has(atoms: Atoms, label: Label, source: str) -> bool:
    """Whether a frame has this label there. One number per atom is no energy of a frame, and neither is its stress made of columns."""
    value = lookup(atoms, source)
    if value is None or label.per_atom:
        return value is not None
    if source not in atoms.info and source in atoms.arrays:
        return False
    if label.per_volume and not (atoms.pbc.all() and atoms.cell.rank == 3):
        numbers = np.asarray(value)
        return not (
            numbers.dtype.kind in "iuf" and (not numbers.any() or np.isnan(numbers).all())
        )  # how some programs write that there is none
    return True


def _value_from(source: str, label: Label, atoms: Atoms, origin: Origin) -> Any:
    numbers = _numbers(atoms, source, origin)
    if label.rank == 2 and not label.per_atom:
        return _tensor(numbers, source, label, atoms, origin)
    shape = label.shape_in(len(atoms))
    if not shape and numbers.size == 1:
        return float(numbers.item())
    if shape and numbers.shape == shape:
        return numbers
    text = f"{source}: expected {f'shape {shape}' if shape else 'one number'}, got shape {numbers.shape}"
    raise FrameError(Fault(origin, "shape", source, text, f"correct it or name another --{label.name}-key"))


def _tensor(numbers: np.ndarray, source: str, label: Label, atoms: Atoms, origin: Origin) -> np.ndarray:
    if numbers.shape not in [(6,), (9,), (3, 3)]:
        text = f"{source}: expected 6 numbers (xx, yy, zz, yz, xz, xy), 9 or 3×3, got shape {numbers.shape}"
        raise FrameError(Fault(origin, "shape", source, text, f"correct it or name another --{label.name}-key"))
    tensor = voigt_6_to_full_3x3_stress(numbers) if numbers.size == 6 else numbers.reshape(3, 3)
    if label.per_volume and "virial" in source.lower():
        tensor = -tensor / atoms.get_volume()
    if not _agree(tensor, tensor.T):
        text = f"{source}: expected a symmetric tensor, got {numbers.tolist()}"
        raise FrameError(Fault(origin, "unsymmetric", source, text, "correct or remove this frame"))
    return np.asarray((tensor + tensor.T) / 2)


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one, other, rtol=1e-3, atol=1e-4)  # eV/Å³ (16 MPa): numbers printed with few digits


def _numbers(atoms: Atoms, source: str, origin: Origin) -> np.ndarray:
    value, mend = np.asarray(lookup(atoms, source)), "repair or remove this frame"
    if value.dtype.kind not in "iuf":
        text = f"{source}: expected numbers, got {value.tolist()!r:.80}"
        raise FrameError(Fault(origin, "no numbers", source, text, "correct this frame"))
    if not np.isfinite(value).all():
        raise FrameError(Fault(origin, "not finite", source, f"{source}: expected finite numbers, got NaN or infinity", mend))
    if (np.abs(value) > LARGEST).any():
        text = f"{source}: expected numbers up to {LARGEST:g}, got {np.abs(value).max():g}"
        raise FrameError(Fault(origin, "too large", source, text, mend))
    return value.astype(float)
