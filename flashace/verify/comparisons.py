"""Laws between calculators, given what makes them: a used one against a new one, float32 against float64."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.verify.law import PRECISIONS, Finding, NotApplicable, law, worst_of
from flashace.verify.state import compared, evaluate, largest_error, scale_of
from flashace.verify.structures import SEED, deformed, displaced


@law
def history(make_calculator: Callable[[str], Calculator], atoms: Atoms, precisions: Sequence[str] = ("float64", "float32")) -> Finding:
    """The result depends on the structure alone, not on what was computed before."""
    dtype = precisions[0]
    used, all_found = make_calculator(dtype), []
    for name, steps in _changes(atoms):
        for before in (atoms, *steps[:-1]):
            evaluate(used, before)
        found = compared(evaluate(used, steps[-1]), evaluate(make_calculator(dtype), steps[-1]), PRECISIONS[dtype])
        all_found.append(replace(found, detail=f"after {name}"))
    worst = worst_of(all_found)
    return replace(worst, detail=worst.detail if worst.measured > worst.tolerance else "")


@law
def float32_noise(
    make_calculator: Callable[[str], Calculator], atoms: Atoms, precisions: Sequence[str] = ("float64", "float32")
) -> Finding:
    """Computed in float32, forces and energy follow those in float64."""
    if len(precisions) < 2:
        raise NotApplicable("the calculator was made in one precision")
    double, single = (evaluate(make_calculator(name), atoms) for name in precisions)  # one after the other: some set a global dtype
    energy = abs(single.energy - double.energy) / len(atoms)
    force = np.abs(single.forces - double.forces).max()
    detail = f"energy {1e3 * energy:.1e} meV/atom, force {1e3 * force:.1e} meV/Å"
    return Finding(largest_error(single, double) / scale_of(double), 1e-4, detail=detail)


def _changes(atoms: Atoms) -> Iterator[tuple[str, list[Atoms]]]:
    """What is done between two calls, and the structures that a calculator is shown one after the other."""
    direction = np.random.default_rng(SEED).normal(scale=0.5, size=atoms.positions.shape)
    yield "moving far", [displaced(atoms, direction)]
    yield "creeping", [displaced(atoms, 0.1 * n * direction) for n in range(1, 11)]
    yield "straining", [deformed(atoms, np.diag([0.3, -0.1, 0.1]))]
    if len(atoms) > 1:
        yield "removing an atom", [atoms[1:]]
    if len(np.unique(atoms.numbers)) > 1:
        exchanged = atoms.copy()
        exchanged.numbers = exchanged.numbers[::-1]
        yield "exchanging elements", [exchanged]
    if atoms.pbc.any() and atoms.cell.rank == 3:
        opened, resized = atoms.copy(), atoms.copy()
        opened.pbc = False
        yield "switching pbc off", [opened]
        resized.set_cell(1.1 * np.asarray(atoms.cell))
        yield "resizing the cell around the atoms", [resized]
