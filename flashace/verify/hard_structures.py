"""A structure in; structures of its elements that no training data has, out.

Pairs and trimers, the structure opened by a gap, an atom pulled off, atoms removed, a gas, packings without order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from flashace.structure.neighbors import build_graph

SEED = 0
MOST_ATOMS = 64  # of a structure
PAIR_STRUCTURES, TRIMERS = 160, 60
GUESS = 0.8  # of what is usual, where it is not known how close atoms come

Pair = tuple[int, int]  # atomic numbers, the smaller first


class Hard(NamedTuple):
    """A structure that no training data has."""

    name: str
    atoms: Atoms


def bonds(symbols: Iterable[str]) -> dict[Pair, float]:
    """Å: the sum of covalent radii of each pair."""
    numbers = sorted(atomic_numbers[symbol] for symbol in symbols)
    return {(a, b): float(covalent_radii[a] + covalent_radii[b]) for a, b in combinations_with_replacement(numbers, 2)}


def short_distances(symbols: Iterable[str], known: Mapping[str, float]) -> dict[Pair, float]:
    """Å for each pair of elements: the shortest that is `known` ({"C-Si": 1.3}, of training), and the sum of covalent radii for others."""
    return {pair: known.get(_named(pair), bond) for pair, bond in bonds(symbols).items()}


def guessed_distances(atoms: Atoms) -> dict[Pair, float]:
    """Å for each pair of elements, where training is not known: 0.8 of the distance in the structure, or of the sum of covalent radii.

    The longer of both: a metal comes closer than its covalent radii say, a noble gas does not come as close.
    """
    usual = bonds(set(atoms.symbols))
    graph = build_graph(atoms, 2 * max(usual.values()))
    numbers, r = np.sort(graph.numbers.numpy()[graph.edge_index.numpy()], axis=0), graph.edge_vec.norm(dim=1).numpy()
    closest = {(a, b): r[(numbers[0] == a) & (numbers[1] == b)].min(initial=np.inf) for a, b in usual}
    return {pair: GUESS * (bond if np.isinf(closest[pair]) else max(bond, float(closest[pair]))) for pair, bond in usual.items()}


def hard_structures(frames: Sequence[Atoms], short: Mapping[Pair, float], longest: float) -> list[Hard]:
    """About a hundred pairs, 60 trimers and 30 structures of at most 64 atoms for each of `frames`; the same ones for the same frames.

    No pair is closer than `short` says, but for those that are so in the frames, or have no room in a packing. Pairs reach to `longest` Å.
    """
    random = np.random.default_rng(SEED)
    found = [*_pairs(short, longest), *_trimers(short, longest, random)]
    for frame in frames:
        atoms = _of_fair_size(frame)
        found += [*_opened(atoms), *_pulled_off(atoms), *_thinned(atoms, random), *_disordered(atoms, short, random)]
    return found


def _named(pair: Pair) -> str:
    return "-".join(chemical_symbols[z] for z in pair)


def distance_table(short: Mapping[Pair, float]) -> np.ndarray:
    """[119, 119] Å by atomic numbers."""
    table = np.zeros((len(chemical_symbols),) * 2)
    for (a, b), r in short.items():
        table[a, b] = table[b, a] = r
    return table


# --- few atoms ---


def _pairs(short: Mapping[Pair, float], longest: float) -> Iterator[Hard]:
    number = int(np.clip(PAIR_STRUCTURES // len(short), 4, 16))
    for pair, least in short.items():
        for r in np.linspace(least, max(longest, least), number, endpoint=False):
            yield Hard(f"{_named(pair)} at {r:.2f} Å", Atoms(pair, [[0, 0, 0], [r, 0, 0]]))


def _trimers(short: Mapping[Pair, float], longest: float, random: np.random.Generator) -> Iterator[Hard]:
    """Any elements, distances and angles."""
    elements, table = sorted({z for pair in short for z in pair}), distance_table(short)
    for _ in range(TRIMERS):
        a, b, c = random.choice(elements, 3)
        for _ in range(100):
            first, second = (table[b, z] + random.random() ** 2 * max(longest - table[b, z], 0.0) for z in (a, c))
            angle = np.arccos(random.uniform(-1, 1))
            ends = np.array([[first, 0, 0], [second * np.cos(angle), second * np.sin(angle), 0]])
            if np.linalg.norm(ends[0] - ends[1]) >= table[a, c]:
                symbols = "-".join(chemical_symbols[z] for z in (a, b, c))
                name = f"{symbols} at {first:.2f} and {second:.2f} Å, {np.degrees(angle):.0f}°"
                yield Hard(name, Atoms([b, a, c], [[0, 0, 0], *ends]))
                break


# --- the structure, damaged ---


def _of_fair_size(frame: Atoms) -> Atoms:
    """Without constraints and calculator: a small cell repeated, of a large structure the atoms around one of them."""
    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    while atoms.pbc.any():
        heights = np.where(atoms.pbc, _heights(atoms), np.inf)
        repeats = np.where(np.arange(3) == heights.argmin(), 2, 1)
        if 2 * len(atoms) > MOST_ATOMS or heights.min() > 10.0:
            break
        atoms = atoms.repeat(repeats)
    if len(atoms) > MOST_ATOMS:
        middle = np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1).argmin()
        nearest = np.argsort(atoms.get_distances(middle, range(len(atoms)), mic=bool(atoms.pbc.any())), kind="stable")[:MOST_ATOMS]
        vectors = atoms.get_distances(middle, nearest, mic=bool(atoms.pbc.any()), vector=True)
        atoms = Atoms(atoms.numbers[nearest], vectors)
    return atoms


def _heights(atoms: Atoms) -> np.ndarray:
    """[3] Å between opposite faces of the cell."""
    return 1 / np.linalg.norm(np.linalg.inv(atoms.cell.complete().array), axis=0)


def _opened(atoms: Atoms) -> Iterator[Hard]:
    """A crystal where its planes are farthest apart, a molecule in its middle; by a growing gap."""
    if len(atoms) < 2:
        return
    for gap in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0):
        opened, _ = _with_gap(atoms, gap)
        yield Hard(f"{atoms.get_chemical_formula()} opened by {gap:g} Å", opened)


def _with_gap(atoms: Atoms, gap: float) -> tuple[Atoms, np.ndarray]:
    """And the unit vector along which it opens."""
    opened = atoms.copy()
    if atoms.pbc.any():
        axis = int(np.where(atoms.pbc, _heights(atoms), 0.0).argmax())
        cell = atoms.cell.complete().array
        normal = np.linalg.inv(cell)[:, axis]
        normal /= np.linalg.norm(normal)
        along = (atoms.positions @ np.linalg.inv(cell))[:, axis] % 1.0
        order = np.sort(along)
        spaces = np.diff(order, append=order[0] + 1.0)
        cut = (order[spaces.argmax()] + spaces.max() / 2) % 1.0
        opened.positions += ((along - cut) % 1.0 - (atoms.positions @ np.linalg.inv(cell))[:, axis])[:, None] * cell[axis]
        longer = atoms.cell.array.copy()
        longer[axis] += gap * normal
        opened.set_cell(longer)
        return opened, normal
    centred = atoms.positions - atoms.positions.mean(axis=0)
    normal = np.linalg.svd(centred)[2][0]
    order = np.argsort(centred @ normal, kind="stable")
    opened.positions[order[len(atoms) // 2 :]] += gap * normal
    return opened, normal


def _pulled_off(atoms: Atoms) -> Iterator[Hard]:
    """The outermost atom leaves the surface, or the molecule."""
    if len(atoms) < 2:
        return
    surface, normal = _with_gap(atoms, 12.0) if atoms.pbc.any() else (atoms, _with_gap(atoms, 0.0)[1])
    top = int((surface.positions @ normal).argmax())
    for distance in (0.5, 1.0, 2.0, 3.0):
        pulled = surface.copy()
        pulled.positions[top] += distance * normal
        yield Hard(f"{atoms.get_chemical_formula()}, an atom pulled off by {distance:g} Å", pulled)


def _thinned(atoms: Atoms, random: np.random.Generator) -> Iterator[Hard]:
    for tenth in range(1, 10):
        left = round((1 - tenth / 10) * len(atoms))
        if 0 < left < len(atoms):
            keep = np.sort(random.permutation(len(atoms))[:left])
            yield Hard(f"{atoms.get_chemical_formula()} with {10 * tenth} % of its atoms removed", atoms[keep])


# --- without order ---


def _disordered(atoms: Atoms, short: Mapping[Pair, float], random: np.random.Generator) -> Iterator[Hard]:
    """Its elements as a gas, and as packings at half, the whole and one and a half times its density."""
    table = distance_table(short)
    size = float((table[atoms.numbers[:, None], atoms.numbers] ** 3).mean())  # Å³, of a cube in which an atom has its place
    room = 4 * size  # about that of liquids
    if atoms.pbc.all():
        room = min(abs(atoms.cell.volume) / len(atoms), 2 * room)
    for n, space in ((20, 20 * size), (20, 60 * size)):
        yield Hard(f"a gas with {space:.0f} Å³ per atom", _packed(atoms.numbers, n, space, table, random))
    for density in (0.5, 1.0, 1.5):
        name = f"a packing with {density:g} times the density"
        yield Hard(name, _packed(atoms.numbers, 40, room / density, table, random))


def _packed(numbers: np.ndarray, n: int, space: float, table: np.ndarray, random: np.random.Generator) -> Atoms:
    """`n` atoms, as mixed as `numbers` are, with `space` Å³ each in a periodic cube; pairs are pushed apart to the distances of `table`."""
    kinds = random.permutation(np.resize(random.permutation(numbers), n))
    side = (n * space) ** (1 / 3)
    positions = random.random((n, 3)) * side
    wanted = table[kinds[:, None], kinds]
    for _ in range(300):
        vec = positions[:, None] - positions
        vec -= side * np.round(vec / side)
        r = np.linalg.norm(vec, axis=2) + np.eye(n) * 1e9
        overlap = np.maximum(wanted * 1.01 - r, 0.0)
        if not overlap.any():
            break
        positions += 0.45 * (vec * (overlap / np.maximum(r, 1e-3))[..., None]).sum(axis=1)
    return Atoms(kinds, positions % side, cell=[side] * 3, pbc=True)
