"""Structures, a teacher and minutes in; how many frames it can be asked for out."""

import time
from collections.abc import Sequence
from dataclasses import replace

from ase import Atoms
from ase.calculators.calculator import CalculationFailed

from flashace.teach.config import USUAL, Config
from flashace.teach.guarded import Guarded
from flashace.teach.sampling import moves
from flashace.teach.sampling.seed import look_at
from flashace.teach.task import labelled
from flashace.teach.teachers import teacher

PART = 0.2  # of the time is the teacher's; the rest is for fits
COST = 15  # calculations for a frame, on the mean: in half of them lie some 30 steps of dynamics
FEWEST, MOST = 50, 20_000


def with_number(settings: Config, structures: Sequence[Atoms], minutes: float | None) -> Config:
    """The same, with the number of frames that a fifth of the minutes allows where none was given: the median seed is timed."""
    if settings.num is not None:
        return settings
    if minutes is None:
        return replace(settings, num=USUAL)
    seed = look_at(sorted(structures, key=len)[len(structures) // 2])
    atoms = moves.supercell(seed.atoms, settings.max_atoms) if seed.shape == "crystal" else seed.atoms
    times = []
    with Guarded(teacher(settings.teacher, settings.teacher_arg), settings.timeout) as calculator:
        for _ in range(3):  # the first is slow: libraries load, and kernels are made
            began = time.monotonic()
            atoms.rattle(0.01, seed=0)
            try:
                labelled(atoms, calculator)
            except CalculationFailed:
                return replace(settings, num=USUAL)
            times.append(time.monotonic() - began)
    affordable = PART * 60 * minutes * settings.workers / (COST * min(times))
    return replace(settings, num=min(max(int(affordable), FEWEST), MOST))
