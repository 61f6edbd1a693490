"""A structure in; an error that says what is broken in it out."""

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from flashace.data.origin import Fault, FrameError, Origin
from flashace.structure.neighbors import FARTHEST

FLATTEST = 1e-3  # Å


def check_structure(atoms: Atoms, origin: Origin) -> None:
    """Raises FrameError for a frame without atoms, with unknown elements, or with numbers that cannot be positions or lattice vectors."""
    if len(atoms) == 0:
        raise FrameError(Fault(origin, "empty", "atoms", "expected at least one atom, got an empty frame", "remove it"))
    mend = "repair or remove this frame"
    for name, numbers in (("positions", atoms.positions), ("cell", atoms.cell.array)):
        if not np.isfinite(numbers).all():
            raise FrameError(Fault(origin, "not finite", name, f"expected finite {name}, got NaN or infinity", mend))
        if (np.abs(numbers) > FARTHEST).any():
            text = f"expected {name} of at most {FARTHEST:g} Å, got {np.abs(numbers).max():g}"
            raise FrameError(Fault(origin, "too large", name, text, mend))
    if _collapsed(atoms.cell.array):
        text = f"expected lattice vectors that span a cell, got {atoms.cell.array.tolist()}, which is flatter than {FLATTEST:g} Å"
        raise FrameError(Fault(origin, "collapsed", "cell", text, mend))
    unknown = atoms.numbers[(atoms.numbers < 1) | (atoms.numbers >= len(chemical_symbols))]
    if len(unknown):
        symbol = " (the symbol X)" if unknown[0] == 0 else ""
        text = f"expected atomic numbers from 1 to {len(chemical_symbols) - 1}, got {unknown[0]}{symbol}"
        raise FrameError(Fault(origin, "unknown", "elements", text, "correct or remove this frame"))


def _collapsed(cell: np.ndarray) -> bool:
    """Whether the lattice vectors, those of length zero aside, depend on each other or nearly so."""
    longest = float(np.sqrt((cell * cell).sum(1).max()))
    if abs(np.linalg.det(cell)) > FLATTEST * longest**2 > 0:  # no height is less than volume / longest²
        return False
    vectors = cell[cell.any(1)]
    return len(vectors) > 0 and float(np.linalg.svd(vectors, compute_uv=False).min()) < FLATTEST
