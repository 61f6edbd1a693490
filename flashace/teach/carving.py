"""A large structure and one of its atoms in; a small one with the same surroundings of that atom, which DFT can afford, out.

Where the structure repeats itself (a crystal, hot or with defects, or a slab), a small periodic cell is cut whose opposite faces fit each
other. Elsewhere (molecules, liquids, glasses, particles) a cluster in vacuum is cut, in which molecules stay whole. Broken bonds are not
saturated, and nothing is relaxed: a label of what was cut is right for what was cut.
"""

from itertools import pairwise, product
from typing import NamedTuple

import networkx as nx
import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from flashace.structure.neighbors import find_pairs
from flashace.teach.sampling.seed import Seed, look_at

VACUUM = 8.0  # Å on each side of a cluster
STEP = 0.1  # Å, of the lengths that are tried for a side of the cell
LONGER = 8.0  # Å, at most, beyond what has to be in it: a side of the cell
FITS = 0.3  # of the distance of nearest neighbours: how far atoms may be, in the mean, from where a side of the cell repeats them
LIKE_CHANCE = 0.2  # less agreement of the elements than chance gives: sodium where chlorine was
OVERLAP = 0.8  # of the shortest distance in the structure: closer atoms at opposite faces are one
FACES = np.linspace(-0.5, 0.5, 9)  # of the distance of nearest neighbours: places of a face that are tried
WHOLE = 60  # atoms of a molecule that is not cut
INTACT = "intact"  # array: whether an atom has all its neighbours, at their places


class _Around(NamedTuple):
    """Atoms around one of them, through periodic images; that one first."""

    indices: np.ndarray  # [A]
    vectors: np.ndarray  # [A, 3] Å from that one


def carve(atoms: Atoms, centre: int, radius: float, r_max: float) -> Atoms:
    """The surroundings of atom `centre`, up to `radius` Å at least; the structure itself where that would not be smaller.

    Arrays and `info` come along. The new array `intact` marks atoms whose neighbours within `r_max` Å are all there, at the same places;
    `info` says in `carved` what was done, and in `centre` which atom it was done for.
    """
    seed = look_at(atoms)
    spacing = _spacing(atoms, centre, radius)
    vectors = None if seed.shape in ("molecule", "molecules") else _small_cell(atoms, seed, centre, radius, spacing)
    if vectors is None:
        kept = _ball(seed, centre, radius)
        piece = _cluster(atoms, kept)
        what = "a cluster in vacuum"
    else:
        kept = _in_the_cell(seed, centre, vectors, spacing)
        piece = _periodic(atoms, kept, vectors)
        what = "a small periodic cell"
    if len(piece) >= len(atoms):
        piece, kept, what = atoms.copy(), _Around(np.arange(len(atoms)), atoms.positions), ""
    piece.arrays[INTACT] = _intact(atoms, piece, kept.indices, r_max)
    if what:
        place = int(np.flatnonzero(kept.indices == centre)[0])
        piece.info |= {"carved": f"{what}: {piece.symbols} of {len(atoms)} atoms, around atom {centre}", "centre": place}
    return piece


def near_centre(atoms: Atoms, centre: int, radius: float) -> np.ndarray:
    """The indices of atoms within `radius` Å of the one, itself included."""
    return np.unique(_around(atoms, centre, max(radius, 0.0)).indices)


def _around(atoms: Atoms, centre: int, radius: float) -> _Around:
    vectors = atoms.positions - atoms.positions[centre]
    reach = np.zeros(3, dtype=int)
    if atoms.pbc.any():
        cell = atoms.cell.complete().array
        fractional = np.linalg.solve(cell.T, vectors.T).T
        vectors = vectors - np.where(atoms.pbc, np.round(fractional), 0.0) @ cell
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        reach = np.where(atoms.pbc & (heights < 2 * radius), np.ceil(radius / heights), 0).astype(int)
    indices, found = [], []
    for shift in product(*(range(-n, n + 1) for n in reach)):
        images = vectors + (np.array(shift) @ atoms.cell.array if any(reach) else 0.0)
        inside = np.flatnonzero((images**2).sum(axis=1) <= radius**2)
        indices.append(inside)
        found.append(images[inside])
    all_vectors, all_indices = np.concatenate(found), np.concatenate(indices)
    order = np.argsort((all_vectors**2).sum(axis=1), kind="stable")
    return _Around(all_indices[order], all_vectors[order])


def _spacing(atoms: Atoms, centre: int, radius: float) -> float:
    """Å: the median distance of an atom to its nearest neighbour, there."""
    cloud = _around(atoms, centre, radius).vectors
    return float(np.median(cKDTree(cloud).query(cloud, 2)[0][:, 1])) if len(cloud) > 1 else radius


def _small_cell(atoms: Atoms, seed: Seed, centre: int, radius: float, spacing: float) -> np.ndarray | None:
    """[3, 3] Å: lattice vectors along those of the structure, each shortened to where the structure repeats itself; None where it nowhere
    does, or where nothing can be shortened. A direction with a vacuum keeps its vector, and so does one that is short already."""
    lengths = atoms.cell.lengths()
    least = 2 * radius + spacing
    cut = [axis for axis in range(3) if seed.dense[axis] and lengths[axis] > least]
    cloud = _around(atoms, centre, 2 * radius + least + LONGER)
    tree, kinds = cKDTree(cloud.vectors), atoms.numbers[cloud.indices]
    near = (cloud.vectors**2).sum(axis=1) <= radius**2
    chance = float(sum((kinds == z).mean() ** 2 for z in np.unique(kinds)))
    vectors = np.array(atoms.cell.array)
    for axis in cut:
        tried = np.arange(least, min(least + LONGER, lengths[axis] - STEP), STEP)
        apart, agree = np.ones((2, len(tried)))
        for n, length in enumerate(tried):
            distances, found = tree.query(cloud.vectors[near] + length * atoms.cell.array[axis] / lengths[axis])
            apart[n], agree[n] = distances.mean() / spacing, (kinds[found] == kinds[near]).mean()
        fits = (apart < FITS) & (agree > chance - LIKE_CHANCE)
        fits &= agree >= 0.9 * agree[fits].max(initial=0.0)
        if fits.any():
            first = int(np.flatnonzero(fits)[0])
            end = first + int(np.argmin(np.append(fits[first:], False)))
            vectors[axis] *= tried[first + int(apart[first:end].argmin())] / lengths[axis]
    shortened = [axis for axis in range(3) if not np.allclose(vectors[axis], atoms.cell.array[axis])]
    return vectors if shortened else None


def _in_the_cell(seed: Seed, centre: int, vectors: np.ndarray, spacing: float) -> _Around:
    """The atoms in that cell around the centre, its faces where the fewest atoms are too close to those at the opposite face; of two that
    are, one is left out."""
    cloud = _around(seed.atoms, centre, float(np.linalg.norm(vectors, axis=1).sum()))
    fractional = np.linalg.solve(vectors.T, cloud.vectors.T).T
    shortest = cKDTree(cloud.vectors).query(cloud.vectors, 2)[0][:, 1].min()
    lengths = np.linalg.norm(vectors, axis=1)
    cut = [axis for axis in range(3) if not np.allclose(vectors[axis], seed.atoms.cell.array[axis])]
    face = np.zeros(3)

    def chosen(face: np.ndarray) -> np.ndarray:
        inside = np.ones(len(fractional), dtype=bool)
        for axis in range(3):
            f = fractional[:, axis] - face[axis]
            inside &= (f >= -0.5) & (f < 0.5)
        return np.flatnonzero(inside)

    def overlaps(which: np.ndarray) -> np.ndarray:
        """[P, 2] pairs of `which` that are too close."""
        piece = Atoms(numbers=np.ones(len(which)), positions=cloud.vectors[which], cell=vectors, pbc=True)
        i, j, _, _ = find_pairs(piece, OVERLAP * shortest)
        return np.stack([i, j], axis=1)[i < j]

    expected = len(seed.atoms) * abs(np.linalg.det(vectors)) / seed.atoms.get_volume()
    for axis in cut:
        tried = [face + np.eye(3)[axis] * part * spacing / lengths[axis] for part in FACES]
        faults = []
        for each in tried:
            which = chosen(each)
            pairs = len(overlaps(which))
            faults.append(pairs + abs(len(which) - pairs - expected))
        face = tried[int(np.argmin(faults))]
    which = chosen(face)
    gone = {int(max(pair)) for pair in overlaps(which).tolist()}  # the farther one from the centre, which comes first
    which = np.array([n for place, n in enumerate(which) if place not in gone])
    return _Around(cloud.indices[which], cloud.vectors[which])


def _ball(seed: Seed, centre: int, radius: float) -> _Around:
    """The atoms within the radius, and the rest of each molecule that has one of them."""
    ball = _around(seed.atoms, centre, radius)
    known = {(i, *np.round(v, 3)) for i, v in zip(ball.indices.tolist(), ball.vectors.tolist(), strict=True)}
    indices, vectors = [ball.indices], [ball.vectors]
    molecule_of = {i: members for members in map(sorted, nx.connected_components(seed.bonds)) for i in members if len(members) <= WHOLE}
    for i, vector in zip(ball.indices.tolist(), ball.vectors, strict=True):
        for other in molecule_of.get(i, ()):
            at = vector + seed.atoms.positions[other] - seed.atoms.positions[i]  # of a molecule that is whole
            if (name := (other, *np.round(at, 3).tolist())) not in known:
                known.add(name)
                indices.append(np.array([other]))
                vectors.append(at[None])
    return _Around(np.concatenate(indices), np.concatenate(vectors))


def _cluster(atoms: Atoms, kept: _Around) -> Atoms:
    piece = _taken(atoms, kept)
    piece.set_cell(np.ptp(kept.vectors, axis=0) + 2 * VACUUM)
    piece.pbc = False
    piece.center()
    return piece


def _periodic(atoms: Atoms, kept: _Around, vectors: np.ndarray) -> Atoms:
    piece = _taken(atoms, kept)
    piece.set_cell(vectors)
    piece.pbc = atoms.pbc
    piece.wrap()
    return piece


def _taken(atoms: Atoms, kept: _Around) -> Atoms:
    piece = atoms[kept.indices]
    piece.positions = kept.vectors
    return piece


def _intact(atoms: Atoms, piece: Atoms, indices: np.ndarray, r_max: float) -> np.ndarray:
    """[P] of the piece, whose atoms were `indices` [P] of the structure."""
    before = _neighbourhoods(atoms, np.arange(len(atoms)), r_max)
    after = _neighbourhoods(piece, indices, r_max)
    return np.array([_same(own, before[index]) for own, index in zip(after, indices.tolist(), strict=True)])


def _neighbourhoods(atoms: Atoms, names: np.ndarray, r_max: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each atom the names and vectors of its neighbours, in one order whatever theirs was."""
    i, j, _, vectors = find_pairs(atoms, r_max)
    order = np.lexsort((*np.round(vectors, 3).T, names[j], i))
    first = np.searchsorted(i, np.arange(len(atoms) + 1))
    name, vectors = names[j][order], vectors[order]
    return [(name[a:b], vectors[a:b]) for a, b in pairwise(first)]


def _same(own: tuple[np.ndarray, np.ndarray], before: tuple[np.ndarray, np.ndarray]) -> bool:
    return np.array_equal(own[0], before[0]) and bool(np.allclose(own[1], before[1], atol=1e-6))
