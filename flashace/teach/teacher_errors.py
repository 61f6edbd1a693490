"""Teachers and a user's labelled frames in; how far each teacher is from these labels, kind by kind, and what it can be good for, out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase.calculators.calculator import CalculationFailed, Calculator
from rich.table import Table

from flashace.check.linear_ace import LinearACE, Ridge
from flashace.data.frames import Labelled
from flashace.data.statistics import ReferenceEnergies, reference_energies
from flashace.errors import FlashACEError
from flashace.evaluate.metrics import ErrorTable
from flashace.structure.neighbors import build_graph
from flashace.verify.state import State, evaluate

MOST_FRAMES = 100  # of a kind, evenly drawn
QUICK_R_MAX = 5.0  # Å, of the quick fits
QUICK_EDGES = 200_000  # neighbour pairs of all frames of the quick fits: some 15 seconds of one core
QUICK_FRAMES = 20  # fewer frames with forces are not fitted
EXACT = 1e-9  # eV/Å: a teacher that is off by no more leaves nothing to fit
BETTER, SAME = 0.8, 1.1  # error of the quick fit with the teacher over that without it

Evaluated = list[tuple[Labelled, State]]


@dataclass(frozen=True)
class KindErrors:
    """Root mean square errors of a teacher on the frames of one kind; None where there is no label."""

    kind: str
    frames: int
    energy: float | None  # meV/atom, after `zero`
    forces: float | None  # meV/Å
    stress: float | None  # meV/Å³
    size: float | None  # meV/Å: root mean square of the labelled forces
    alone: float | None = None  # meV/Å: of a quick fit to other frames' labels
    helped: float | None = None  # meV/Å: of the same quick fit to what the teacher is off by

    def expectation(self) -> str:
        """One sentence from these numbers."""
        if self.forces is None or self.size is None:
            return "no forces to compare with"
        if self.alone is None or self.helped is None:
            off = self.forces / max(self.size, 1e-9)
            return f"off by {off:.0%} of the forces; too few frames to tell what it adds to them"
        part = min(self.helped, self.forces) / max(self.alone, 1e-9)
        if part > SAME:
            return f"the frames know better: a quick fit that starts from it errs {self.helped / self.alone - 1:.0%} more"
        if part > BETTER:
            return "adds little to what the frames tell, as far as a quick fit shows"
        if self.forces < self.helped:
            return f"teaches what the frames lack: it is {1 - part:.0%} closer than a quick fit to the other frames"
        return f"knows what the frames do not tell: a quick fit that starts from it errs {1 - part:.0%} less"


@dataclass(frozen=True)
class TeacherErrors:
    """What a teacher is worth on a user's frames; the last of `kinds` is all of them."""

    kinds: list[KindErrors]
    zero: ReferenceEnergies | None  # eV per element: teacher less labels; None where no frame has an energy
    left_over: dict[str, float]  # composition -> meV/atom: mean by which its energies are still off after `zero`
    failed: list[str]  # frames that the teacher could not do, and why


def teacher_errors(calculator: Calculator, frames: Sequence[Labelled], advance: Callable[[int], Any] = lambda done: None) -> TeacherErrors:
    """On at most 100 frames of each config_type; atoms alone are left out. `advance` is called after each frame.

    Energies are compared after their zero was moved: one constant per element, by least squares. Raises FlashACEError where no frame can be
    compared.
    """
    evaluated: Evaluated = []
    failed = []
    for frame in drawn(frames):
        try:
            evaluated.append((frame, evaluate(calculator, frame.atoms, with_stress=frame.stress is not None)))
        except CalculationFailed as error:
            failed.append(f"{frame.origin}: {error}")
        advance(1)
    if not evaluated:
        raise FlashACEError(
            f"teacher: expected it to evaluate some of {len(frames)} frames, got none"
            + (f" ({failed[0]}); take a teacher that knows these elements" if failed else "; name frames of more than one atom")
        )
    zero, aligned = align(evaluated)
    return TeacherErrors(_kinds(aligned), zero, {} if zero is None else _left_over(aligned), failed)


def drawn(frames: Sequence[Labelled], most: int = MOST_FRAMES) -> list[Labelled]:
    """At most so many of each config_type, evenly over the data, in their order; without atoms alone."""
    kinds: dict[str, list[int]] = {}
    for i, frame in enumerate(frames):
        if len(frame.atoms) > 1:
            kinds.setdefault(frame.config_type, []).append(i)
    chosen = {own[i] for own in kinds.values() for i in np.linspace(0, len(own) - 1, min(most, len(own))).astype(int)}
    return [frames[i] for i in sorted(chosen)]


# --- the zero of energy ---


def align(evaluated: Evaluated) -> tuple[ReferenceEnergies | None, Evaluated]:
    """The zero of energy of a calculator less that of the labels, one constant per element by least squares; and the same without it."""
    known = [replace(frame, energy=state.energy - frame.energy) for frame, state in evaluated if frame.energy is not None]
    if not known:
        return None, evaluated
    zero = reference_energies(known, {}, "")
    return zero, [(frame, _moved(frame, state, zero.values)) for frame, state in evaluated]


def _moved(frame: Labelled, state: State, zero: Mapping[str, float]) -> State:
    return state._replace(energy=state.energy - sum(zero.get(symbol, np.nan) for symbol in frame.atoms.symbols))


def add_errors(table: ErrorTable, frame: Labelled, state: State) -> None:
    """Counts a frame; a stress that the calculator does not have is not compared."""
    stress = None if state.virial is None else state.virial / frame.atoms.get_volume()
    compared = frame if stress is not None else frame.without("stress")
    table.add(compared, {"energy": state.energy, "forces": state.forces, "stress": stress})


def _left_over(aligned: Evaluated) -> dict[str, float]:
    errors: dict[str, list[float]] = {}
    for frame, state in aligned:
        if frame.energy is not None:
            composition = frame.atoms.get_chemical_formula(empirical=True)
            errors.setdefault(composition, []).append(1e3 * (state.energy - frame.energy) / len(frame.atoms))
    return {composition: float(np.mean(own)) for composition, own in errors.items()}


# --- errors ---


def _kinds(aligned: Evaluated) -> list[KindErrors]:
    table = ErrorTable()
    for frame, state in aligned:
        add_errors(table, frame, state)
    quick = _quick_fits(aligned)
    rows = table.rows()
    types = {frame.config_type for frame, _ in aligned}
    kinds = []
    for row in (row for row in rows if row is rows[-1] or row["config_type"] in types):  # not those of sources
        own = [i for i, (frame, _) in enumerate(aligned) if row is rows[-1] or frame.config_type == row["config_type"]]
        size = _rms([aligned[i][0].forces for i in own])
        alone, helped = (_rms([found[i] for i in own]) for found in quick)
        errors = row["energy_rmse"], row["forces_rmse"], row["stress_rmse"]
        kinds.append(KindErrors(row["config_type"], row["frames"], *errors, size, alone, helped))
    return kinds


def _rms(values: Sequence[np.ndarray | None]) -> float | None:
    """meV/Å of components; None where there are none."""
    known = [value.ravel() for value in values if value is not None]
    return 1e3 * float(np.sqrt(np.mean(np.concatenate(known) ** 2))) if known else None


def _quick_fits(aligned: Evaluated) -> tuple[list[np.ndarray | None], list[np.ndarray | None]]:
    """Errors of the forces, eV/Å, by two linear fits, each frame predicted from other frames: to the labels, and to what the teacher is off
    by. None for frames without forces, and for all where there are too few.

    How large an error is does not tell what a teacher is good for: one that is off by a smooth function is soon corrected, and a small
    error without any order never. GFN2-xTB is off by half of the forces of acetylacetone, and is the best of teachers for it.
    """
    nothing: list[np.ndarray | None] = [None] * len(aligned)
    known = [i for i, (frame, _) in enumerate(aligned) if frame.forces is not None]
    edges = {i: build_graph(aligned[i][0].atoms, QUICK_R_MAX).edge_vec.shape[0] for i in known}
    while sum(edges[i] for i in known) > QUICK_EDGES and len(known) >= 2 * QUICK_FRAMES:
        known = known[::2]
    if len(known) < QUICK_FRAMES:
        return nothing, nothing
    frames = [aligned[i][0] for i in known]
    numbers = sorted({int(z) for frame in frames for z in set(frame.atoms.numbers)})
    ace = LinearACE(numbers, QUICK_R_MAX)
    rows = [ace.rows(build_graph(frame.atoms, QUICK_R_MAX)) for frame in frames]
    counts = np.array([[np.count_nonzero(frame.atoms.numbers == z) for z in numbers] for frame in frames], float)
    everything, no_energy = np.ones(len(frames), bool), np.full(len(frames), np.nan)
    found = []
    labels = [np.asarray(frame.forces) for frame in frames]
    for targets in (labels, [label - aligned[i][1].forces for i, label in zip(known, labels, strict=True)]):
        exact = max(np.abs(target).max() for target in targets) < EXACT
        predicted = np.zeros(len(targets)) if exact else Ridge(rows, counts, targets, everything).predict(no_energy).forces
        errors = list(nothing)
        for i, target, guess in zip(known, targets, predicted, strict=True):
            errors[i] = target - guess
        found.append(errors)
    return found[0], found[1]


# --- several teachers ---


@dataclass(frozen=True)
class Comparison:
    """Teachers by name, on the same frames."""

    teachers: dict[str, TeacherErrors]
    put_aside: dict[str, str] = field(default_factory=dict)  # those that could do no frame, and why

    @property
    def best(self) -> str:
        """The name of the one from whose forces a quick fit comes closest; of the one whose forces are closest where none was made."""
        whole = {name: errors.kinds[-1] for name, errors in self.teachers.items()}
        helped = {name: kind.helped for name, kind in whole.items() if kind.helped is not None}
        forces = {name: np.inf if kind.forces is None else kind.forces for name, kind in whole.items()}
        close = helped if len(helped) == len(whole) else forces
        return min(close, key=close.__getitem__)


def compare_teachers(teachers: Mapping[str, Calculator], frames: Sequence[Labelled]) -> Comparison:
    """Each of them on at most 100 frames of each kind. Raises FlashACEError where none of them can do any."""
    found: dict[str, TeacherErrors] = {}
    put_aside: dict[str, str] = {}
    for name, calculator in teachers.items():
        try:
            found[name] = teacher_errors(calculator, frames)
        except FlashACEError as error:
            put_aside[name] = str(error)
    if not found:
        raise FlashACEError("; ".join(f"{name}: {why}" for name, why in put_aside.items()))
    return Comparison(found, put_aside)


def teacher_table(teachers: Mapping[str, TeacherErrors]) -> Table:
    """Errors kind by kind, several teachers side by side, for the terminal."""
    table = Table(title="Teachers on your frames: RMSE", title_justify="left")
    table.add_column("config_type", overflow="fold")
    for name in ("frames", "forces\nmeV/Å"):
        table.add_column(name, justify="right")
    table.add_column("teacher", overflow="fold")
    for name in ("energy\nmeV/atom", "forces\nmeV/Å", "stress\nmeV/Å³"):
        table.add_column(name, justify="right")
    table.add_column("quick fit alone → with it\nmeV/Å, and what follows", overflow="fold")
    kinds = list(dict.fromkeys(kind.kind for errors in teachers.values() for kind in errors.kinds if kind.kind != "all"))
    for kind in [*kinds, "all"]:
        own = {name: found for name, errors in teachers.items() for found in errors.kinds if found.kind == kind}
        for n, (name, found) in enumerate(own.items()):
            first = [kind or "(none)", str(found.frames), _digits(found.size)] if n == 0 else ["", "", ""]
            quick = "" if found.alone is None else f"{_digits(found.alone)} → {_digits(found.helped)}: "
            numbers = [_digits(value) for value in (found.energy, found.forces, found.stress)]
            table.add_row(*first, name, *numbers, quick + found.expectation(), end_section=n == len(own) - 1)
    return table


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
