"""A student in; what it does by itself, corrected by its teacher, until it errs by less than was asked, and a better student, out."""

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from rich.console import Console

from flashace.calculator import FlashACE
from flashace.data.extxyz import read_extxyz
from flashace.engines.many import evaluate_many
from flashace.errors import FlashACEError
from flashace.files import whole_file
from flashace.teach.config import DistillConfig, SampleConfig
from flashace.teach.sample import cohesion, label, sample
from flashace.teach.sampling.dynamics import dynamics, temperatures_of
from flashace.teach.sampling.seed import Seed, is_alone, look_at
from flashace.teach.spent import seconds_in, told_in
from flashace.teach.student import learn
from flashace.teach.task import Label, Task
from flashace.train.config import FitConfig

SAMPLED = "sampled.extxyz"
SPENT = "seconds"  # file in the run folder: how long it took so far
EVERY = 20  # of the sampled frames, the last is held out
HELD_OUT = 4  # each fourth trajectory of a student is for its errors, and never learned
LEARNED = 0.5  # of the other frames of a student, those that it is least sure of
FIRST_SHARE, ROUND_SHARE = 0.5, 0.5  # of the time that is left, for the first fit and for that of a round


@dataclass(frozen=True)
class Round:
    """How a student did on its own trajectories, which nobody had learned from. Root mean squares against the teacher."""

    number: int  # 0 is the student of the sampled frames
    model: str
    folder: str  # with its trajectories: held_out.extxyz, and what the next one learns
    frames: int  # held out
    forces: float  # meV/Å
    energy: float  # meV/atom
    failed: int  # frames that the teacher could not label, or where its force is beyond max_force
    seconds: float  # since the start, what interrupted sessions took included

    @property
    def place(self) -> Path:
        """Its folder."""
        return Path(self.folder)


def distill(structures: Sequence[Atoms], settings: DistillConfig, like: FitConfig, folder: Path, console: Console) -> list[Round] | None:
    """The rounds, best model of which is `folder`/model.pt in the end; None where Ctrl-C or SIGTERM came first, with everything saved.

    A round: the student runs dynamics from the seeds; frames of each fourth trajectory are held out; of the others, those that it is least
    sure of are labelled by the teacher and learned beside everything before. It ends when the forces on the held-out frames are off by less
    than `settings.error`, after `settings.rounds`, or when the time is over. What is there is not made twice.
    """
    began = time.monotonic() - seconds_in(folder / SPENT)
    with told_in(folder / SPENT, began):
        return _distill(structures, settings, like, folder, console, began)


def _distill(
    structures: Sequence[Atoms], settings: DistillConfig, like: FitConfig, folder: Path, console: Console, began: float
) -> list[Round] | None:
    sampled = folder / SAMPLED
    if not sampled.exists():
        sample(structures, settings, sampled, console)
    data, place = [_hold_out(sampled, folder)], folder / "student"
    rounds: list[Round] = []
    start: Path | None = None
    while True:
        share = FIRST_SHARE if start is None else ROUND_SHARE
        minutes = None if settings.max_time is None else max(share * _minutes_left(settings, began), 0.1)
        model = learn(data, like, place, console, minutes, start)
        if model is None:
            return None
        number = len(rounds)
        place = folder / f"round-{number + 1}"
        rounds.append(_look(model, structures, settings, place, number, began, console))
        write_rounds(folder / "rounds.csv", rounds)
        said = rounds[-1]
        console.print(
            f"round {number}: on {said.frames} frames of its own dynamics the forces are off by {said.forces:.1f} meV/Å, "
            f"energies by {said.energy:.2f} meV/atom; {settings.error:g} meV/Å asked; {said.failed} frames were put aside",
            soft_wrap=True,
        )
        over = _minutes_left(settings, began) <= 0 and not (place / "student").exists()  # a round that was begun is made
        if said.forces <= settings.error or number == settings.rounds or over:
            return rounds
        data, start, place = [*data, place / "frames.extxyz"], model, place / "student"


def _hold_out(sampled: Path, folder: Path) -> Path:
    """The frames to learn; each twentieth, or else the last, goes into held_out.extxyz, which no fit ever sees."""
    learned, held = folder / "frames.extxyz", folder / "held_out.extxyz"
    if not learned.exists():
        frames = list(read_extxyz(sampled))
        bound = [n for n, frame in enumerate(frames) if frame.info["config_type"] != "isolated_atom"]  # the zero of energy is learned
        chosen = set(bound[EVERY - 1 :: EVERY] or bound[-1:])  # one at least: a certificate needs it
        for path, own in ((held, [n for n in bound if n in chosen]), (learned, [n for n in range(len(frames)) if n not in chosen])):
            with whole_file(path) as aside:
                write(aside, [frames[n] for n in own], format="extxyz")
    return learned


def best_of(rounds: Sequence[Round]) -> Round:
    """That whose student erred least on its own trajectories."""
    return min(rounds, key=lambda found: found.forces)


def _minutes_left(settings: DistillConfig, began: float) -> float:
    return np.inf if settings.max_time is None else settings.max_time - (time.monotonic() - began) / 60


def _look(
    model: Path, structures: Sequence[Atoms], settings: DistillConfig, place: Path, number: int, began: float, console: Console
) -> Round:
    """What the student does by itself, and how far it is off; frames to learn in `place`."""
    place.mkdir(parents=True, exist_ok=True)
    held, learned = place / "held_out.extxyz", place / "frames.extxyz"
    if not learned.exists():
        seeds = [seed for seed in map(look_at, structures) if not is_alone(seed)]
        own = _own_frames(model, seeds, settings, place, number, console)
        _label(model, own, settings, place, console)
    frames = list(read_extxyz(held))
    forces, energy = errors_of(model, frames)
    aside = place / "labels.failed.extxyz"
    failed = sum(1 for _ in read_extxyz(aside)) if aside.exists() else 0
    return Round(number, str(model), str(place), len(frames), forces, energy, failed, time.monotonic() - began)


def errors_of(model: Path, frames: Sequence[Atoms]) -> tuple[float, float]:
    """Root mean squares on frames with results: of forces (meV/Å) and energies (meV/atom)."""
    results = evaluate_many(frames, FlashACE(str(model)))
    forces = np.concatenate([(frame.get_forces() - found["forces"]).ravel() for frame, found in zip(frames, results, strict=True)])
    energies = [(frame.get_potential_energy() - found["energy"]) / len(frame) for frame, found in zip(frames, results, strict=True)]
    return 1e3 * float(np.sqrt(np.mean(np.square(forces)))), 1e3 * float(np.sqrt(np.mean(np.square(energies))))


def _own_frames(
    model: Path, seeds: Sequence[Seed], settings: DistillConfig, place: Path, number: int, console: Console
) -> list[tuple[int, Atoms]]:
    """Trajectory and frame, of dynamics by the student; seeds of each shape in turn."""
    rng = np.random.default_rng([settings.seed, number + 1])
    bound = cohesion(list(read_extxyz(place.parent / SAMPLED)))
    tasks: list[Any] = []
    for shape in dict.fromkeys(seed.shape for seed in seeds):
        alike = [seed for seed in seeds if seed.shape == shape]
        as_sampled = replace(settings, temperatures=settings.temperatures or temperatures_of(shape, bound))
        tasks += dynamics(alike, max(settings.round_frames * len(alike) // len(seeds), 1), rng, as_sampled)
    tasks = [replace(task, key=f"own-{n:05d}") for n, task in enumerate(tasks)]
    path = place / "own.extxyz"
    student = replace(settings, teacher=f"flashace:{model}", teacher_arg=())
    label(tasks, student, path, console, same=False)  # its path is another one, seen from another folder
    return [(int(frame.info["task"].split("-")[1]), frame) for frame in read_extxyz(path)]


def _label(model: Path, own: Sequence[tuple[int, Atoms]], settings: SampleConfig, place: Path, console: Console) -> None:
    """The teacher's labels of held-out frames and of those to learn, each in its file."""
    going = sorted({trajectory for trajectory, _ in own})  # without those that the student could not even begin
    if len(going) < 2:
        raise FlashACEError(
            f"{place}: expected two trajectories of the student at least, got {len(going)}; {place / 'own.failed.extxyz'} says why; "
            "it needs more frames (--num) or a longer fit"
        )
    held = [frame for trajectory, frame in own if trajectory in going[::HELD_OUT]]
    others = [frame for trajectory, frame in own if trajectory not in going[::HELD_OUT]]
    order = np.argsort([-x for x in _uncertainties(model, others)], kind="stable")[: max(round(LEARNED * len(others)), 1)]
    chosen = {"held_out": held, "frames": [others[i] for i in sorted(order)]}
    tasks: list[Task] = [Label(f"{name}-{n:05d}", _bare(frame)) for name, frames in chosen.items() for n, frame in enumerate(frames)]
    path = place / "labels.extxyz"
    label(tasks, settings, path, console)
    labelled = list(read_extxyz(path))
    for name in ("held_out", "frames"):  # frames.extxyz last: where it is, all is there
        found = [frame for frame in labelled if frame.info["task"].startswith(name)]
        if not found:
            raise FlashACEError(
                f"{place}: the teacher {settings.teacher} could label none of {len(chosen[name])} frames of the student; "
                f"see {path} and what is beside it"
            )
        with whole_file(place / f"{name}.extxyz") as aside:
            write(aside, found, format="extxyz")


def _bare(frame: Atoms) -> Atoms:
    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    atoms.info["config_type"] = f"own-{frame.info['config_type']}"
    return atoms


def _uncertainties(model: Path, frames: Sequence[Atoms]) -> list[float]:
    """eV: of the energy of the least certain atom; zeros where the model does not know."""
    calculator = FlashACE(str(model))
    if calculator.model.uncertainty is None:
        return [0.0] * len(frames)
    return [float(np.max(calculator.get_uncertainty(frame.copy()).energies)) for frame in frames]


def write_rounds(path: Path, rounds: Sequence[Any]) -> None:
    """A row for each, of its fields."""
    rows = [asdict(found) for found in rounds]
    with whole_file(path) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
