"""Laws of two atoms alone, which a model has to be taught."""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii

from flashace.verify.cutoff import SHORTEST, pair_span
from flashace.verify.law import FLOAT64, Finding, Precision, law, worst_of
from flashace.verify.state import evaluate
from flashace.verify.structures import dimer, pair_name, species_pairs


@law
def pair_repulsion(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms alone push each other apart, from 0.5 Å to 0.7 of the sum of their covalent radii (a model has to be taught that)."""
    found = []
    for a, b in species_pairs(atoms):
        for r in np.linspace(SHORTEST, max(SHORTEST, 0.7 * (covalent_radii[a] + covalent_radii[b])), 11):
            push = evaluate(calculator, dimer(a, b, r)).forces[1, 0]
            found.append(Finding(-push, -1.0, "eV/Å inwards", f"{pair_name(a, b)} at {r:.2f} Å"))
    return worst_of(found)


@law
def pair_tortuosity(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms alone: the energy goes down and up once, 1 is a curve with one minimum (a model has to be taught that)."""
    found, (start, stop) = [], pair_span(calculator, atoms)
    for a, b in species_pairs(atoms):
        energy = np.array([evaluate(calculator, dimer(a, b, r)).energy for r in np.arange(start, stop, 0.1)])
        direct = energy[0] + energy[-1] - 2 * energy.min()
        found.append(Finding(np.abs(np.diff(energy)).sum() / max(direct, 1e-3), 1.5, "path / direct", pair_name(a, b)))
    return worst_of(found)
