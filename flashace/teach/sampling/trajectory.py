"""A structure in; a short molecular dynamics under the teacher, whose labels cost nothing beyond it, out."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta

from flashace.teach.sampling.frames import check_forces, frames_of

FRICTION = 0.02  # 1/fs: in the time of a trajectory the kinetic energy of the start is forgotten
BAROSTAT = 200.0  # fs: in which the volume answers, slower than bonds vibrate


@dataclass(frozen=True, eq=False)
class Trajectory:
    """NVT after Langevin; with a `pressure` NPT, where the cell keeps its shape. A trajectory that explodes ends there, and gives what it
    has so far; its last frame says why.
    """

    atoms: Atoms
    temperature: float  # K
    timestep: float  # fs
    interval: int  # time steps between two frames
    num_frames: int
    max_force: float  # eV/Å
    seed: int
    key: str = ""  # that of the plan
    pressure: float | None = None  # GPa

    @property
    def kind(self) -> str:
        """The `config_type` of its frames."""
        return f"md-{self.temperature:.0f}K" + ("" if self.pressure is None else f"-{self.pressure:g}GPa")

    def __call__(self, calculator: Calculator) -> list[Atoms]:
        atoms, steps = self.start(calculator)
        return frames_of(steps, atoms, calculator, self.kind)

    def start(self, calculator: Calculator) -> tuple[Atoms, Iterator[bool]]:
        """The atoms, and the time until each of the frames, which moves them."""
        rng = np.random.default_rng(self.seed)
        atoms = self.atoms.copy()
        atoms.calc = calculator
        thermalize_momenta(atoms, self.temperature, rng=rng)
        Stationary(atoms)
        if len(atoms) > 2 and not atoms.pbc.any():
            ZeroRotation(atoms)
        dynamics = self._thermostat(atoms, rng) if self.pressure is None else self._barostat(atoms, self.pressure, rng)
        dynamics.attach(lambda: check_forces(atoms, self.max_force))
        return atoms, (dynamics.run(self.interval) for _ in range(self.num_frames))

    def _thermostat(self, atoms: Atoms, rng: np.random.Generator) -> MolecularDynamics:
        atoms.set_constraint(FixCom())
        step = self.timestep * units.fs
        return Langevin(atoms, step, temperature_K=self.temperature, friction=FRICTION / units.fs, fixcm=False, rng=rng)

    def _barostat(self, atoms: Atoms, pressure: float, rng: np.random.Generator) -> MolecularDynamics:
        times = {"T_tau": units.fs / FRICTION, "P_tau": BAROSTAT * units.fs}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using heuristic P_mass")  # which is as asked
            return LangevinBAOAB(
                atoms,
                self.timestep * units.fs,
                temperature_K=self.temperature,
                externalstress=-pressure * units.GPa,
                hydrostatic=True,
                rng=rng,
                **times,
            )
