"""Training frames in; reference energies, energy scale, neighbour count and the units of the loss out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from flashace.data.frames import Labelled
from flashace.data.labels import LABELS
from flashace.errors import FlashACEError
from flashace.structure.coordination import count_neighbours
from flashace.structure.graph import Graph

BLOCK = 10_000  # rows of least squares held at once
BOUND, WEAK_BOND = 5.0, 2.0  # of `energy_bound`; the second in eV
RANK = 1e-9  # singular values below this part of the largest one are zero


LossUnits = dict[str, float]  # label -> what counts as an error of one, in its unit (energies in eV/atom)


@dataclass(frozen=True)
class ReferenceEnergies:
    """E0 per element in eV, one sentence that says where they came from, and whether they are the energies of atoms alone."""

    values: dict[str, float]
    origin: str
    free_atoms: bool = True


def elements_of(frames: Sequence[Labelled]) -> list[str]:
    """The elements of all frames, by atomic number."""
    return [chemical_symbols[z] for z in sorted({int(z) for frame in frames for z in set(frame.atoms.numbers)})]


def reference_energies(frames: Sequence[Labelled], given: Mapping[str, float], origin: str) -> ReferenceEnergies:
    """The given energies, or least squares over the frames where none are given.

    Where the frames cannot tell elements apart (all of one composition, say), the solution with the smallest energies is taken, and
    `origin` says so and names them. Raises FlashACEError where some elements have a given energy and others do not.
    """
    unknown = [symbol for symbol in given if symbol not in chemical_symbols]
    if unknown:
        raise FlashACEError(f"atomic energies ({origin}): expected symbols of elements, got {', '.join(unknown)}; correct them")
    elements = elements_of(frames)
    missing = [symbol for symbol in elements if symbol not in given]
    if given and missing:
        raise FlashACEError(
            f"atomic energies ({origin}): expected one for each of {', '.join(elements)}, {', '.join(missing)} missing; "
            "add them, or give none at all to have them solved by least squares"
        )
    if given:
        return ReferenceEnergies({symbol: float(given[symbol]) for symbol in elements}, origin)
    return _solved(elements, frames)


def _solved(elements: list[str], frames: Iterable[Labelled]) -> ReferenceEnergies:
    numbers = [atomic_numbers[symbol] for symbol in elements]
    rows = np.empty((0, len(elements) + 1))  # counts of elements, and the energy
    block, num_frames = [], 0
    for frame in frames:
        if frame.energy is not None:
            block.append([*np.bincount(frame.atoms.numbers, minlength=len(chemical_symbols))[numbers], frame.energy])
            num_frames += 1
        if len(block) == BLOCK:  # the triangle has the same solution
            rows, block = np.asarray(np.linalg.qr(np.vstack([rows, block]), mode="r")), []
    counts, energies = np.split(np.vstack([rows, *block]), [-1], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(counts, energies[:, 0], rcond=RANK)
    origin = f"least squares over {num_frames} frames, rank {rank} of {len(elements)}"
    mixed = [", ".join(group) for group in indistinct_elements(counts, elements)]
    if mixed:
        origin += f"; these compositions cannot tell apart {' nor '.join(mixed)}, so the smallest solution is taken"
    digits = 9  # neV: what LAPACK leaves behind that depends on where arrays lie in memory
    values = {symbol: round(float(energy), digits) for symbol, energy in zip(elements, solution, strict=True)}
    return ReferenceEnergies(values, origin, free_atoms=False)


def indistinct_elements(counts: np.ndarray, elements: Sequence[str]) -> list[list[str]]:
    """Groups of elements whose energies can be traded against each other without any total changing: the null space of counts
    [frames, elements], split into the sets that it ties together."""
    _, singular, basis = np.linalg.svd(counts, full_matrices=True)
    rank = int((singular > RANK * max(singular, default=0.0)).sum())
    null = basis[rank:].T @ basis[rank:]
    tied = np.abs(null) > 1e-9
    groups: list[set[int]] = []
    for i in np.flatnonzero(tied.diagonal()):
        new = {i, *np.flatnonzero(tied[i])}
        groups = [g for g in groups if not g & new] + [new.union(*(g for g in groups if g & new))]
    return [[elements[i] for i in sorted(group)] for group in groups]


def loss_units(frames: Sequence[Labelled]) -> LossUnits:
    """Root mean squares of the components of each label in the training frames, or what the table says instead.

    An energy error of one is the force unit times 1 Å: an error, per atom, as large as the labels, as it is of the other two.
    """
    sums = {name: np.zeros(2) for name, label in LABELS.items() if not label.as_large_as}  # of squares, and their number
    for frame in frames:
        for name, total in sums.items():
            values = frame.label(name)
            if values is not None:
                total += np.square(values).sum(), np.size(values)
    units = {name: _rms(total, LABELS[name].least) for name, total in sums.items()}
    return {name: units[label.as_large_as or name] for name, label in LABELS.items()}


def energy_bound(frames: Iterable[Labelled], atomic_energies: Mapping[str, float]) -> float:
    """What the network may give an atom, in eV: five times the largest energy per atom of these frames, beyond that of their atoms alone.

    A fifth of it is not felt (`saturated`). Energies from least squares have no atoms alone in them and tell nothing of how strongly atoms
    are bound, so no less than five times 2 eV.
    """
    beyond = [
        abs(f.energy - sum(map(atomic_energies.__getitem__, f.atoms.get_chemical_symbols()))) / len(f.atoms)
        for f in frames
        if f.energy is not None
    ]
    return BOUND * max([*beyond, WEAK_BOND])


def closest_pairs(graph: Graph) -> dict[tuple[int, int], float]:
    """{(6, 14): 1.3, …} in Å: the shortest distance of each pair of atomic numbers, the smaller one first, among the edges of a graph."""
    pairs = np.sort(graph.numbers[graph.edge_index].numpy(), axis=0)
    r = graph.edge_vec.double().norm(dim=1).numpy()
    return {(a, b): float(r[(pairs[0] == a) & (pairs[1] == b)].min()) for a, b in np.unique(pairs, axis=1).T.tolist()}


class Neighbours(NamedTuple):
    """What `neighbour_statistics` finds."""

    average: float  # neighbours per atom, at least 1
    shortest: dict[str, float]  # {"C-Si": 1.3, …} in Å, of each pair of elements within the cutoff
    coordination: dict[str, tuple[float, float]]  # {"C-Si": (0.4, 4.3), …}: least and most Si around a C, as `count_neighbours` has it


def neighbour_statistics(
    graphs: Iterable[Graph],
    elements: Sequence[str],
    r_max: float,
    exponent: int,
    shortest: Mapping[str, float],
    coordination: Mapping[str, Sequence[float]],
) -> Neighbours:
    """Over all graphs, each looked at once, and what was known before: `shortest` and `coordination` as in `Neighbours`.

    `elements` are those of the graphs, by atomic number; `r_max` and `exponent` those of the envelope. An atom without neighbours does not
    count for the coordination: the model has its energy right without learning.
    """
    edges = atoms = 0
    closest = {(atomic_numbers[a], atomic_numbers[b]): r for (a, b), r in ((pair.split("-"), r) for pair, r in shortest.items())}
    names = [f"{a}-{b}" for a in elements for b in elements]
    ends = np.array([coordination.get(name, (np.inf, 0.0)) for name in names]).reshape(len(elements), len(elements), 2)
    known = np.array([atomic_numbers[symbol] for symbol in elements])
    for graph in graphs:
        edges, atoms = edges + graph.edge_vec.shape[0], atoms + graph.numbers.shape[0]
        for pair, r in closest_pairs(graph).items():
            closest[pair] = min(r, closest.get(pair, r))
        (i, j), species = graph.edge_index.numpy(), np.searchsorted(known, graph.numbers.numpy())
        squares = graph.edge_vec.double().square().sum(1).numpy()
        numbers = count_neighbours(i, species[j], squares, len(species), len(elements), r_max, exponent)
        for s in np.unique(species[i]):
            of_this = numbers[(species == s) & numbers.any(axis=1)]
            ends[s, :, 0] = np.minimum(ends[s, :, 0], of_this.min(axis=0))
            ends[s, :, 1] = np.maximum(ends[s, :, 1], of_this.max(axis=0))
    ends[..., 0] = np.minimum(ends[..., 0], ends[..., 1])  # of an element that never has a neighbour, nothing is known: 0 to 0
    return Neighbours(
        average=max(edges / atoms, 1.0),
        shortest={f"{chemical_symbols[a]}-{chemical_symbols[b]}": closest[a, b] for a, b in sorted(closest)},
        coordination={name: (float(a), float(b)) for name, (a, b) in zip(names, ends.reshape(-1, 2), strict=True)},
    )


def _rms(sums: np.ndarray, least: float) -> float:
    squares, number = sums
    return max(float(np.sqrt(squares / number)), least) if number else 1.0
