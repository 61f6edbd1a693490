"""The law of sanity: outside the data, energies and forces stay of a size that matter can have.

Nobody knows the true energies there to a meV, but everybody knows their size: an atom is bound by a few eV, and pulled by no more than
about 10 eV/Å.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.structure.neighbors import build_graph
from flashace.verify.cutoff import told_cutoff
from flashace.verify.hard_structures import GUESS, Hard, Pair, bonds, distance_table, guessed_distances, hard_structures, short_distances
from flashace.verify.law import FLOAT64, Finding, Precision, law
from flashace.verify.state import evaluate

FARTHEST_PAIR = 6.0  # Å; of the structures, where the calculator does not tell its cutoff
REPULSIVE = 0.9  # of the shortest distance: below it the repulsion acts (`TRUSTED` of model.py), and high energies and forces are right
DEPTHS, LEAST_ENERGY = 2.0, 8.0  # the bar in depths of training below free atoms, and eV/atom: few crystals are bound by more
TIMES, LEAST_FORCE = 3.0, 30.0  # the bar in largest forces of training, and eV/Å: twice what the strongest bond pulls with


class Usual(NamedTuple):
    """What is usual in training, or in the structure that is asked about: energies in eV/atom, those of free atoms being 0."""

    lowest: float
    highest: float
    force: float  # eV/Å, the largest


class Sanity(NamedTuple):
    """The worst that was found, in which structure, and the bars above which it is not sane."""

    energy: float  # eV/atom beyond those of training and of free atoms
    energy_bar: float
    energy_of: str
    force: float  # eV/Å
    force_bar: float
    force_of: str

    @property
    def worst(self) -> float:
        """The larger of both in units of its bar; up to 1 it is sane."""
        return max(self.energy / self.energy_bar, self.force / self.force_bar)

    def in_words(self) -> str:
        """Both numbers, with their bars and where they were found."""
        return (
            f"energies at most {self.energy:.3g} eV/atom beyond the known ones (bar {self.energy_bar:.3g}; {self.energy_of}), "
            f"forces at most {self.force:.3g} eV/Å (bar {self.force_bar:.3g}; {self.force_of})"
        )


@law
def sanity(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Pairs, trimers, surfaces, holes, a gas and packings have energies and forces of a size that matter can have."""
    model: Any = getattr(calculator, "model", None)
    known = getattr(model, "shortest_distances", None)
    short = guessed_distances(atoms)
    if isinstance(known, dict):  # but no closer than bonds are: how hard atoms push there is not known without the training forces
        told = short_distances(set(atoms.symbols), known)
        short = {pair: max(told[pair], GUESS * bond) for pair, bond in bonds(set(atoms.symbols)).items()}
    state = evaluate(calculator, atoms)
    free_atoms = {int(z): evaluate(calculator, Atoms([z])).energy for z in np.unique(atoms.numbers)}
    energy = (state.energy - sum(free_atoms[z] for z in atoms.numbers)) / len(atoms)
    usual = Usual(energy, energy, float(np.linalg.norm(state.forces, axis=1).max()))
    structures = hard_structures([atoms], short, told_cutoff(calculator) or FARTHEST_PAIR)
    results = []
    for name, structure in structures:
        try:
            state = evaluate(calculator, structure, with_stress=False)
        except CalculationFailed as error:
            raise CalculationFailed(f"{name}: {error}") from error
        results.append((state.energy, state.forces))
    found = judge(structures, results, free_atoms, usual, short)
    return Finding(found.worst, 1.0, "of the bars", found.in_words())


def judge(
    structures: Sequence[Hard],
    results: Iterable[tuple[float, np.ndarray]],
    free_atoms: Mapping[int, float],
    usual: Usual,
    short: Mapping[Pair, float],
) -> Sanity:
    """`results` are energy (eV) and forces [N, 3] (eV/Å) of each structure, `free_atoms` the energy of an atom by its atomic number.

    Where two atoms are closer than 0.9 of `short`, high energies and the forces on these atoms are the repulsion's, and set aside.
    What is not finite counts as infinite.
    """
    lowest, highest = min(usual.lowest, 0.0), max(usual.highest, 0.0)
    energy_bar = max(DEPTHS * -lowest, LEAST_ENERGY)
    force_bar = max(TIMES * usual.force, LEAST_FORCE)
    energies, forces = [], []
    for (_, atoms), (total, pulls) in zip(structures, results, strict=True):
        energy = (total - sum(free_atoms[z] for z in atoms.numbers)) / len(atoms)
        close = _too_close(atoms, short)
        beyond = max(lowest - energy, 0.0 if close.any() else energy - highest, 0.0)
        pull = np.linalg.norm(pulls, axis=1)[~close].max(initial=0.0)
        energies.append(beyond if np.isfinite(energy) else np.inf)
        forces.append(pull if np.isfinite(pulls).all() else np.inf)
    e, f = int(np.argmax(energies)), int(np.argmax(forces))
    return Sanity(float(energies[e]), energy_bar, structures[e].name, float(forces[f]), force_bar, structures[f].name)


def _too_close(atoms: Atoms, short: Mapping[Pair, float]) -> np.ndarray:
    """[N]: whether an atom is in a pair that is closer than where the repulsion begins."""
    graph = build_graph(atoms, max(REPULSIVE * max(short.values()), 0.1))
    (i, j), r = graph.edge_index.numpy(), graph.edge_vec.norm(dim=1).numpy()
    close = np.zeros(len(atoms), dtype=bool)
    close[i[r < REPULSIVE * distance_table(short)[atoms.numbers[i], atoms.numbers[j]]]] = True
    return close
