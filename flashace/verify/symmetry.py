"""Laws of symmetry: one structure, told in another way, is the same structure."""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.verify.law import FLOAT64, Finding, NotApplicable, Precision, law, worst_of
from flashace.verify.state import State, same_results
from flashace.verify.structures import SEED


@law
def rotation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """A turned structure has the same energy; its forces and stress turn with it."""
    return _turned(calculator, atoms, precision, _random_rotation())


@law
def reflection(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The mirror image has the same energy; its forces and stress are mirrored."""
    return _turned(calculator, atoms, precision, -_random_rotation())


@law
def translation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Moving everything together changes nothing."""
    moved = atoms.copy()
    moved.positions += [3.1, -7.3, 11.7]
    return same_results(calculator, atoms, precision, moved)


@law
def permutation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The order of the atoms in the file does not matter."""
    if len(atoms) < 2:
        raise NotApplicable("one atom has one order")
    order = np.roll(np.random.default_rng(SEED).permutation(len(atoms)), 1)
    return same_results(calculator, atoms, precision, atoms[order], lambda s: s._replace(forces=s.forces[order]))


@law
def wrapping(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Moving single atoms by whole lattice vectors changes nothing."""
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    moved = atoms.copy()
    shifts = np.random.default_rng(SEED).integers(-2, 3, size=(len(atoms), 3))
    moved.positions += np.where(atoms.pbc, shifts, 0) @ np.asarray(atoms.cell)
    return same_results(calculator, atoms, precision, moved)


@law
def lattice_vectors(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The same lattice told by other vectors, skewed or left-handed, is the same crystal."""
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    first, *further = np.flatnonzero(atoms.pbc)
    mirrored, skewed = np.eye(3), np.eye(3)
    mirrored[first, first] = -1
    for n, row in enumerate(further):
        skewed[row, first] = 2 - 3 * n
    others = [atoms.copy() for _ in range(2)]
    for other, change in zip(others, (mirrored, skewed), strict=True):
        other.set_cell(change @ np.asarray(atoms.cell))
    return worst_of([same_results(calculator, atoms, precision, other) for other in others])


@law
def open_directions(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Along a direction that is not periodic, the cell's length means nothing: no image is there, no atom is folded back."""
    base = atoms.copy()
    if atoms.pbc.all():
        base.pbc = (True, True, False)
    base.set_cell(base.cell.complete())
    found = []
    for factor in (0.4, 3.0):
        other = base.copy()
        other.set_cell(np.where(base.pbc, 1.0, factor)[:, None] * np.asarray(base.cell))
        found.append(same_results(calculator, base, precision, other))
    return worst_of(found)


@law
def supercell(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """A repeated cell has n times the energy, the same forces and the same stress."""
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    repeats = np.where(np.eye(3, dtype=bool), 2, 1)[atoms.pbc]
    return worst_of([same_results(calculator, atoms, precision, atoms.repeat(n), _doubled) for n in repeats])


def _turned(calculator: Calculator, atoms: Atoms, precision: Precision, Q: np.ndarray) -> Finding:
    """Against the structure with x -> Q x. The cell is turned, never mirrored: a lattice is its own image under inversion."""
    other = atoms.copy()
    other.set_cell(np.asarray(atoms.cell) @ (Q * np.linalg.det(Q)).T)
    other.positions = atoms.positions @ Q.T

    def expected(state: State) -> State:
        return State(state.energy, state.forces @ Q.T, None if state.virial is None else Q @ state.virial @ Q.T)

    return same_results(calculator, atoms, precision, other, expected)


def _random_rotation() -> np.ndarray:
    Q, _ = np.linalg.qr(np.random.default_rng(SEED).normal(size=(3, 3)))
    return Q * np.linalg.det(Q)


def _doubled(state: State) -> State:
    return State(2 * state.energy, np.tile(state.forces, (2, 1)), None if state.virial is None else 2 * state.virial)
