"""`flashace distill` or `flashace fit --teacher`, killed at random moments of all stages and resumed: it has to end as if nothing had been.

    python benchmarks/kill_distill.py --kills 10
    python benchmarks/kill_distill.py --kills 10 --fit

EMT teaches copper to a tiny student. Each run is ended by SIGKILL, SIGTERM or SIGINT in turn and resumed, until it has been killed so often
and ends by itself. Its labels, rounds and weights, and of a fit the errors in its certificate, have to be those of a run that nobody
disturbed: none lost, none made twice. Exit status 1 where they are not.
"""

import argparse
import csv
import itertools
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write

# what takes seconds to import, `main` and `_run` do: the workers of a teacher import this file

TINY = (
    "--teacher", "emt", "--max-atoms", "8", "--size", "small", "--hidden-dim", "16", "--num-channels", "4", "--correlation", "2",
    "--r-max", "4", "--device", "cpu", "--compile", "false",
)  # fmt: skip
SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@dataclass(frozen=True)
class Case:
    """What is typed, and what it leaves."""

    arguments: tuple[str, ...]
    begun: str  # where it is, the run can go on
    labels: tuple[str, ...]
    models: tuple[str, ...]
    stages: dict[str, str]  # what is there -> the stage that has begun


DISTILL = Case(
    ("distill", "cu.xyz", *TINY, "-n", "60", "--rounds", "1", "--round-frames", "40", "--error", "0.001"),
    "distill.yaml",
    ("sampled.extxyz", "round-1/own.extxyz", "round-1/labels.extxyz", "round-2/labels.extxyz"),
    ("model.pt",),
    {
        "sampled.journal.extxyz": "sampling",
        "sampled.extxyz": "after sampling",
        "student/checkpoints": "fit of the first student",
        "round-1/own.extxyz": "dynamics of the first student",
        "round-1/labels.extxyz": "labels of the first student",
        "round-1/student/checkpoints": "fit of the second student",
        "round-2/labels.extxyz": "labels of the second student",
        "model.pt": "end",
    },
)
FIT = Case(
    ("fit", "data.xyz", *TINY, "-n", "24", "--epochs", "10", "--check", "off"),
    "config.yaml",
    ("teacher/frames.extxyz",),
    ("teacher/student/model.pt", "model.pt"),
    {
        "teacher/config.yaml": "sampling",
        "teacher/frames.extxyz": "student",
        "teacher/student/model.pt": "finish",
        "model.pt": "certificate",
        "certificate.json": "end",
    },
)


@dataclass
class Watched:
    """A run, and when its stages began, in s since its start."""

    process: BaseProcess
    folder: Path
    stages: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    seen: dict[str, float] = field(default_factory=dict)

    def wait(self, until: float = float("inf"), stage: str = "") -> bool:
        """Until it ends, so many seconds are over, or the stage has begun; whether it still runs."""
        while self.process.is_alive() and time.monotonic() - self.began < until:
            for path, name in self.stages.items():
                if name not in self.seen and (self.folder / path).exists():
                    self.seen[name] = time.monotonic() - self.began
            if stage in self.seen:
                return True
            time.sleep(0.02)
        return self.process.is_alive()


def main() -> None:
    import flashace.cli.fit
    import flashace.teach.after_fit
    import flashace.teach.rounds  # noqa: F401

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", action="store_true", help="flashace fit --teacher in place of flashace distill")
    arguments = parser.parse_args()
    case, rng = FIT if arguments.fit else DISTILL, random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "cu.xyz", bulk("Cu", cubic=True))
        write(folder / "data.xyz", frames())
        whole = start(case, folder, "whole")
        whole.wait()
        print("a whole run: " + ", ".join(f"{name} after {seconds:.0f} s" for name, seconds in whole.seen.items()), flush=True)
        stages = disturbed(case, folder, arguments.kills, whole.seen, rng)
        print(f"killed {arguments.kills} times: " + ", ".join(f"{number} in {stage}" for stage, number in stages.items()))
        wrong = differences(case, folder / "whole", folder / "killed")
    print("\n".join(wrong) or "labels, rounds and weights are those of the whole run")
    raise SystemExit(bool(wrong))


def frames() -> list[Atoms]:
    """Labelled ones, to finish on."""
    found = []
    for seed in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_stress()
        found.append(atoms)
    return found


def start(case: Case, folder: Path, name: str) -> Watched:
    """A new run, or the one of this name that goes on."""
    goes_on = (folder / name / case.begun).exists()
    rest = (case.arguments[0], "--resume", name) if goes_on else (*case.arguments, "--output", name)
    process = get_context("fork").Process(target=_run, args=(folder, [*rest]))
    process.start()
    return Watched(process, folder / name, case.stages)


def _run(folder: Path, arguments: list[str]) -> None:
    """In a fork, which has the imports behind it, so that most of a run is work. Students, and what the certificate of a fit
    measures, are cut down to what is over in seconds."""
    from flashace.cli.main import main as command
    from flashace.teach import after_fit, student

    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    after_fit.ORDER = ("energy_volume",)
    student.ATOMS = 1500
    command(arguments)


def disturbed(case: Case, folder: Path, kills: int, whole: dict[str, float], rng: random.Random) -> Counter[str]:
    """In which stages the run was, when it was killed. Each stage has its share of the kills; their moments in it are random."""
    paths, found = {name: path for path, name in case.stages.items()}, Counter[str]()
    lengths = {one: whole[other] - whole[one] for one, other in itertools.pairwise(paths) if {one, other} <= whole.keys()}
    before = min(whole.values())  # what a run that goes on needs, too, until it is where it was
    for number, stage in enumerate(sorted(itertools.islice(itertools.cycle(["", *lengths]), kills), key=["", *lengths].index)):
        run = start(case, folder, "killed")
        if not stage or (folder / "killed" / paths[stage]).exists():
            until = rng.uniform(0.0, before + lengths.get(stage, 0.0))
        else:
            run.wait(stage=stage)
            until = time.monotonic() - run.began + rng.uniform(0.0, lengths[stage])
        if run.wait(until):
            os.kill(int(run.process.pid or 0), SIGNALS[number % len(SIGNALS)])
            run.process.join()
        else:
            print(f"it has ended before kill {number + 1}")
        there = [name for name, path in paths.items() if (folder / "killed" / path).exists()]
        found[there[-1] if there else "before sampling"] += 1
    start(case, folder, "killed").wait()
    return found


def differences(case: Case, whole: Path, killed: Path) -> list[str]:
    import torch

    from flashace.potential.model_file import load_model

    wrong = []
    for name in case.labels:
        one, other = (labels(folder / name) for folder in (whole, killed))
        if one != other:
            wrong.append(f"{name}: {len(one)} labels without kills and {len(other)} with them, or others: some are lost, or made twice")
    told = [_told(folder) for folder in (whole, killed)]
    if told[0] != told[1]:
        wrong.append(f"rounds, or errors in the certificate: {told}")
    for name in case.models:
        one, other = (load_model(folder / name, torch.float64).state_dict() for folder in (whole, killed))
        wrong += [f"{name}: {key} differs" for key in one if not torch.equal(one[key], other[key])]
    return wrong + [f"left behind: {path}" for path in killed.rglob("*.partial")]


def _told(folder: Path) -> list[object]:
    """Rounds without their times, and the errors on frames that the model file has in its certificate."""
    from flashace.potential.model_file import read_header

    rounds = []
    if (folder / "rounds.csv").exists():
        with (folder / "rounds.csv").open() as file:
            rounds = [(row["number"], row["forces"], row["energy"]) for row in csv.DictReader(file)]
    return [rounds, read_header(folder / "model.pt")["provenance"]["certificate"]["errors"]]


def labels(path: Path) -> list[tuple[str, list[list[float]], list[list[float]]]]:
    """Task, positions and forces of each, in an order that does not depend on who was faster."""
    return sorted((atoms.info["task"], atoms.positions.tolist(), atoms.get_forces().tolist()) for atoms in read(path, ":"))


if __name__ == "__main__":
    main()
