"""The energy of a crystal over its volume."""

import numpy as np
from ase import units
from ase.eos import EquationOfState

from flashace.teach.properties.property import DoesNotApply, Measured, Panel, Subject, energies, is_crystal, rmse
from flashace.verify.structures import deformed

STRAIN, POINTS = 0.05, 11  # of the lengths, to both sides


def energy_volume(subject: Subject) -> Measured:
    """From 0.86 to 1.16 of the volume, ions not relaxed."""
    atoms = subject.atoms
    if not is_crystal(atoms):
        raise DoesNotApply
    structures = [deformed(atoms, strain * np.eye(3)) for strain in np.linspace(-STRAIN, STRAIN, POINTS)]
    volumes = np.array([structure.get_volume() for structure in structures]) / len(atoms)
    student, teacher = (1e3 * energies(calculator, structures) / len(atoms) for calculator in subject.both)
    words = ", ".join(
        f"{name} {own:.4g} ({of_teacher:.4g})"
        for name, own, of_teacher in zip(
            ("volume/atom, Å³", "bulk modulus, GPa"), _equilibrium(volumes, student), _equilibrium(volumes, teacher), strict=True
        )
    )
    panel = Panel("Energy over volume", "volume, Å³/atom", "energy, meV/atom", volumes, student - student.mean(), teacher - teacher.mean())
    return Measured(rmse(student, teacher), "meV/atom", "RMSE over the curve", words, (panel,))


def _equilibrium(volumes: np.ndarray, energy: np.ndarray) -> tuple[float, float]:
    """Å³/atom and GPa; NaN where the curve has no minimum."""
    try:
        volume, _, bulk_modulus = EquationOfState(volumes, 1e-3 * energy, eos="sj").fit()
    except ValueError:
        return np.nan, np.nan
    return float(volume), float(bulk_modulus / units.GPa)
