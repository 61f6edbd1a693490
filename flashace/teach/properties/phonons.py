"""The phonons of a crystal."""

import os
import tempfile

import numpy as np
from ase import units
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.dft.kpoints import BandPath
from ase.phonons import Phonons

from flashace.teach.locality import repeats_to
from flashace.teach.properties.property import DoesNotApply, Measured, Panel, Subject, is_crystal

MOST_ATOMS = 16  # of the cell: each needs six evaluations of a supercell
SUPERCELL, MOST_IN_SUPERCELL = 4.5, 200  # Å, half of its heights; and atoms
POINTS = 40  # along the path through the Brillouin zone
STEP = 0.03  # Å
THZ = 1e-12 / (units._hplanck * units.J)  # per eV


def phonons(subject: Subject) -> Measured:
    """Frequencies along the path that the lattice suggests, by displacements in a supercell; the same for both."""
    atoms = subject.atoms
    if not is_crystal(atoms):
        raise DoesNotApply
    if len(atoms) > MOST_ATOMS:
        raise CalculationFailed(
            f"the cell has {len(atoms)} atoms, and phonons are for cells of up to {MOST_ATOMS}; give the primitive cell"
        )
    path = atoms.cell.bandpath(npoints=POINTS)
    student, teacher = (_frequencies(calculator, subject, path) for calculator in subject.both)
    words = (
        f"highest {student.max():.3g} ({teacher.max():.3g}), lowest {student.min():.2g} ({teacher.min():.2g}) THz; negative is imaginary"
    )
    panel = Panel("Phonons", f"path {path.path}", "THz", path.get_linear_kpoint_axis()[0], student, teacher)
    return Measured(float(np.sqrt(np.mean((student - teacher) ** 2))), "THz", "RMSE of frequencies", words, (panel,))


def _frequencies(calculator: Calculator, subject: Subject, path: BandPath) -> np.ndarray:
    """[POINTS, 3N] THz, ascending; imaginary ones are negative."""
    repeats = repeats_to(subject.atoms, SUPERCELL, MOST_IN_SUPERCELL)
    with tempfile.TemporaryDirectory() as folder:
        found = Phonons(subject.atoms, calculator, supercell=repeats, name=os.path.join(folder, "phonons"), delta=STEP)
        found.run()
        found.read(acoustic=True)
        return np.sort(THZ * found.get_band_structure(path, verbose=False).energies[0], axis=1)
