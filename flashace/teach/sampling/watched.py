"""A structure in; dynamics under a model that ends where the model is unsure, out."""

from dataclasses import dataclass

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.calculator import FlashACE
from flashace.errors import FlashACEError
from flashace.guards import on_purpose
from flashace.teach.sampling.trajectory import Trajectory
from flashace.teach.task import labelled


@dataclass(frozen=True, eq=False)
class Watched(Trajectory):
    """Where it ends early, its last frame is the one where the model was unsure, with the reason in `info` (`ended`)."""

    stop: float = 0.0  # eV: of the energy of an atom; `stop_uncertainty` of the calculator

    def __call__(self, calculator: Calculator) -> list[Atoms]:
        """Raises FlashACEError for a calculator that is no model of ours."""
        if not isinstance(calculator, FlashACE):
            raise FlashACEError(f"watched dynamics: expected a model of FlashACE, got {type(calculator).__name__}; name flashace:MODEL")
        calculator.set(stop_uncertainty=None)  # a barostat looks at the start before the first step
        atoms, steps = self.start(calculator)
        calculator.set(stop_uncertainty=self.stop)
        frames: list[Atoms] = []
        try:
            for _ in steps:
                frames.append(labelled(atoms, calculator, config_type=self.kind))
        except CalculationFailed as error:
            calculator.set(stop_uncertainty=None)
            try:
                with on_purpose():  # the reason is told with the frame
                    frames.append(labelled(atoms, calculator, config_type=self.kind))
            except CalculationFailed:  # not even finite
                if not frames:
                    raise
            frames[-1].info["ended"] = str(error)
        return frames
