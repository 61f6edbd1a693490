"""Laws of smoothness: nothing jumps, at the cutoff or anywhere else."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.geometry import get_distances

from flashace.structure.neighbors import build_graph
from flashace.verify.cutoff import LONGEST, cutoffs_of_pair, pair_span
from flashace.verify.differences import jumps_at
from flashace.verify.law import FLOAT64, Finding, NotApplicable, Precision, law, worst_of
from flashace.verify.state import evaluate, scale_of
from flashace.verify.structures import SEED, dimer, displaced, pair_name, random_directions, species_pairs


@law
def cutoff_with_a_lone_neighbour(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Energy, force and force derivative do not jump when the only neighbour crosses the cutoff."""
    found = []
    for a, b in species_pairs(atoms):
        for r in cutoffs_of_pair(calculator, a, b):
            found += [(dimer(a, b, r), 1, way) for way in _ways([1.0, 0.0, 0.0])]
    return _largest_jump(calculator, atoms, found, precision)


@law
def cutoff_in_the_structure(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Energy, forces and force derivatives do not jump when an atom of the structure crosses the cutoff of another."""
    found = []
    for a, b in species_pairs(atoms):
        for r in cutoffs_of_pair(calculator, a, b):
            start, moving, outwards = _about_to_cross(atoms, a, b, r)
            found += [(start, moving, way) for way in _ways(outwards)]
    return _largest_jump(calculator, atoms, found, precision)


@law
def force_jumps_of_a_pair(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms alone: the force does not jump anywhere between 0.5 Å and beyond the cutoff."""
    found = []
    for a, b in species_pairs(atoms):

        def forces(r: float, pair: tuple[int, int] = (a, b)) -> np.ndarray:
            return evaluate(calculator, dimer(*pair, r)).forces

        jump, r = _first_jump(forces, *pair_span(calculator, atoms), precision)
        found.append(Finding(jump, precision.jump, detail=f"{pair_name(a, b)} at {r:.3f} Å" if jump else ""))
    return worst_of(found)


@law
def force_jumps_in_the_structure(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Forces do not jump anywhere while all atoms move along a straight path (inner cutoffs, tables, angles)."""
    direction = random_directions(atoms, 1)[0]
    jump, t = _first_jump(lambda t: evaluate(calculator, displaced(atoms, t * direction)).forces, -0.5, 0.5, precision)
    return Finding(jump, precision.jump, detail=f"after {t:.3f} Å" if jump else "")


# --- the cutoff ---


def _largest_jump(calculator: Calculator, atoms: Atoms, starts: list[tuple[Atoms, int, np.ndarray]], precision: Precision) -> Finding:
    """Over crossings: a structure with a pair exactly at the cutoff, the atom that moves, and the direction it takes."""
    if not starts:
        raise NotApplicable(f"no cutoff found up to {LONGEST:.0f} Å")
    usual = evaluate(calculator, atoms)
    found = []
    for start, moving, direction in starts:
        state = evaluate(calculator, start)
        scale = max(scale_of(usual), scale_of(state))
        jumps = jumps_at(calculator, start, moving, direction, precision.force_step)
        detail = "jumps by {:.1e} eV, {:.1e} eV/Å and {:.1e} eV/Å²".format(*jumps)
        tolerance = precision.difference + 10 * precision.eps * abs(state.energy) / scale
        found.append(Finding(jumps.max() / scale, tolerance, detail=detail))
    return worst_of(found)


def _ways(outwards: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Unit vectors: straight across the cutoff, and at 70° to that, so that the direction changes too."""
    outwards = np.asarray(outwards)
    sideways = np.cross(outwards, np.eye(3)[np.abs(outwards).argmin()])
    sideways /= np.linalg.norm(sideways)
    return [outwards, np.cos(np.radians(70)) * outwards + np.sin(np.radians(70)) * sideways]


def _about_to_cross(atoms: Atoms, a: int, b: int, r: float) -> tuple[Atoms, int, np.ndarray]:
    """A structure in which an atom of species b is exactly r from one of species a, the index of b, and the unit vector from a to it.

    The pair of `atoms` that is closest to this distance, or else an atom more, placed where it has most room.
    """
    most = 0.5  # Å that an atom may be moved to get there
    graph = build_graph(atoms, r + most)
    (i, j), vec = graph.edge_index.numpy(), graph.edge_vec.numpy()
    distance = np.linalg.norm(vec, axis=1)
    off = np.where((i != j) & (atoms.numbers[i] == a) & (atoms.numbers[j] == b), np.abs(distance - r), np.inf)
    if len(off) and off.min() < most:
        e = off.argmin()
        outwards = vec[e] / distance[e]
        start = atoms.copy()
        start.positions[j[e]] += (r - distance[e]) * outwards
        return start, int(j[e]), outwards
    random = np.random.default_rng(SEED).normal(size=(100, 3))
    ways = random / np.linalg.norm(random, axis=1, keepdims=True)
    places = [(centre + r * way, way) for centre in atoms.positions[atoms.numbers == a][:10] for way in ways]
    place, outwards = max(places, key=lambda p: get_distances(p[0], atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1].min())
    return atoms + Atoms([b], [place]), len(atoms), outwards


# --- jumps anywhere ---

NODES = np.linspace(0, 1, 5)

BETWEEN = np.vander((NODES[1:] + NODES[:-1]) / 2, 5) @ np.linalg.inv(np.vander(NODES, 5))  # [4, 5]: the quartic through values at NODES


def _first_jump(force: Callable[[float], np.ndarray], start: float, stop: float, precision: Precision) -> tuple[float, float]:
    """Size, relative to the forces there, and place of a jump of `force` between `start` and `stop` Å; the size is 0 where there is none.

    An interval where the force does not follow the quartic through five of its values is halved, until it does or is too narrow for
    anything but a jump.
    """
    edges = np.linspace(start, stop, int(np.ceil((stop - start) / 0.4)) + 1)
    waiting = [(a, b, [force(x) for x in a + (b - a) * NODES]) for a, b in pairwise(edges)]
    while waiting:
        a, b, known = waiting.pop()
        values = np.array(known)
        scale = max(0.1, float(np.abs(values).max()))
        if b - a < precision.force_step / 10:
            jump = float(np.abs(np.diff(values, axis=0)).max()) / scale
            if jump > precision.jump:
                return jump, (a + b) / 2
            continue
        found = [force(x) for x in a + (b - a) * (NODES[1:] + NODES[:-1]) / 2]
        if np.abs(found - np.tensordot(BETWEEN, values, 1)).max() > precision.jump / 2 * scale:
            finer = [known[0], *(x for pair in zip(found, known[1:], strict=True) for x in pair)]
            waiting += [(a, (a + b) / 2, finer[:5]), ((a + b) / 2, b, finer[4:])]
    return 0.0, start
