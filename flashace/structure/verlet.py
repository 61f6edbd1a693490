"""`Atoms` in, `Graph` out, for a structure that moves little from call to call: neighbours are looked for now and then only."""

from typing import NamedTuple

import numpy as np
from ase import Atoms

from flashace.errors import FlashACEError
from flashace.structure.graph import Graph
from flashace.structure.neighbors import check_structure, find_pairs


class VerletList:
    """`build_graph` for a structure that moves little from call to call, as in molecular dynamics. The graph is the same, to rounding.

    Pairs closer than `r_max` + `skin` Å are kept (Verlet, Phys. Rev. 159, 98, 1967) and looked through at each call, until one that is not
    among them may have come closer than `r_max`. A cell that deforms, as in a barostat, may take its atoms with it. Where a skin would be
    too dense, there is none. Raises FlashACEError as `build_graph` does.
    """

    def __init__(self, r_max: float, skin: float) -> None:
        self.r_max, self.skin = r_max, skin
        self._candidates: _Candidates | None = None

    def __call__(self, atoms: Atoms) -> Graph:
        candidates = self._candidates  # another thread may replace them meanwhile
        if candidates is None or not candidates.hold_for(atoms, self.r_max):
            check_structure(atoms)
            self._candidates = candidates = self._find(atoms)
        _, _, i, j, shifts = candidates
        edge_vec = atoms.positions[j] - atoms.positions[i]
        if atoms.pbc.any():
            edge_vec += shifts @ atoms.cell.array
        near = np.flatnonzero(np.einsum("ec,ec->e", edge_vec, edge_vec) < self.r_max**2)
        return Graph.of(atoms.numbers, atoms.cell.array, i[near], j[near], edge_vec[near])

    def _find(self, atoms: Atoms) -> "_Candidates":
        reach = self.r_max + self.skin
        try:
            i, j, shifts, _ = find_pairs(atoms, reach)
        except FlashACEError:
            reach = self.r_max
            i, j, shifts, _ = find_pairs(atoms, reach)
        before = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        return _Candidates(before, reach, i.astype(np.int32), j.astype(np.int32), shifts)


class _Candidates(NamedTuple):
    """All pairs that were closer than `reach`."""

    before: Atoms
    reach: float
    i: np.ndarray
    j: np.ndarray
    shifts: np.ndarray

    def hold_for(self, atoms: Atoms, r_max: float) -> bool:
        """Whether no other pair can be closer than `r_max` now."""
        before = self.before
        if len(atoms) != len(before) or (atoms.pbc != before.pbc).any() or (atoms.numbers != before.numbers).any():
            return False
        moved, smallest = atoms.positions - before.positions, 1.0
        if (atoms.cell.array != before.cell.array).any():
            check_structure(atoms)
            try:
                deformation = np.linalg.solve(before.cell.array, atoms.cell.array)
                smallest = np.linalg.svd(deformation, compute_uv=False)[-1]  # no vector shrinks by more
            except np.linalg.LinAlgError:  # no volume
                return False
            moved = atoms.positions - before.positions @ deformation
        farthest = np.sqrt(np.einsum("ic,ic->i", moved, moved).max())
        return bool(smallest * self.reach - 2 * farthest > r_max)
