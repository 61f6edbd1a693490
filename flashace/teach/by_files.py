"""Frames to label in, a folder for each of them out; what other programs have left there in, labels out.

Labels are known by the structure, not by names of files: whatever was computed for these atoms at these places counts.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import get_distances
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress

from flashace.data.files import SINGLE, VASP
from flashace.data.frames import Labelled, read_labelled
from flashace.errors import FlashACEError
from flashace.files import whole_file

ASKED = "structure.extxyz"  # in the folder of a frame: what is to be labelled
SAME = 0.01  # Å: an atom of the answer is where it was asked for; OUTCAR has five decimals


def ask(frames: Sequence[Atoms], folder: Path, name: str) -> list[Path]:
    """A folder `name`-001, … for each frame, with structure.extxyz and, of periodic ones, POSCAR (sorted by elements).

    Those that are there stay as they are.
    """
    places = []
    for n, atoms in enumerate(frames, 1):
        place = folder / f"{name}-{n:03d}"
        place.mkdir(parents=True, exist_ok=True)
        places.append(place)
        if not (place / ASKED).exists():
            if atoms.pbc.any() and atoms.cell.rank == 3:
                with whole_file(place / "POSCAR") as aside:
                    write(
                        aside, Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc), format="vasp", direct=True, sort=True
                    )
            with whole_file(place / ASKED) as aside:
                write(aside, atoms, format="extxyz")
    return places


def answers(asked: Sequence[Atoms], folder: Path, tell: Callable[[str], Any]) -> list[Atoms | None]:
    """Each frame with energy, forces and, where it is periodic and there is one, stress; None where nothing has been computed for it yet.

    Read are, at any depth, one vasprun.xml or else OUTCAR of each folder, and all files *.extxyz, *.xyz, *.traj and *.db that are not what
    was asked. `tell` hears of files that cannot be read: they may still be written to.
    """
    found: list[Atoms | None] = [None] * len(asked)
    for path in _files(folder):
        try:
            frames, _ = read_labelled(path)
        except FlashACEError as error:
            tell(f"passed over: {error}")
            continue
        strangers = 0
        for frame in frames:
            if frame.energy is None or frame.forces is None:
                continue
            place, order = next(
                ((n, order) for n, atoms in enumerate(asked) if (order := _order(atoms, frame.atoms)) is not None), (-1, None)
            )
            if order is None:
                strangers += 1
            elif found[place] is None:
                found[place] = _answered(asked[place], frame, order)
        if strangers == len(frames):
            tell(f"passed over: {path}: none of its {strangers} frames is a structure that was asked for and has no label yet")
    return found


def _files(folder: Path) -> Iterator[Path]:
    for place, below, names in os.walk(folder):
        below.sort()
        calculation = next(([name] for name in VASP if name in names), [])
        others = sorted(name for name in names if name.endswith(SINGLE) and name != ASKED and not name.endswith(".partial"))
        yield from (Path(place) / name for name in (*calculation, *others))


def _order(asked: Atoms, found: Atoms) -> np.ndarray | None:
    """Which atom of `found` is which of those that were asked for; None where it is another structure. Programs sort atoms by elements,
    bring them into the cell, and shift molecules."""
    if len(asked) != len(found) or not np.array_equal(np.sort(asked.numbers), np.sort(found.numbers)):
        return None
    boxed = asked.cell.rank == 3 and found.cell.rank == 3
    if boxed and not np.allclose(asked.cell.array, found.cell.array, atol=SAME):
        return None
    ours, theirs = asked.positions, found.positions
    if not boxed:
        ours, theirs = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    space: dict[str, Any] = {"cell": asked.cell, "pbc": True} if boxed else {}
    if get_distances(ours[:1], theirs, **space)[1].min() > SAME:  # soon done with most of the others
        return None
    _, distances = get_distances(ours, theirs, **space)
    distances[asked.numbers[:, None] != found.numbers] = np.inf
    order = distances.argmin(axis=1)
    same = (distances[np.arange(len(order)), order] < SAME).all() and len(set(order.tolist())) == len(order)
    return order if same else None


def _answered(asked: Atoms, frame: Labelled, order: np.ndarray) -> Atoms:
    info = {name: asked.info[name] for name in ("config_type", "task") if name in asked.info}
    atoms = Atoms(asked.numbers, asked.positions, cell=asked.cell, pbc=asked.pbc, info=info)
    forces = None if frame.forces is None else frame.forces[order]
    return as_labelled(replace(frame, atoms=atoms, forces=forces, stress=frame.stress if atoms.pbc.all() else None))


def as_labelled(frame: Labelled) -> Atoms:
    """Its structure with the labels that it has as results, and where these are from."""
    atoms = frame.atoms
    info = {"config_type": frame.config_type, **{name: atoms.info[name] for name in ("config_type", "task") if name in atoms.info}}
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info={**info, "origin": str(frame.origin)})
    results: dict[str, Any] = {"energy": frame.energy, "forces": frame.forces}
    if frame.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(frame.stress)
    bare.calc = SinglePointCalculator(bare, **results)
    return bare
