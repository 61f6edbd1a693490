"""A teacher and structures in; how far its force on an atom answers to atoms beyond a radius, out.

Everything within the radius of an atom is held, everything beyond is rattled, and the change of the force on that atom is what nobody
knows who sees no farther.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.verify.state import evaluate

RATTLE = 0.1  # Å, of an atom
CENTRES = 3  # of a structure, evenly drawn
MOST_ATOMS = 550  # of a supercell


@dataclass(frozen=True)
class Answer:
    """What is beyond `radius`. `forces` is None where it was not measured, and `why` says why not, or why over fewer atoms."""

    radius: float  # Å
    forces: float | None  # meV/Å: root mean square change of a component of the force on the centre
    why: str = ""


def answers_beyond(
    calculator: Calculator, structures: Sequence[Atoms], radii: Sequence[float], most_atoms: int = MOST_ATOMS
) -> list[Answer]:
    """For each radius in Å, over several centres of all structures that have something beyond it.

    A small cell is repeated, up to `most_atoms` atoms, until a sphere of the radius does not meet its own images.
    """
    return [_answer(calculator, [repeat_to(atoms, radius, most_atoms) for atoms in structures], radius, most_atoms) for radius in radii]


def repeat_to(atoms: Atoms, radius: float, most_atoms: int) -> Atoms:
    """The structure repeated along the shortest of its heights, until they are all longer than twice the radius or it has too many."""
    return atoms.repeat(repeats_to(atoms, radius, most_atoms))


def repeats_to(atoms: Atoms, radius: float, most_atoms: int) -> tuple[int, int, int]:
    """How often along each lattice vector."""
    repeats = np.ones(3, dtype=int)
    while True:
        heights = heights_of(atoms) * repeats
        more = repeats + (np.arange(3) == heights.argmin())
        if heights.min() > 2 * radius or len(atoms) * more.prod() > most_atoms:
            a, b, c = repeats.tolist()
            return a, b, c
        repeats = more


def heights_of(atoms: Atoms) -> np.ndarray:
    """[3] Å: distances of opposite faces of the cell; infinite where it is not periodic."""
    cell = atoms.cell.complete()
    return np.where(atoms.pbc, 1 / np.linalg.norm(cell.reciprocal(), axis=1), np.inf)


def _answer(calculator: Calculator, structures: Sequence[Atoms], radius: float, most_atoms: int) -> Answer:
    small = [atoms for atoms in structures if heights_of(atoms).min() <= 2 * radius]
    measured = [atoms for atoms in structures if heights_of(atoms).min() > 2 * radius]
    changes: list[np.ndarray] = []
    failure = ""
    try:
        for atoms in measured:
            changes.extend(_changes(calculator, atoms, radius))
    except CalculationFailed as error:
        failure = f"the teacher failed after {len(changes)} atoms: {error}"
    if changes:
        return Answer(radius, 1e3 * float(np.sqrt(np.mean(np.square(changes)))), failure)
    if failure:
        return Answer(radius, None, failure)
    if small:
        return Answer(radius, None, f"a cell wider than {2 * radius:.1f} Å has more than {most_atoms} atoms")
    return Answer(radius, None, "nothing is beyond it in these structures")


def _changes(calculator: Calculator, atoms: Atoms, radius: float) -> Iterator[np.ndarray]:
    """[3] eV/Å for each centre that has something beyond the radius."""
    random = np.random.default_rng(0)
    centres = np.unique(np.linspace(0, len(atoms) - 1, CENTRES).astype(int))
    usual = None
    for centre in centres:
        moved = atoms.copy()
        moved.positions += random.normal(scale=RATTLE / 3**0.5, size=moved.positions.shape)
        moved.positions[centre] = atoms.positions[centre]
        held = (_distances(atoms, centre) <= radius) | (_distances(moved, centre) <= radius)
        if held.all():
            continue
        moved.positions[held] = atoms.positions[held]
        usual = evaluate(calculator, atoms, with_stress=False) if usual is None else usual
        yield evaluate(calculator, moved, with_stress=False).forces[centre] - usual.forces[centre]


def _distances(atoms: Atoms, centre: int) -> np.ndarray:
    return np.asarray(atoms.get_distances(centre, np.arange(len(atoms)), mic=bool(atoms.pbc.any())))
