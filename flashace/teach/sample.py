"""Seeds and options in; a plan of tasks, and once a teacher has done them a file of labelled frames, out."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from rich.console import Console
from rich.table import Table

from flashace.data.extxyz import read_extxyz
from flashace.errors import FlashACEError
from flashace.files import undone_by_signals, whole_file
from flashace.teach.config import USUAL, SampleConfig
from flashace.teach.journal import Journal
from flashace.teach.sampling.defects import defects
from flashace.teach.sampling.drawn import Drawn
from flashace.teach.sampling.dynamics import OF_MELTING, dynamics, temperatures_of
from flashace.teach.sampling.isolated_atom import IsolatedAtom
from flashace.teach.sampling.rattled import rattled
from flashace.teach.sampling.seed import Seed, Shape, is_alone, look_at
from flashace.teach.sampling.slabs import slabs
from flashace.teach.sampling.stretched import stretched
from flashace.teach.sampling.torsion import torsion
from flashace.teach.sampling.trajectory import Trajectory
from flashace.teach.similar import near_duplicates
from flashace.teach.task import Failure, Task
from flashace.teach.teachers import teacher
from flashace.teach.workers import Workers
from flashace.train.log import progress_bar

Way = Callable[[Sequence[Seed], int, np.random.Generator, SampleConfig], Sequence[Task]]

# the part of the frames that each way makes; what a way cannot do falls to the last one
SHARES: dict[Shape, dict[Way, float]] = {
    "molecule": {torsion: 0.25, stretched: 0.10, rattled: 0.15, dynamics: 0.50},
    "molecules": {torsion: 0.05, stretched: 0.10, rattled: 0.20, dynamics: 0.65},
    "crystal": {rattled: 0.25, defects: 0.15, slabs: 0.15, dynamics: 0.45},
    "slab": {rattled: 0.40, dynamics: 0.60},
}
SEEDS = 0.1  # part of the frames, at most, that are seeds as they are


def plan(structures: Sequence[Atoms], num: int, seed: int, settings: SampleConfig, cohesion: float | None = None) -> list[Task]:
    """Tasks with `num` frames together and, first, one for each element alone and for seeds as they are.

    The same tasks for the same arguments. `cohesion`, the energy in eV that it takes to part the atoms of crystals and slabs, per atom,
    tells how hot their dynamics has to be, where the settings do not. Raises FlashACEError where all structures are atoms alone.
    """
    rng = np.random.default_rng(seed)
    looked = [look_at(structures[n]) for n in rng.permutation(len(structures))]
    seeds = [seed for seed in looked if not is_alone(seed)]
    if not seeds:
        raise FlashACEError(f"seeds: expected a molecule or a crystal, got {len(looked)} single atoms alone; name other structures")
    as_given = [Drawn("seed", seed.atoms) for seed in seeds[: max(int(SEEDS * num), 1)]]
    tasks: list[Task] = [*as_given]
    for shape in SHARES:
        alike = [seed for seed in seeds if seed.shape == shape]
        if alike:
            temperatures = settings.temperatures or temperatures_of(shape, cohesion)
            here = replace(settings, temperatures=temperatures)
            tasks += _of_shape(alike, round((num - len(as_given)) * len(alike) / len(seeds)), SHARES[shape], rng, here)
    elements = sorted({symbol for atoms in structures for symbol in atoms.symbols})
    return _numbered([*(IsolatedAtom(Atoms(symbol)) for symbol in elements), *tasks])


def _of_shape(seeds: Sequence[Seed], num: int, shares: dict[Way, float], rng: np.random.Generator, settings: SampleConfig) -> list[Task]:
    *ways, last = shares
    tasks = [task for way in ways for task in way(seeds, round(shares[way] * num), rng, settings)]
    return [*tasks, *last(seeds, num - sum(map(frames_in, tasks)), rng, settings)]


def frames_in(task: Any) -> int:
    """How many frames it makes when all goes well."""
    return int(getattr(task, "num_frames", 1))


def _numbered(tasks: Iterable[Any]) -> list[Task]:
    """Each with a key of its own: its kind, its number in that, and a hash of what it does."""
    numbers: Counter[str] = Counter()
    numbered = []
    for task in tasks:
        numbers[task.kind] += 1
        numbered.append(replace(task, key=f"{task.kind}-{numbers[task.kind]:05d}-{_hash(task)}"))
    return numbered


def _hash(task: Any) -> str:
    """So that a run with other seeds or options never takes the frames of this one for its own."""
    told = [type(task).__name__]
    for f in fields(task):
        value = getattr(task, f.name)
        if isinstance(value, Atoms):
            value = value.numbers.tolist(), value.positions.round(5).tolist(), value.cell.array.round(5).tolist(), value.pbc.tolist()
        told.append(repr(value))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:6]


def sample(structures: Sequence[Atoms], settings: SampleConfig, output: Path, console: Console) -> list[Atoms]:
    """The frames, isolated atoms first, which stand in `output` too. Until then a journal beside it lets a killed run go on.

    Raises FlashACEError where the teacher cannot be had, or could label nothing.
    """
    labels = journal_of(output)
    tasks = plan(structures, settings.num or USUAL, settings.seed, settings)
    if not settings.temperatures and any(look_at(atoms).shape in OF_MELTING for atoms in structures):
        console.print("isolated atoms and seeds come first: their energies say how hot crystals have to be")
        first = [task for task in tasks if isinstance(task, IsolatedAtom) or task.key.startswith("seed-")]
        label(first, settings, labels, console)
        tasks = plan(structures, settings.num or USUAL, settings.seed, settings, cohesion(_in_order(labels, first)))
    console.print(decisions(tasks, structures, settings))
    label(tasks, settings, labels, console)
    frames = _in_order(labels, tasks)
    _tell_put_aside(labels, console)
    if all(frame.info["config_type"] == "isolated_atom" for frame in frames):
        raise FlashACEError(
            f"teacher {settings.teacher}: expected labels, got none for {len(tasks)} tasks but isolated atoms; "
            f"{_aside(labels)} says why, and without that file they are tried again"
        )
    frames = _without_near_duplicates(frames, console)
    with whole_file(output) as file:
        write(file, frames, format="extxyz")
    labels.unlink()
    console.print(results(frames))
    return frames


def journal_of(output: Path) -> Path:
    """Where labels are kept until all are there."""
    return output.with_name(f"{output.stem}.journal.extxyz")


def label(tasks: Sequence[Task], settings: SampleConfig, path: Path, console: Console, same: bool = True) -> None:
    """The labels of `tasks` into the journal at `path`, but for those that it has. Raises FlashACEError where these are of a teacher of
    another name, unless `same` is false."""
    named = teacher(settings.teacher, settings.teacher_arg)
    with undone_by_signals(), Journal(path, named.source if same else None) as journal, progress_bar(console) as progress:
        to_do = [task for task in tasks if task.key not in journal.done]
        if len(to_do) < len(tasks):
            console.print(f"{len(tasks) - len(to_do)} of {len(tasks)} tasks are done, as {path} has it", soft_wrap=True)
        bar = progress.add_task("labels", total=sum(map(frames_in, to_do)))
        workers = Workers(named, min(settings.workers, max(len(to_do), 1)), settings.timeout)
        with closing(workers.run(to_do)) as results:
            for task, result in results:
                _keep(task, result, settings.max_force, journal)
                progress.advance(bar, frames_in(task))


def cohesion(frames: Sequence[Atoms]) -> float | None:
    """eV per atom that it takes to part the atoms of the seeds that are crystals or slabs; None where no isolated atoms tell."""
    alone = {frame.symbols[0]: frame.get_potential_energy() for frame in frames if frame.info["config_type"] == "isolated_atom"}
    bound = [frame for frame in frames if frame.info["config_type"] == "seed" and look_at(frame).shape in OF_MELTING]
    if not bound or not set().union(*(frame.symbols for frame in bound)) <= alone.keys():
        return None
    return float(np.mean([(sum(alone[s] for s in frame.symbols) - frame.get_potential_energy()) / len(frame) for frame in bound]))


def _keep(task: Task, result: list[Atoms] | Failure, max_force: float, journal: Journal) -> None:
    """What is good goes into the journal; what is not is put aside."""
    if isinstance(result, Failure):
        journal.put_aside(result)
        return
    forces = [np.linalg.norm(frame.get_forces(), axis=1).max() for frame in result]
    good = [frame for frame, force in zip(result, forces, strict=True) if force <= max_force]
    if good:
        journal.append(task.key, good)
    for n, (frame, force) in enumerate(zip(result, forces, strict=True)):
        if force > max_force:
            reason = f"force of {force:.3g} eV/Å: expected at most {max_force:g} (--max-force)"
            journal.put_aside(Failure(f"{task.key}-frame-{n}" if good or n else task.key, reason, frame))


def forget_failures(output: Path) -> None:
    """Where `output` is whole and is to be made anew: what failed then is tried again. Of a run that was interrupted all is kept."""
    if not journal_of(output).exists():
        _aside(journal_of(output)).unlink(missing_ok=True)


def _aside(journal: Path) -> Path:
    """Where a journal has its failures."""
    return journal.with_name(f"{journal.stem}.failed.extxyz")


def _tell_put_aside(journal: Path, console: Console) -> None:
    path = _aside(journal)
    reasons = Counter(
        re.sub(r"[-+]?\b\d[\d.e+-]*", "…", str(frame.info["reason"])) for frame in (read_extxyz(path) if path.exists() else [])
    )
    for reason, number in reasons.most_common(5):
        console.print(f"{number} put aside in {path}: {reason}", soft_wrap=True)


def _in_order(path: Path, tasks: Sequence[Task]) -> list[Atoms]:
    """The frames of `tasks` in the journal, in the order of the plan."""
    place = {task.key: n for n, task in enumerate(tasks)}
    frames = [frame for frame in read_extxyz(path) if frame.info["task"] in place]
    return sorted(frames, key=lambda frame: place[frame.info["task"]])


def _without_near_duplicates(frames: list[Atoms], console: Console) -> list[Atoms]:
    gone = near_duplicates(frames)
    if gone:
        kinds = Counter(frames[n].info["config_type"] for n in gone)
        which = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        console.print(f"{len(gone)} of {len(frames)} frames are nearly the same as an earlier one and left out: {which}", soft_wrap=True)
    return [frame for n, frame in enumerate(frames) if n not in set(gone)]


def decisions(tasks: Sequence[Any], structures: Sequence[Atoms], settings: SampleConfig) -> Table:
    """What will be made, and how."""
    table = Table(show_header=False, title="Decisions", title_justify="left")
    shapes = Counter(look_at(atoms).shape for atoms in structures)
    kinds: Counter[str] = Counter()
    for task in tasks:
        kinds[task.kind] += frames_in(task)
    trajectories = [task for task in tasks if isinstance(task, Trajectory)]
    steps = sorted({(task.timestep, task.interval, task.num_frames) for task in trajectories}, reverse=True)
    table.add_row("teacher", " ".join([settings.teacher, *settings.teacher_arg]))
    table.add_row("seeds", ", ".join(f"{shape}: {number}" for shape, number in shapes.items()))
    table.add_row("frames", "\n".join(f"{kind}: {number}" for kind, number in kinds.items()))
    told = {f"time step {step:g} fs, a frame every {step * interval:g} fs, {num} frames each" for step, interval, num in steps[:4]}
    table.add_row("dynamics", "\n".join([f"{len(trajectories)} trajectories", *sorted(told)]))
    return table


def results(frames: Sequence[Atoms]) -> Table:
    """By kind: frames, the spread of their energies, and the largest force."""
    table = Table(title="Labelled", title_justify="left")
    for name in ("kind", "frames", "energy per atom, eV", "largest force, eV/Å"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    kinds: dict[str, list[Atoms]] = {}
    for frame in frames:
        kinds.setdefault(frame.info["config_type"], []).append(frame)
    for kind, members in kinds.items():
        energies = [frame.get_potential_energy() / len(frame) for frame in members]
        force = max(np.linalg.norm(frame.get_forces(), axis=1).max() for frame in members)
        table.add_row(kind, str(len(members)), f"{min(energies):.3f} to {max(energies):.3f}", f"{force:.2f}")
    return table
