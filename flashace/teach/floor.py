"""A teacher, structures, a radius and perhaps labels in; what no strictly local student of it can learn, out, before any training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator
from rich.table import Table

from flashace.data.frames import Labelled
from flashace.errors import FlashACEError
from flashace.teach.limited import Limited
from flashace.teach.locality import MOST_ATOMS, Answer, answers_beyond
from flashace.teach.noise import Noise, noise_of
from flashace.teach.teacher_errors import TeacherErrors, teacher_errors
from flashace.verify import pairs, slopes, smoothness
from flashace.verify.law import PRECISIONS, Law, LawResult
from flashace.verify.state import evaluate
from flashace.verify.structures import shaken

MOST_STRUCTURES = 3  # evenly drawn
LAWS: tuple[Law, ...] = (
    slopes.forces,
    slopes.stress,
    smoothness.cutoff_in_the_structure,
    smoothness.cutoff_with_a_lone_neighbour,
    smoothness.force_jumps_in_the_structure,
    smoothness.force_jumps_of_a_pair,
    pairs.pair_repulsion,
)
STRICT = PRECISIONS["float32"]  # a student's own errors are larger than what this lets pass, whatever the teacher computes in
FAILED = "the calculator failed"  # begins what a law says then
FELT = 0.02  # of the root mean square of the forces: what is farther away and answers by less is not worth a larger cutoff


@dataclass(frozen=True)
class Floor:
    """What was measured of a teacher. Root mean squares, of components where they are of forces."""

    r_max: float  # Å, of the student
    noise: Noise
    forces: float  # meV/Å: size of the forces in the structures, shaken
    laws: list[LawResult]
    answers: list[Answer]  # beyond r_max, beyond 1 and 2 Å more, and beyond twice r_max
    errors: TeacherErrors | None
    failed: tuple[str, ...] = ()  # structures that the teacher could not do, and why

    @property
    def conservative(self) -> bool | None:
        """Whether its forces are the slope of its energy; None where that could not be measured."""
        return next(law.passed for law in self.laws if law.law == "forces")

    def in_words(self) -> list[str]:
        """What follows, a sentence each, for the terminal."""
        said = []
        if self.conservative is False:
            found = next(law for law in self.laws if law.law == "forces")
            said.append(
                f"NOT CONSERVATIVE: its forces differ from the slope of its energy by {found.measured:.2g} of the largest force; "
                "a student's forces are the slope of its energy, so it cannot learn both"
            )
        for law in self.laws:
            if law.passed is False and law.law not in ("forces", "pair repulsion"):
                said.append(f"{law.law}: BROKEN ({law.measured:.1e}, tolerance {law.tolerance:.1e}; {law.detail or law.meaning})")
            elif law.passed is False and law.law == "pair repulsion":
                said.append(f"two atoms do not always push each other apart ({law.detail}): short contacts are not to be learned from it")
        if self.failed:
            said.append(f"not measured on {len(self.failed)} of the structures that were drawn: {'; '.join(self.failed)}")
        return [*said, self._about_r_max()]

    def _about_r_max(self) -> str:
        own, *farther, _ = self.answers
        if own.forces is None:
            return f"beyond r_max {self.r_max:g} Å: not measured, {own.why}"
        text = f"beyond r_max {self.r_max:g} Å its forces answer by {own.forces:.2g} meV/Å"
        known = [(answer.radius - self.r_max, answer.forces) for answer in farther if answer.forces is not None]
        if own.forces < max(FELT * self.forces, 3 * self.noise.forces):
            return f"{text}: hardly anything; a larger r_max would not help"
        if not known:
            return f"{text}; whether a larger one would help was not measured: {farther[0].why}"
        changes = ", ".join(f"{forces:.2g} with {more:g} Å more" for more, forces in known)
        helps = min(forces for _, forces in known) < 0.7 * own.forces
        return f"{text}, {changes}: a larger r_max would {'help' if helps else 'hardly help'}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "r_max": self.r_max,
            "noise": self.noise._asdict(),
            "forces": self.forces,
            "laws": [law._asdict() for law in self.laws],
            "answers": [asdict(answer) for answer in self.answers],
            "errors": None if self.errors is None else asdict(self.errors),
            "failed": list(self.failed),
        }


def floor_of(
    calculator: Calculator,
    structures: Sequence[Atoms],
    r_max: float,
    labelled: Sequence[Labelled] | None = None,
    seconds: float = 15.0,
    most_atoms: int = MOST_ATOMS,
) -> Floor:
    """On at most three of the structures, evenly drawn; laws on the smallest of them. What takes longer than `seconds` is not measured.

    A structure that the teacher fails on is named and left out. With frames, also the teacher's errors on them (`teacher_errors`).
    Raises FlashACEError where the teacher can do none of the structures.
    """
    if not structures:
        raise FlashACEError("floor of a teacher: expected at least one structure, got none; name a file with structures")
    chosen = [structures[i] for i in sorted(set(np.linspace(0, len(structures) - 1, MOST_STRUCTURES).astype(int)))]
    done, noises, states, failed = [], [], [], {}
    for atoms in map(shaken, chosen):
        try:
            found = noise_of(calculator, atoms), evaluate(calculator, atoms, with_stress=False)
        except CalculationFailed as error:
            failed[atoms.get_chemical_formula()] = str(error)
            continue
        done.append(atoms)
        noises.append(found[0])
        states.append(found[1])
    if not done:
        why = "; ".join(dict.fromkeys(failed.values()))
        raise FlashACEError(f"teacher: it cannot do {', '.join(failed)} ({why}); take one that knows these elements")
    noise = Noise(*(float(np.sqrt(np.mean(np.square(values)))) for values in zip(*noises, strict=True)))
    size = 1e3 * float(np.sqrt(np.mean(np.concatenate([state.forces for state in states]) ** 2)))
    laws = _laws(calculator, min(done, key=len), seconds)
    radii = [r_max, r_max + 1, r_max + 2, 2 * r_max]
    answers = [answers_beyond(Limited(calculator, seconds), done, [radius], most_atoms)[0] for radius in radii]
    errors = None if labelled is None else teacher_errors(calculator, labelled)
    return Floor(r_max, noise, size, laws, answers, errors, tuple(f"{formula}: {why}" for formula, why in failed.items()))


def _laws(calculator: Calculator, atoms: Atoms, seconds: float) -> list[LawResult]:
    """Those that say something of the structure. One that the calculator failed is not measured: a teacher of crystals knows no pairs."""
    results = [law(Limited(calculator, seconds), atoms, STRICT) for law in LAWS]
    measured = [law._replace(passed=None) if law.detail.startswith(FAILED) else law for law in results]
    return [law for law in measured if law.passed is not None or law.detail.startswith(FAILED)]


def floor_table(floor: Floor, name: str = "teacher") -> Table:
    """What was measured but the errors, which `teacher_table` shows."""
    table = Table(f"floor of {name}", "measured", "what it means", title="What no strictly local student can learn", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("noise of energy", f"{floor.noise.energy:.2g} meV/atom", "the same structure, twice, turned and shifted")
    table.add_row("noise of forces", f"{floor.noise.forces:.2g} meV/Å", f"of forces of {floor.forces:.3g} meV/Å", end_section=True)
    verdicts = {True: "holds", False: "BROKEN", None: "not measured"}
    for law in floor.laws:
        number = "" if law.measured is None else f"{law.measured:.1e}, "
        table.add_row(law.law, number + verdicts[law.passed], law.meaning + (f"\n{law.detail}" if law.detail else ""))
    table.add_section()
    for answer in floor.answers:
        twice = answer is floor.answers[-1]
        measured = "not measured" if answer.forces is None else f"{answer.forces:.2g} meV/Å"
        meaning = "through atoms between, a student sees up to here" if twice else "change of a force when all beyond is rattled by 0.1 Å"
        table.add_row(f"locality: beyond {answer.radius:.3g} Å", measured, answer.why or meaning)
    if floor.errors is not None and floor.errors.zero is not None:
        zero = ", ".join(f"{symbol} {energy:.3f}" for symbol, energy in floor.errors.zero.values.items())
        table.add_section()
        table.add_row("zero of energy, eV", zero, f"teacher less your labels, {floor.errors.zero.origin}")
        worst = sorted(floor.errors.left_over.items(), key=lambda item: -abs(item[1]))[:6]
        left = ", ".join(f"{composition} {error:.2g}" for composition, error in worst)
        table.add_row("left over, meV/atom", left, "mean error of a composition after that (the largest)")
    return table
