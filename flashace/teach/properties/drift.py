"""How the energy of the student's molecular dynamics drifts."""

import numpy as np
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from flashace.teach.locality import repeat_to
from flashace.teach.properties.property import Measured, Panel, Subject
from flashace.teach.properties.radial import BOX, MOST_ATOMS, time_step

STEPS, APART, TEMPERATURE = 1000, 10, 300.0


def drift(subject: Subject) -> Measured:
    """Of the student alone: 1,000 steps of velocity Verlet (1 fs with hydrogen, else 2 fs), started at 300 K."""
    atoms = repeat_to(subject.atoms, BOX, MOST_ATOMS)
    atoms.calc = subject.student
    thermalize_momenta(atoms, TEMPERATURE, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, time_step(atoms))
    totals: list[float] = []
    dynamics.attach(lambda: totals.append(1e3 * atoms.get_total_energy() / len(atoms)), interval=APART)
    dynamics.run(STEPS)
    total = np.array(totals) - totals[0]
    time = np.arange(len(total)) * APART * time_step(atoms) / (1e3 * units.fs)  # ps
    slope = abs(float(np.polyfit(time, total, 1)[0]))
    panel = Panel("Total energy, NVE from 300 K", "time, ps", "meV/atom", time, total, None)
    return Measured(slope, "meV/atom/ps", "drift of NVE", f"student alone, {time[-1]:.2g} ps", (panel,))
