"""Bonds of a molecule in; those that are in no ring, at which a part of it can be turned, or moved away, out."""

from dataclasses import dataclass

import networkx as nx
import numpy as np
from ase import Atoms
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class Bond:
    """Without it the molecule falls into two parts: `moving` is the smaller one, with `tip` in it, and `root` stays."""

    root: int
    tip: int
    moving: tuple[int, ...]
    turns: bool  # both ends have a further neighbour, so that turning changes the structure

    def turned(self, atoms: Atoms, angle: float) -> Atoms:
        """A copy in which the moving part is turned around the bond, by `angle` in degrees."""
        copy = atoms.copy()
        axis = atoms.positions[self.tip] - atoms.positions[self.root]
        rotation = Rotation.from_rotvec(np.radians(angle) * axis / np.linalg.norm(axis))
        moving = list(self.moving)
        copy.positions[moving] = atoms.positions[self.tip] + rotation.apply(atoms.positions[moving] - atoms.positions[self.tip])
        return copy

    def stretched(self, atoms: Atoms, factor: float) -> Atoms:
        """A copy in which the bond has `factor` times its length; the moving part moves as it is."""
        copy = atoms.copy()
        copy.positions[list(self.moving)] += (factor - 1) * (atoms.positions[self.tip] - atoms.positions[self.root])
        return copy

    def name(self, atoms: Atoms) -> str:
        """ "C0-O3"."""
        return "-".join(f"{atoms.symbols[i]}{i}" for i in (self.root, self.tip))


def acyclic_bonds(bonds: nx.Graph) -> list[Bond]:
    """Of the bonds of a molecule those that are in no ring, in the order of their atoms."""
    found = []
    for a, b in sorted(tuple(sorted((int(i), int(j)))) for i, j in nx.bridges(bonds)):
        cut = nx.restricted_view(bonds, [], [(a, b)])
        parts = {end: nx.node_connected_component(cut, end) for end in (a, b)}
        root, tip = sorted((a, b), key=lambda end: -len(parts[end]))
        found.append(Bond(root, tip, tuple(sorted(map(int, parts[tip]))), min(len(part) for part in parts.values()) > 1))
    return found
