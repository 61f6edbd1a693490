"""Structures with a calculator's results, as `labelled` gives them, in; frames as the rest of the house has them out."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from flashace.data.frames import Labelled
from flashace.data.origin import Origin


def as_frames(images: Sequence[Atoms], name: str) -> list[Labelled]:
    """What is not in the results is missing; `name` says in messages where they are from. A file is read by `read_data`."""
    return [_frame(atoms, Origin(name, i)) for i, atoms in enumerate(images)]


def _frame(atoms: Atoms, origin: Origin) -> Labelled:
    found = getattr(atoms.calc, "results", {})
    labels = {name: found.get(name) for name in ("energy", "forces")}
    if found.get("stress") is not None:
        labels["stress"] = np.asarray(voigt_6_to_full_3x3_stress(found["stress"]))
    return Labelled.of(atoms, labels, str(atoms.info.get("config_type", "")), origin)
