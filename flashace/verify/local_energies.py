"""Laws of local energies: they add up, and know nothing of what is beyond the cutoff."""

from itertools import product
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.stress import voigt_6_to_full_3x3_stress

from flashace.verify.cutoff import cutoff_of
from flashace.verify.law import FLOAT64, Finding, Precision, law, worst_of
from flashace.verify.state import State, compared, energies_of_atoms, evaluate, largest_error, round_off, scale_of
from flashace.verify.structures import dimer, species_pairs


@law
def additivity(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Parts beyond each other's cutoff do not feel each other: energies add up, forces stay."""
    whole, r_max = _cluster(atoms), cutoff_of(calculator, atoms)
    part = whole[: (len(whole) + 1) // 2]
    a, b = evaluate(calculator, whole), evaluate(calculator, part)
    apart = State(a.energy + b.energy, np.concatenate([a.forces, b.forces]), None)
    scale = scale_of(evaluate(calculator, atoms))
    found = []
    for gap in (1.001 * r_max, 3 * r_max, 100.0):
        far = part.copy()
        far.positions[:, 0] += whole.positions[:, 0].max() - part.positions[:, 0].min() + gap
        both = evaluate(calculator, whole + far)._replace(virial=None)
        tolerance = precision.symmetry + round_off(both, precision) / scale
        found.append(Finding(largest_error(both, apart) / scale, tolerance, detail=f"{gap:.2f} Å apart"))
    return worst_of(found)


@law
def locality(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """An atom's own energy knows nothing beyond the cutoff, not even through an atom between (message passing does)."""
    r_max, worst, size = cutoff_of(calculator, atoms), 0.0, 1.0
    for a, b in product(np.unique(atoms.numbers), repeat=2):
        energies = []
        for away in ([0.0, 0.0, 0.0], [-0.1 * r_max, 0.2, 0.0], [100.0, 0.0, 0.0]):
            chain = Atoms([a, b, a], [[0, 0, 0], [0.6 * r_max, 0, 0], [1.2 * r_max, 0, 0]])
            chain.positions[2] += away
            energies.append(energies_of_atoms(calculator, chain)[0])
        worst = max(worst, float(np.ptp(energies)))
        size = max(size, float(np.abs(energies).max()))
    return Finding(worst, 100 * precision.eps * size, "eV")


@law
def isolated_atom(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms beyond the cutoff are two lone atoms: without force, each with its reference energy where the model has one."""
    gap = 1.001 * cutoff_of(calculator, atoms)
    worst, total = 0.0, 0.0
    for a, b in species_pairs(atoms):
        pair = evaluate(calculator, dimer(a, b, gap))
        lone = [evaluate(calculator, Atoms([z])) for z in (a, b)]
        reference = [_reference_energy(calculator, z, state.energy) for z, state in zip((a, b), lone, strict=True)]
        deviations = [state.energy - e0 for state, e0 in zip(lone, reference, strict=True)]
        worst = max(worst, abs(pair.energy - sum(reference)), *np.abs(deviations), *(np.abs(x.forces).max() for x in (pair, *lone)))
        total = max(total, abs(pair.energy))
    return Finding(worst, 10 * precision.eps * max(total, 1.0), "eV, eV/Å")


@law
def sums_over_atoms(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The energies of the atoms add up to the energy, their stresses to the stress."""
    state = evaluate(calculator, atoms)
    energy, virial = energies_of_atoms(calculator, atoms).sum(), None
    if state.virial is not None and "stresses" in calculator.implemented_properties:
        stresses = np.asarray(calculator.get_property("stresses", atoms)).sum(axis=0)
        virial = stresses.reshape(3, 3) if stresses.size == 9 else voigt_6_to_full_3x3_stress(stresses)
        virial = virial * atoms.get_volume()
    return compared(State(float(energy), state.forces, virial), state, precision)


def _cluster(atoms: Atoms) -> Atoms:
    """The atoms without cell and periodicity."""
    return Atoms(atoms.numbers, atoms.positions)


def _reference_energy(calculator: Calculator, number: int, otherwise: float) -> float:
    """eV: `calculator.model.e0[symbol]` where there is such a thing, as in FlashACE."""
    references: Any = getattr(getattr(calculator, "model", None), "e0", None)
    return references[Atoms([number]).symbols[0]] if isinstance(references, dict) else otherwise
