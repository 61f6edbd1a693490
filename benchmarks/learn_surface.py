"""`flashace learn` on a copper surface at 1,000 K from five frames, with EMT as labeller: as a teacher, and by files with a stand-in.

    python benchmarks/learn_surface.py /tmp/surface

Prints labels and rounds of both runs, and the errors of both models on 100 frames of EMT dynamics at 1,000 K, which nobody has seen. What
follows the folder goes to `flashace learn`, such as --epochs 60 or --size medium.
"""

import csv
import subprocess
import sys
from pathlib import Path

from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.io import read, write

from flashace.teach.rounds import errors_of
from flashace.teach.sampling.trajectory import Trajectory
from flashace.teach.task import labelled

TEMPERATURE = 1000.0  # K
RUN = ("--temperatures", str(TEMPERATURE), "--time", "2", "--size", "small", "--compile", "false")


def main() -> None:
    folder, more = Path(sys.argv[1]).resolve(), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    slab = fcc111("Cu", (3, 3, 4), a=3.6, vacuum=8.0, periodic=True)
    slab.info.clear()
    seeds = Trajectory(slab, 300.0, 2.0, 50, 5, 40.0, seed=0)(EMT())
    test = Trajectory(slab, TEMPERATURE, 2.0, 25, 120, 40.0, seed=1)(EMT())[20:]
    for frame in seeds:
        frame.calc = None
    write(folder / "five.extxyz", seeds)
    for teacher in ("emt", f"files:{folder / 'calc'}"):
        run = folder / teacher.partition(":")[0]
        status = learn("five.extxyz", "--teacher", teacher, "--output", run.name, *RUN, *more, cwd=folder)
        while status == 3:  # it waits for labels
            stand_in(folder / "calc")
            status = learn("--resume", run.name, cwd=folder)
        with (run / "rounds.csv").open() as file:
            for row in csv.DictReader(file):
                print(", ".join(f"{name} {value}" for name, value in row.items()))
        forces, energy = errors_of(run / "model.pt", test)
        print(f"{teacher}: exit status {status}; on 100 frames at {TEMPERATURE:g} K {forces:.1f} meV/Å, {energy:.2f} meV/atom", flush=True)


def learn(*arguments: str, cwd: Path) -> int:
    """Its exit status."""
    return subprocess.run([sys.executable, "-m", "flashace", "learn", *arguments], cwd=cwd).returncode


def stand_in(folder: Path) -> None:
    """What another program would do: a label in each folder that has none."""
    for asked in folder.glob("*/structure.extxyz"):
        if not (asked.parent / "emt.extxyz").exists():
            write(asked.parent / "emt.extxyz", labelled(read(asked), EMT()))


if __name__ == "__main__":
    main()
