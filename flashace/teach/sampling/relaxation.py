"""A structure in; the first steps of its relaxation under the teacher, whose labels cost nothing beyond it, out."""

from collections.abc import Iterator
from dataclasses import dataclass

from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS

from flashace.teach.sampling.frames import frames_of

STEPS = 2, 5, 12  # before each of the frames
RELAXED = 0.05  # eV/Å: it ends there


@dataclass(frozen=True, eq=False)
class Relaxation:
    """What is stiff follows what was changed; what is soft, such as a turned bond, hardly moves back. The cell stays."""

    kind: str  # the `config_type` of its frames
    atoms: Atoms
    num_frames: int = len(STEPS)
    key: str = ""  # that of the plan

    def __call__(self, calculator: Calculator) -> list[Atoms]:
        atoms = self.atoms.copy()
        atoms.calc = calculator
        return frames_of(_steps(atoms, self.num_frames), atoms, calculator, self.kind)


def _steps(atoms: Atoms, num: int) -> Iterator[None]:
    optimizer = BFGS(atoms, logfile=None, maxstep=0.1)
    for steps in STEPS[:num]:
        done = optimizer.run(fmax=RELAXED, steps=steps)
        yield
        if done:
            return
