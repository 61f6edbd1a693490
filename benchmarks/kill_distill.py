"""`flashace distill`, killed at random moments of all its stages and resumed: it has to end as if nothing had been.

    python benchmarks/kill_distill.py --kills 10

EMT teaches copper to a tiny student. Each run is ended by SIGKILL, SIGTERM or SIGINT in turn and resumed, until it has been killed so often
and ends by itself. Its labels, rounds and weights have to be those of a run that nobody disturbed: none lost, none made twice.
Exit status 1 where they are not.
"""

import argparse
import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from ase.build import bulk
from ase.io import read, write

from flashace.potential.model_file import load_model

OPTIONS = (
    "--teacher", "emt", "-n", "60", "--max-atoms", "8", "--rounds", "1", "--round-frames", "40", "--error", "0.001", "--size", "small",
    "--hidden-dim", "16", "--num-channels", "4", "--correlation", "2", "--r-max", "4", "--device", "cpu", "--compile", "false",
)  # fmt: skip
SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
LABELS = "sampled.extxyz", "round-1/own.extxyz", "round-1/labels.extxyz", "round-2/labels.extxyz"
STAGES = {  # what is there -> the stage that has begun
    "round-2/labels.extxyz": "labels of the second student",
    "round-1/student/checkpoints": "fit of the second student",
    "round-1/labels.extxyz": "labels of the first student",
    "round-1/own.extxyz": "dynamics of the first student",
    "student/checkpoints": "fit of the first student",
    "sampled.extxyz": "after sampling",
    "sampled.journal.extxyz": "sampling",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "cu.xyz", bulk("Cu", cubic=True))
        began = time.monotonic()
        start(folder, "whole").wait()
        seconds = time.monotonic() - began
        print(f"a whole run takes {seconds:.0f} s")
        stages = disturbed(folder, arguments.kills, seconds, rng)
        print(f"killed {arguments.kills} times: " + ", ".join(f"{number} in {stage}" for stage, number in stages.items()))
        wrong = differences(folder / "whole", folder / "killed")
    print("\n".join(wrong) or "labels, rounds and weights are those of the whole run")
    raise SystemExit(bool(wrong))


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """A new run, or the one of this name that goes on."""
    goes_on = (folder / name / "distill.yaml").exists()
    rest = ("--resume", name) if goes_on else ("cu.xyz", *OPTIONS, "--output", name)
    return subprocess.Popen([sys.executable, "-m", "flashace", "distill", *rest], cwd=folder, stdout=subprocess.DEVNULL)


def disturbed(folder: Path, kills: int, seconds: float, rng: random.Random) -> Counter[str]:
    """In which stages the run was, when it was killed. The moments are spread over what is left of it."""
    stages: Counter[str] = Counter()
    while stages.total() < kills:
        process = start(folder, "killed")
        try:
            process.wait(rng.uniform(3.0, 3.0 + 2 * seconds / kills))
            if (folder / "killed/certificate.json").exists():
                print("it has ended before it was killed so often; the last moments fall into what comes after it")
        except subprocess.TimeoutExpired:
            process.send_signal(SIGNALS[stages.total() % len(SIGNALS)])
            process.wait()
        found = (stage for path, stage in STAGES.items() if (folder / "killed" / path).exists())
        stages[next(found, "before sampling")] += 1
    start(folder, "killed").wait()
    return stages


def differences(whole: Path, killed: Path) -> list[str]:
    wrong = []
    for name in LABELS:
        one, other = (labels(folder / name) for folder in (whole, killed))
        if one != other:
            wrong.append(f"{name}: {len(one)} labels without kills and {len(other)} with them, or others: some are lost, or made twice")
    rounds = []
    for folder in (whole, killed):
        with (folder / "rounds.csv").open() as file:
            rounds.append([(row["number"], row["forces"], row["energy"]) for row in csv.DictReader(file)])
    if rounds[0] != rounds[1]:
        wrong.append(f"rounds.csv: {rounds}")
    one, other = (load_model(folder / "model.pt", torch.float64).state_dict() for folder in (whole, killed))
    wrong += [f"model.pt: {name} differs" for name in one if not torch.equal(one[name], other[name])]
    return wrong + [f"left behind: {path}" for path in killed.rglob("*.partial")]


def labels(path: Path) -> list[tuple[str, list[list[float]], list[list[float]]]]:
    """Task, positions and forces of each, in an order that does not depend on who was faster."""
    return sorted((atoms.info["task"], atoms.positions.tolist(), atoms.get_forces().tolist()) for atoms in read(path, ":"))


if __name__ == "__main__":
    main()
