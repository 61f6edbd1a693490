"""A few frames and somebody who labels in; a model that runs from them without ever being unsure, and how many labels that took, out.

A round: a fit to all labels so far, from the last model on; dynamics by the model from the seeds, which ends where the model is unsure; a
choice of what these runs have met (`selection`); its labels. What is in the run folder is not made twice, so a killed run goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.io import write
from rich.console import Console

from flashace.calculator import FlashACE
from flashace.data.extxyz import read_extxyz
from flashace.data.frames import read_labelled
from flashace.data.origin import Origin
from flashace.errors import FlashACEError
from flashace.files import whole_file
from flashace.teach.by_files import answers, as_labelled, ask
from flashace.teach.config import LearnConfig
from flashace.teach.rounds import errors_of, write_rounds
from flashace.teach.sample import label
from flashace.teach.sampling import moves
from flashace.teach.sampling.dynamics import APART, timestep
from flashace.teach.sampling.isolated_atom import IsolatedAtom
from flashace.teach.sampling.seed import Shape, is_alone, look_at
from flashace.teach.sampling.watched import Watched
from flashace.teach.selection import Selector, write_choice
from flashace.teach.student import learn
from flashace.teach.task import Label
from flashace.train.config import FitConfig

FILES = "files:"  # begins the name of a folder in place of a teacher
STEPS = 3000  # of a fit, of two frames each: enough for a few dozen frames, and what a later fit has, which begins where the last one ended
MOST_EPOCHS = 400
FRAMES = 25  # of a trajectory
SURE = 3.0  # times the largest uncertainty of an atom in the frames that a model was calibrated on: docs/uncertainty.md
PER_ROUND = 10  # labels, where their number is not given
ROUND = "round"
UNDER_PRESSURE: tuple[Shape, ...] = ("crystal", "molecules")  # shapes of seeds whose cell a pressure acts on


@dataclass(frozen=True)
class LearnedRound:
    """What a round took and gave."""

    number: int  # 0 has the labels of the seeds
    labels: int  # all so far, isolated atoms not counted
    picoseconds: float  # of dynamics by the model that was fitted to them
    stopped: int  # of its trajectories
    trajectories: int
    threshold: float  # eV
    forces: float | None  # meV/Å: error on the frames that were chosen from these, before they were learned; none where none were


class Outcome(NamedTuple):
    """How it ended: `sure` where a whole run stayed below the threshold, `waiting` for labels in files, `rounds` where they are used up."""

    how: str
    rounds: list[LearnedRound]
    model: Path | None
    places: Sequence[Path] = ()  # of the frames that are waited for


def learn_by_doing(structures: Sequence[Atoms], settings: LearnConfig, like: FitConfig, folder: Path, console: Console) -> Outcome | None:
    """None where Ctrl-C or SIGTERM came first, with everything saved."""
    rounds: list[LearnedRound] = []
    data: list[Path] = []
    model: Path | None = None
    while True:
        number = len(rounds)
        place = folder / f"{ROUND}-{number}"
        place.mkdir(exist_ok=True)
        chosen = structures if number == 0 else list(read_extxyz(place / "chosen.extxyz"))
        waiting = _labels(chosen, settings, folder, number, console)
        if waiting:
            return Outcome("waiting", rounds, model, waiting)
        data.append(place / "frames.extxyz")
        if rounds and model is not None:
            rounds[-1] = replace(rounds[-1], forces=errors_of(model, [a for a in read_extxyz(data[-1]) if not _is_isolated(a)])[0])
            write_rounds(folder / "rounds.csv", rounds)
        num_labels = sum(not _is_isolated(atoms) for path in data for atoms in read_extxyz(path))
        epochs = like.train.epochs or min(2 * STEPS // num_labels, MOST_EPOCHS)
        fitted = learn(data, like, place / "student", console, None, model, epochs)
        if fitted is None:
            return None
        model = fitted
        rounds.append(_run(model, structures, settings, place, num_labels, console))
        write_rounds(folder / "rounds.csv", rounds)
        _tell(rounds[-1], console)
        if rounds[-1].stopped == 0:
            return Outcome("sure", rounds, model)
        if number == settings.rounds:
            return Outcome("rounds", rounds, model)
        _choose(model, data, settings, place, folder / f"{ROUND}-{number + 1}", console)


# Labels


def labels_of_seeds(paths: Sequence[str], folder: Path) -> None:
    """Those that the seeds come with are the labels of the first round, and of no others is asked then."""
    frames = [frame for frame in read_labelled(paths, required=())[0] if frame.energy is not None and frame.forces is not None]
    if frames:
        place = folder / f"{ROUND}-0"
        place.mkdir(exist_ok=True)
        with whole_file(place / "frames.extxyz") as aside:
            write(aside, [as_labelled(frame) for frame in frames], format="extxyz")


def _labels(chosen: Sequence[Atoms], settings: LearnConfig, folder: Path, number: int, console: Console) -> Sequence[Path]:
    """frames.extxyz of this round; where no label can be had yet, the folders in which they are waited for."""
    place = folder / f"{ROUND}-{number}"
    path = place / "frames.extxyz"
    if path.exists():
        return ()
    tasks = [Label(f"{ROUND}-{number}-{n:03d}", _bare(atoms, number)) for n, atoms in enumerate(chosen, 1)]
    if not settings.teacher.startswith(FILES):
        alone = [IsolatedAtom(Atoms(symbol), f"alone-{symbol}") for symbol in sorted({s for atoms in chosen for s in atoms.symbols})]
        labels = place / "labels.extxyz"
        label([*(alone if number == 0 else []), *tasks], settings, labels, console)
        found = list(read_extxyz(labels))
        if all(_is_isolated(atoms) for atoms in found):
            raise FlashACEError(
                f"teacher {settings.teacher}: expected labels of {len(tasks)} frames, got none; {labels.with_name('labels.failed.extxyz')} "
                "says why, and without that file they are tried again"
            )
    else:
        there = Path(settings.teacher.removeprefix(FILES))
        places = ask([task.atoms for task in tasks], there, f"{ROUND}-{number}")
        got = answers([task.atoms for task in tasks], there, lambda text: console.print(text, soft_wrap=True))
        if not any(got):
            return places
        missing = got.count(None)
        if missing:
            console.print(f"{missing} of {len(tasks)} frames have no label yet; it goes on without them", soft_wrap=True)
        found = [atoms for atoms in got if atoms is not None]
    with whole_file(path) as aside:
        write(aside, found, format="extxyz")
    return ()


def _bare(atoms: Atoms, number: int) -> Atoms:
    info = {"config_type": str(atoms.info.get("config_type", "seed" if number == 0 else "own"))}
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=info)


def _is_isolated(atoms: Atoms) -> bool:
    return str(atoms.info.get("config_type", "")).lower().replace("_", "") == "isolatedatom"


# Dynamics and what is learned from it


def _run(model: Path, structures: Sequence[Atoms], settings: LearnConfig, place: Path, num_labels: int, console: Console) -> LearnedRound:
    """Each seed at each temperature and pressure, from a little disturbed positions, others in each round; frames in `own.extxyz`."""
    number = int(place.name.rpartition("-")[2])
    threshold = settings.stop or _usual(model)
    seeds = [seed for seed in map(look_at, structures) if not is_alone(seed)]
    rng = np.random.default_rng([settings.seed, number])
    tasks: list[Watched] = []
    for seed in seeds:
        atoms = moves.supercell(seed.atoms, settings.max_atoms) if seed.shape == "crystal" else seed.atoms
        step = timestep(atoms)
        interval = max(round(1000 * settings.time / (FRAMES * step)), round(APART / step), 1)
        frames = max(round(1000 * settings.time / (interval * step)), 1)
        pressures = settings.pressures if seed.shape in UNDER_PRESSURE else ()
        for temperature, pressure in product(settings.temperatures, pressures or (None,)):
            start, own = moves.rattled(atoms, 0.02, rng), int(rng.integers(2**31))
            key = f"own-{len(tasks):04d}"
            tasks.append(Watched(start, temperature, step, interval, frames, settings.max_force, own, key, pressure, threshold))
    path = place / "own.extxyz"
    student = replace(settings, teacher=f"flashace:{model}", teacher_arg=())
    label(tasks, student, path, console, same=False)  # its path is another one, seen from another folder
    met: dict[str, list[Atoms]] = {}
    for atoms in read_extxyz(path):
        met.setdefault(str(atoms.info["task"]), []).append(atoms)
    whole = [task for task in tasks if len(met.get(task.key, ())) == task.num_frames and "ended" not in met[task.key][-1].info]
    run = sum(len(met.get(task.key, ())) * task.interval * task.timestep for task in tasks) / 1000
    return LearnedRound(number, num_labels, round(run, 3), len(tasks) - len(whole), len(tasks), threshold, None)


def _usual(model: Path) -> float:
    """eV: above what the model was calibrated on. Raises FlashACEError where it does not know."""
    uncertainty = FlashACE(str(model)).model.uncertainty
    if uncertainty is None:
        raise FlashACEError(f"{model}: expected a model that knows its uncertainty; the fit says above why it does not")
    return SURE * uncertainty.largest


def _choose(model: Path, data: Sequence[Path], settings: LearnConfig, place: Path, after: Path, console: Console) -> None:
    """chosen.extxyz of the next round, from what the trajectories of this one have met."""
    path = after / "chosen.extxyz"
    if path.exists():
        return
    own = place / "own.extxyz"
    selector = Selector(FlashACE(str(model)), settings.max_force)
    pool = selector.look((atoms, Origin(str(own), n)) for n, atoms in enumerate(read_extxyz(own)))
    choice = selector.choose(pool, settings.num or PER_ROUND, others=[atoms for each in data for atoms in read_extxyz(each)])
    if not choice.chosen:
        raise FlashACEError(
            f"{own}: expected frames to label, got none that differs from those that are learned; {own.with_name('own.failed.extxyz')} "
            "may say why. A larger --time or --max-force shows the model more"
        )
    after.mkdir(exist_ok=True)
    write_choice(path, choice)
    console.print(
        f"{len(choice.chosen)} frames of {pool.frames} are to be labelled; the uncertainty of an atom is expected to fall from "
        f"{1e3 * choice.before:.3g} to {1e3 * choice.after[-1]:.3g} meV",
        soft_wrap=True,
    )


def _tell(found: LearnedRound, console: Console) -> None:
    console.print(
        f"round {found.number}: {found.labels} labels; {found.picoseconds:.3g} ps run; {found.stopped} of {found.trajectories} runs "
        f"stopped, since an atom's energy was uncertain by more than {1e3 * found.threshold:.3g} meV or its surroundings unlike the data",
        soft_wrap=True,
    )
