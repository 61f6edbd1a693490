"""The table of labels: what each of them is, under which names files have it, how it turns, and how its error counts.

A new label is one row here, a prediction of the same name (`Prediction`, `predict_each`), and its two options `<name>_key` and
`<name>_weight` in `TrainConfig`. Readers, shards, batches, loss, rotations and the tables of errors follow from the row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress


@dataclass(frozen=True)
class Label:
    """One row.

    A source is a key of `info` or `arrays`, or "calculator" and a key of the calculator results.
    A label per volume needs a cell, without which its prediction is NaN; a source with "virial" in its name holds -volume times it.
    """

    name: str
    rank: int  # 0: a number; 1: a vector, which turns as v -> R v; 2: a symmetric tensor, σ -> R σ Rᵀ
    per_atom: bool  # one for each atom, or one for the structure
    unit: str
    named: tuple[str, ...]  # sources that are meant for us, looked for first
    found: tuple[str, ...]  # sources that other programs write
    extensive: bool = False  # a number that grows with the structure: kept in float64, and its error counts per atom
    per_volume: bool = False
    least: float = 0.0  # what counts as an error of one: the root mean square of the components in training, but no less than this
    as_large_as: str = ""  # or what it is of this other label, times 1 Å

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of them."""
        return (3,) * self.rank

    @property
    def error_unit(self) -> str:
        """Of errors in tables, a thousandth of `unit`."""
        return f"m{self.size_unit}"

    @property
    def size_unit(self) -> str:
        """Of what is compared: `unit`, per atom where the label grows with the structure."""
        return f"{self.unit}/atom" if self.extensive else self.unit

    def shape_in(self, num_atoms: int) -> tuple[int, ...]:
        """Of the label of a structure with so many atoms."""
        return (num_atoms, *self.shape) if self.per_atom else self.shape

    def plain(self, values: Any) -> np.ndarray:
        """[..., 3, 3] of symmetric tensors become Voigt's [..., 6] (xx, yy, zz, yz, xz, xy); anything else stays."""
        numbers = np.asarray(values, dtype=float)
        return np.asarray(full_3x3_to_voigt_6_stress(numbers)) if self.rank == 2 else numbers

    def components(self, values: Any, num_atoms: int) -> np.ndarray:
        """What is compared, one by one: the plain numbers of a structure with so many atoms, per atom where they grow with it."""
        numbers = self.plain(values)
        return numbers / num_atoms if self.extensive else numbers


LABELS = {
    label.name: label
    for label in (
        Label(
            "energy",
            rank=0,
            per_atom=False,
            unit="eV",
            named=("REF_energy",),
            found=("calculator free_energy", "calculator energy"),
            extensive=True,
            as_large_as="forces",
        ),
        Label("forces", rank=1, per_atom=True, unit="eV/Å", named=("REF_forces",), found=("calculator forces",), least=1e-2),
        Label(
            "stress",
            rank=2,
            per_atom=False,
            unit="eV/Å³",
            named=("REF_stress", "REF_virial", "REF_virials"),
            found=("calculator stress", "virial", "virials"),
            per_volume=True,
            least=1e-3,
        ),
    )
}
EVER = ("energy", "forces", "stress")  # known to every version: their places in hashes of data and in shards are fixed
