"""Labelled frames in; what shows in them without any fit out: duplicates, distances, net forces, outliers, cells, gaps."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from flashace.check.duplicates import same_structures
from flashace.check.finding import Finding, Severity, list_frames
from flashace.data.frames import Labelled
from flashace.data.labels import LABELS
from flashace.data.origin import Origin
from flashace.data.statistics import closest_pairs, elements_of
from flashace.errors import FlashACEError
from flashace.structure.neighbors import build_graph

CUTOFFS = (4.0, 5.0, 6.0)  # Å; the last bounds the neighbour lists
ENOUGH_NEIGHBOURS = 25  # from here on longer cutoffs cost more than they bring, in our own fits of solids
MANY = 10.0  # robust standard deviations that make an outlier
REMOVE = "Remove these frames, or compute them again."


def label_findings(frames: Sequence[Labelled]) -> list[Finding]:
    """All that needs no neighbour lists: milliseconds per frame at most. Isolated atoms are not among the frames."""
    return [
        *_duplicates(frames),
        *_missing(frames),
        *_rare_elements(frames),
        *_cells(frames),
        *_net_forces(frames),
        *_net_torques(frames),
        *_zeros(frames),
        *_energy_outliers(frames),
        *_force_outliers(frames),
    ]


def neighbour_findings(frames: Sequence[Labelled], reach: float = CUTOFFS[-1]) -> list[Finding]:
    """Shortest distances per pair of species; with the whole `reach` also neighbour counts and a cutoff."""
    shortest: dict[tuple[int, int], tuple[float, Origin]] = {}
    close: dict[Severity, list[Origin]] = {"surely wrong": [], "suspicious": []}
    counts = []
    for frame in frames:
        try:
            graph = build_graph(frame.atoms, reach)
        except FlashACEError:  # `_cells` names it
            continue
        (i, j), r = graph.edge_index.numpy(), graph.edge_vec.norm(dim=-1).numpy()
        z = frame.atoms.numbers[np.stack([i, j])]
        for pair, least in closest_pairs(graph).items():
            shortest[pair] = min(shortest.get(pair, (np.inf, frame.origin)), (least, frame.origin))
        ratio = (r / covalent_radii[z].sum(0)).min(initial=np.inf)
        if ratio < 0.5:
            close["surely wrong" if ratio < 0.2 else "suspicious"].append(frame.origin)
        counts.append([len(frame.atoms), *((r < cutoff).sum() for cutoff in CUTOFFS)])
    found = [_overlap(severity, origins, shortest) for severity, origins in close.items() if origins]
    if reach < CUTOFFS[-1] or not counts:
        return found
    return [*found, _distances(frames, shortest), _cutoff(np.array(counts))]


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distance from the median in standard deviations, as the median absolute deviation tells them."""
    away = np.abs(values - np.median(values))
    return away / max(1.4826 * float(np.median(away)), 1e-9)


def _names(frames: Sequence[Labelled]) -> tuple[Origin, ...]:
    return tuple(frame.origin for frame in frames)


# --- what is there ---


def _duplicates(frames: Sequence[Labelled]) -> list[Finding]:
    alike: list[Origin] = []
    apart: list[Origin] = []
    worst = ""
    for i, j, order in same_structures([frame.atoms for frame in frames]):
        difference = _difference(frames[i], frames[j], order)
        (apart if difference else alike).extend((frames[i].origin, frames[j].origin))
        worst = worst or (f"{frames[i].origin} and {frames[j].origin}: {difference}" if difference else "")
    found = []
    if apart:
        mend = f"Keep the one whose labels belong to the rest of the data. {REMOVE}"
        found.append(Finding("surely wrong", "same structure, other labels", worst, tuple(dict.fromkeys(apart)), mend))
    if alike:
        text = "same structure and labels, but for order, wrapping and shift of the atoms; a validation split would be seen in training"
        found.append(Finding("suspicious", "duplicates", text, tuple(dict.fromkeys(alike)), "Keep one frame of each pair."))
    return found


def _difference(one: Labelled, other: Labelled, order: np.ndarray) -> str:
    """In words, where the labels differ by more than two careful calculations would; "" otherwise."""
    words = []
    if one.energy is not None and other.energy is not None and abs(one.energy - other.energy) > 2e-3 * len(order):
        words.append(f"energy {one.energy:.4f} and {other.energy:.4f} eV")
    for name, unit, least in (("forces", "eV/Å", 0.02), ("stress", "eV/Å³", 1e-3)):
        a, b = getattr(one, name), getattr(other, name)
        if a is not None and b is not None:
            b = b[order] if name == "forces" else b
            if np.abs(a - b).max() > least + 0.02 * np.abs(a).max():
                words.append(f"{name} up to {np.abs(a - b).max():.3g} {unit} apart")
    return ", ".join(words)


def _missing(frames: Sequence[Labelled]) -> list[Finding]:
    found = []
    bare = [f for f in frames if all(f.label(label) is None for label in LABELS)]
    if bare:
        found.append(Finding("suspicious", "frames without any label", "nothing is learned from them", _names(bare), "Remove them."))
    for label in LABELS:
        lacking = [f for f in frames if f.label(label) is None and f not in bare]
        if lacking and len(lacking) + len(bare) < len(frames):
            found.append(Finding("note", f"frames without {label}", "they count in the other labels", _names(lacking)))
    return found


def _rare_elements(frames: Sequence[Labelled]) -> list[Finding]:
    seen: dict[str, list[Origin]] = {symbol: [] for symbol in elements_of(frames)}
    for frame in frames:
        for symbol in set(frame.atoms.get_chemical_symbols()):
            seen[symbol].append(frame.origin)
    rare = {s: o for s, o in seen.items() if len(o) < 5 and len(o) < 0.05 * len(frames)}
    once = [symbol for symbol, origins in rare.items() if len(origins) == 1]
    text = ", ".join(f"{symbol} in {len(origins)}" for symbol, origins in rare.items())
    origins = tuple(origin for each in rare.values() for origin in each)
    if not rare:
        return []
    mend = "Add frames with these elements, or remove these: a split may leave none for training."
    return [Finding("suspicious" if once else "note", "elements in few frames", text, origins, mend)]


def _cells(frames: Sequence[Labelled]) -> list[Finding]:
    kinds: dict[str, list[Labelled]] = {}
    for frame in frames:
        for kind in _cell_faults(frame):
            kinds.setdefault(kind, []).append(frame)
    found = []
    for kind, (severity, text, mend) in CELL_FAULTS.items():
        if kind in kinds:
            found.append(Finding(severity, kind, text, _names(kinds[kind]), mend))
    periodic = Counter(str(f.atoms.pbc.tolist()) for f in frames)
    if len(periodic) > 1:
        text = ", ".join(f"{count} frames {pbc}" for pbc, count in periodic.most_common())
        found.append(Finding("note", "several kinds of pbc", text))
    return found


CELL_FAULTS: dict[str, tuple[Severity, str, str]] = {
    "pbc without a cell": (
        "surely wrong",
        "a periodic direction needs a lattice vector, independent of the others",
        "Set the cell, or for molecules `atoms.pbc = False`.",
    ),
    "stress without pbc": (
        "suspicious",
        "these frames have a stress, but are not periodic in all directions: atoms across the boundary do not see each other",
        "If the calculation was periodic: `atoms.pbc = True`; else remove the stress.",
    ),
    "cell full of atoms, no pbc": (
        "suspicious",
        "the atoms reach from one face of the cell to the other, yet do not see each other across it",
        "If the calculation was periodic: `atoms.pbc = True`.",
    ),
    "crowded cell": (
        "suspicious",
        "less than 2 Å³ per atom",
        "Look at the unit of the cell: Å is expected, not Bohr or nm.",
    ),
    "left-handed cell": ("note", "allowed here; other codes may turn it", ""),
}


def _cell_faults(frame: Labelled) -> list[str]:
    atoms, cell = frame.atoms, np.asarray(frame.atoms.cell)
    periodic = cell[atoms.pbc]
    if np.linalg.matrix_rank(periodic) < len(periodic):
        return ["pbc without a cell"]
    faults = []
    if frame.stress is not None and not atoms.pbc.all():
        faults.append("stress without pbc")
    if atoms.cell.rank == 3:
        volume = np.linalg.det(cell)
        if not atoms.pbc.any() and len(atoms) > 1:
            room = 1 - np.ptp(np.linalg.solve(cell.T, atoms.positions.T).T, axis=0)
            if (room * abs(volume) / _face_areas(cell) < 2.5).all():
                faults.append("cell full of atoms, no pbc")
        if atoms.pbc.all() and abs(volume) < 2.0 * len(atoms):
            faults.append("crowded cell")
        if volume < 0:
            faults.append("left-handed cell")
    return faults


def _face_areas(cell: np.ndarray) -> np.ndarray:
    return np.array([np.linalg.norm(np.cross(cell[i - 2], cell[i - 1])) for i in range(3)])


# --- laws that labels obey ---


def _net_forces(frames: Sequence[Labelled]) -> list[Finding]:
    """The sum of the forces of a structure on itself is zero; codes leave some 0.01 eV/Å."""
    net = {f.origin: _net(f.forces) for f in frames if f.forces is not None}
    mend = (
        "Usual reasons: constraints set forces to zero, atoms are missing, or an external field. Write forces with apply_constraint=False."
    )
    return _against_a_law("net force", "the forces of a frame should add up to zero", net, "eV/Å", mend)


def _net(forces: np.ndarray) -> tuple[float, float]:
    """|ΣF| in eV/Å, and relative to what forces of this size at random would add up to."""
    size = float(np.linalg.norm(forces.sum(0)))
    return size, size / max(float(np.linalg.norm(forces)), 1e-9)


def _net_torques(frames: Sequence[Labelled]) -> list[Finding]:
    """Turning a molecule as a whole costs nothing."""
    torque = {}
    for f in frames:
        if f.forces is not None and not f.atoms.pbc.any() and len(f.atoms) > 1:
            arm = f.atoms.positions - f.atoms.positions.mean(0)
            size = float(np.linalg.norm(np.cross(arm, f.forces).sum(0)))
            at_random = np.linalg.norm(np.linalg.norm(arm, axis=1) * np.linalg.norm(f.forces, axis=1))
            torque[f.origin] = size, size / max(float(at_random), 1e-9)
    mend = "Usual reasons: positions turned or reordered without their forces, or an external field."
    return _against_a_law("net torque", "the forces on a molecule should not turn it", torque, "eV", mend)


def _against_a_law(what: str, law: str, sizes: dict[Origin, tuple[float, float]], unit: str, mend: str) -> list[Finding]:
    """Sizes (absolute, relative to chance) per origin. Above 0.3 the law plays no part; above 0.05 it is broken visibly."""
    found = []
    for severity, low, high in (("surely wrong", 0.3, np.inf), ("suspicious", 0.05, 0.3)):
        bad = {origin: size for origin, (size, part) in sizes.items() if low <= part < high and size > 0.1}
        if bad:
            text = f"{law}; up to {max(bad.values()):.3g} {unit}"
            found.append(Finding(severity, what, text, tuple(bad), mend, "forces"))  # type: ignore[arg-type]
    return found


def _zeros(frames: Sequence[Labelled]) -> list[Finding]:
    """Zeros that no calculation gave. A force that vanishes by symmetry, as in an undistorted crystal, is none of them."""
    known = [(f, f.forces) for f in frames if f.forces is not None and len(f.atoms) > 1]
    partly = [f for f, forces in known if np.abs(forces).max() > 0.1 and _pulled(f)[~forces.any(axis=1)].any()]
    found = []
    if known and not any(forces.any() for _, forces in known):
        wrong = [f for f, _ in known if _pulled(f).any()]
        if wrong:
            text, mend = "every force of every frame is exactly zero", "Missing forces were written as zeros: leave them out."
            found.append(Finding("surely wrong", "no forces", text, _names(wrong), mend, "forces"))
    elif partly:
        text, mend = "atoms with a force of exactly zero among others: constraints?", "Write forces with apply_constraint=False."
        found.append(Finding("suspicious", "zero forces", text, _names(partly), mend))
    stressed = [f for f in frames if f.stress is not None]
    zero = [f for f in stressed if f.stress is not None and not f.stress.any()]
    if zero:
        severity: Severity = "surely wrong" if len(zero) == len(stressed) and len(zero) > 1 else "suspicious"
        mend = "A missing stress was written as zeros: leave it out."
        found.append(Finding(severity, "zero stress", "all components exactly zero", _names(zero), mend, "stress"))
    return found


def _pulled(frame: Labelled) -> np.ndarray:
    """[N]: whether the neighbours of an atom stand to one side of it, by a sum of vectors that fall off with the distance and differ by
    element. Where they do not, its force vanishes."""
    try:
        graph = build_graph(frame.atoms, CUTOFFS[1])
    except FlashACEError:  # `_cells` names it
        return np.zeros(len(frame.atoms), bool)
    (i, j), vec = graph.edge_index.numpy(), graph.edge_vec.numpy()
    r = np.linalg.norm(vec, axis=1)
    weight = (1 - r / CUTOFFS[1]) ** 2 * (1 + np.sin(frame.atoms.numbers[j]) / 2)
    pull, size = np.zeros((len(frame.atoms), 3)), np.zeros(len(frame.atoms))
    np.add.at(pull, i, (weight / r)[:, None] * vec)
    np.add.at(size, i, weight)
    return np.linalg.norm(pull, axis=1) > 1e-3 * size


# --- outliers ---


def _energy_outliers(frames: Sequence[Labelled]) -> list[Finding]:
    known = [f for f in frames if f.energy is not None]
    if len(known) < 10:
        return []
    residual = relative_energies(known)
    z = robust_z(residual)
    far = np.flatnonzero((z > MANY) & (np.abs(residual) > 0.05))
    text = f"per atom, above the reference energies: {np.ptp(residual):.3g} eV from lowest to highest, spread {np.std(residual):.3g} eV"
    found = [Finding("note", "range of energies", text)]
    for severity, low, high in (("surely wrong", 20.0, np.inf), ("suspicious", 0.05, 20.0)):  # eV/atom; no bond is that strong
        chosen = [i for i in far if low <= abs(residual[i]) < high]
        if chosen:
            worst = max(chosen, key=lambda i: abs(residual[i]))
            text = f"{known[worst].origin}: {residual[worst]:+.4g} eV/atom from the median, {z[worst]:.0f} robust standard deviations"
            mend = f"Look whether these calculations converged. {REMOVE}"
            found.append(Finding(severity, "outliers of energy", text, _names([known[i] for i in chosen]), mend))  # type: ignore[arg-type]
    return found


def relative_energies(frames: Sequence[Labelled]) -> np.ndarray:
    """eV/atom above reference energies by least squares, in which outliers have no say; the median is zero."""
    elements = sorted({int(z) for f in frames for z in set(f.atoms.numbers)})
    counts = np.array([[np.count_nonzero(f.atoms.numbers == z) for z in elements] for f in frames], float)
    X, y = counts / counts.sum(1, keepdims=True), np.array([f.energy / len(f.atoms) for f in frames if f.energy is not None])
    used = np.ones(len(y), bool)
    for _ in range(5):
        residual = y - X @ np.linalg.lstsq(X[used], y[used])[0]
        residual -= np.median(residual)
        used = robust_z(residual) < MANY
    return residual


def _force_outliers(frames: Sequence[Labelled]) -> list[Finding]:
    known = [f for f in frames if f.forces is not None]
    forces = [f.forces for f in frames if f.forces is not None]
    if not known:
        return []
    largest = np.array([np.linalg.norm(f, axis=1).max() for f in forces])
    rms = np.sqrt(np.mean(np.concatenate(forces) ** 2))
    found = [Finding("note", "range of forces", f"root mean square of a component {rms:.3g} eV/Å, largest force {largest.max():.3g} eV/Å")]
    moving = largest > 1e-3
    if moving.sum() < 10:
        return found
    z = np.zeros(len(known))
    z[moving] = robust_z(np.log(largest[moving]))
    far = np.flatnonzero((z > 6) & (largest > max(30.0, 5 * float(np.median(largest)))))
    if len(far):
        worst = far[largest[far].argmax()]
        text = f"{known[worst].origin}: {largest[worst]:.4g} eV/Å; the median frame has {np.median(largest):.3g} at most"
        found.append(
            Finding("suspicious", "outliers of force", text, _names([known[i] for i in far]), f"Look at these structures. {REMOVE}")
        )
    return found


# --- distances ---


def _overlap(severity: Severity, origins: Sequence[Origin], shortest: dict[tuple[int, int], tuple[float, Origin]]) -> Finding:
    (a, b), (r, where) = min(shortest.items(), key=lambda item: item[1][0] / covalent_radii[list(item[0])].sum())
    text = f"closer than half the sum of the covalent radii; {chemical_symbols[a]}-{chemical_symbols[b]} {r:.3f} Å in {where}"
    return Finding(severity, "overlapping atoms", text, tuple(origins), f"Look at positions, cell and pbc. {REMOVE}")


def _distances(frames: Sequence[Labelled], shortest: dict[tuple[int, int], tuple[float, Origin]]) -> Finding:
    numbers = sorted({int(z) for f in frames for z in set(f.atoms.numbers)})
    words = []
    for a, b in list(combinations_with_replacement(numbers, 2))[:20]:
        near = f"none within {CUTOFFS[-1]:g} Å"
        if (a, b) in shortest:
            r, where = shortest[a, b]
            near = f"{r:.2f} Å ({list_frames([where])})"
        words.append(f"{chemical_symbols[a]}-{chemical_symbols[b]} {near}")
    return Finding("note", "shortest distances", ", ".join(words))


def _cutoff(counts: np.ndarray) -> Finding:
    atoms, *edges = counts.sum(0)
    neighbours = [e / atoms for e in edges]
    enough = [c for c, n in zip(CUTOFFS, neighbours, strict=True) if n >= ENOUGH_NEIGHBOURS]
    advised = max(min(enough, default=CUTOFFS[-1]), 5.0) if neighbours[-1] > neighbours[0] else CUTOFFS[0]
    text = ", ".join(f"{n:.1f} within {c:g} Å" for c, n in zip(CUTOFFS, neighbours, strict=True))
    return Finding("note", "neighbours per atom", f"{text}; to begin with, --r-max {advised:g}")
