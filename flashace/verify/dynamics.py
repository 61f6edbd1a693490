"""The law of molecular dynamics: its energy stays."""

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from flashace.verify.law import FLOAT64, Finding, Precision, law
from flashace.verify.state import evaluate, scale_of
from flashace.verify.structures import SEED


@law
def energy_conservation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Molecular dynamics (NVE) does not drift, in the limit of a short time step."""
    state = evaluate(calculator, atoms)
    acceleration = (np.linalg.norm(state.forces, axis=1) / atoms.get_masses()).max()
    steps, step = 20, min(0.5 * units.fs, (0.002 / max(acceleration, 1e-9)) ** 0.5)
    time = step * np.arange(steps + 1) / (1e6 * units.fs)  # ns
    extrapolated: list[np.ndarray] = []
    slope, tolerance = np.inf, precision.drift * scale_of(state)
    for n in (1, 2, 4, 8, 16):
        # Verlet's own error is even in the step, so Richardson's extrapolation to step 0 leaves over what is not the integrator's
        coarser, extrapolated = extrapolated, [_drift(calculator, atoms, step / n, steps * n)[::n]]
        for order, other in enumerate(coarser, start=1):
            extrapolated.append(extrapolated[-1] + (extrapolated[-1] - other) / (4**order - 1))
        slope = 1e3 * abs(np.polyfit(time, extrapolated[-1], 1)[0]) / len(atoms)
        if n > 2 and slope <= tolerance:
            break
    return Finding(slope, tolerance, "meV/atom/ns", f"{1e6 * time[-1]:.1f} fs from 300 K")


def _drift(calculator: Calculator, atoms: Atoms, step: float, steps: int) -> np.ndarray:
    """[steps + 1] eV: total energy along a run from 300 K, less that at the start."""
    moving = atoms.copy()
    moving.calc = calculator
    thermalize_momenta(moving, 300, rng=np.random.default_rng(SEED))
    energies: list[float] = []
    dynamics = VelocityVerlet(moving, timestep=step)
    dynamics.attach(lambda: energies.append(moving.get_total_energy()))
    dynamics.run(steps)
    return np.array(energies) - energies[0]
