"""Two structures in; the step between them, where it is one of those of which difference quotients are made, out."""

import numpy as np
from ase import Atoms

LARGEST = 2.1e-3  # Å, or strain: between -0.001 and +0.001, and a little for rounding


def tiny_step(before: Atoms, after: Atoms) -> str | None:
    """In words: one coordinate that moved by 0.002 Å at most, or a cell that was strained by 0.002 at most, with all atoms along.

    Dynamics and relaxations move more than one coordinate, and atoms within the cell.
    """
    if len(before) != len(after):
        return None
    if (before.cell.array == after.cell.array).all():
        moved = (after.positions - before.positions).ravel()
        which = np.flatnonzero(moved)
        step = np.abs(moved[which]).max(initial=0.0)
        return f"{step:.2g} Å in one coordinate" if len(which) == 1 and step <= LARGEST else None
    if before.cell.rank < 3:
        return None
    deformation = np.linalg.solve(before.cell.array, after.cell.array)
    strain = np.abs(deformation - np.eye(3)).max()
    along = np.abs(after.positions - before.positions @ deformation).max() < 1e-9
    return f"a strain of {strain:.2g}" if strain <= LARGEST and along else None
