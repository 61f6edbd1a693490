"""Learning curve from scratch and with a teacher: test errors against the number of DFT frames, as a table and a picture.

    python benchmarks/teacher_curve.py TRAIN TEST FOLDER --teacher chgnet [--frames 10 20 40 80]

The teacher labels structures around the frames of the shortest training set, a student learns them once, and each training set finishes it
(`flashace fit --pretrained`). From scratch each fit sees 12,000 frames, so many epochs of them. Frames are drawn by chance; isolated atoms
are in each set. Everything is kept in FOLDER, and what is there is not made twice: a killed run goes on. Run it with the Python of the
environment that has the teacher.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.io import read, write
from matplotlib.ticker import LogLocator, StrMethodFormatter

from flashace import FlashACE, evaluate_many

SEEN = 12_000  # frames, by a fit from scratch
WAYS = {"scratch": "from scratch", "taught": "with a teacher"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "test", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--frames", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--structures", type=int, default=400, help="that the teacher labels")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    sets = {number: drawn(options.train, number, folder / f"train-{number}.extxyz") for number in sorted(options.frames)}
    lesson, student = folder / "teacher.extxyz", folder / "student"
    if not lesson.exists():
        seeds = str(next(iter(sets.values())))
        flashace("sample", seeds, "--teacher", options.teacher, "-n", str(options.structures), "--max-atoms", "32", "-o", str(lesson))
    fitted(student, str(lesson), "--epochs", "30")
    test = [atoms for atoms in read(options.test, ":") if len(atoms) > 1]
    found = {"student": errors(student, test)}
    print(f"the student alone: {found['student'][0]:.1f} meV/Å")
    print("| frames | " + " | ".join(f"{said}: meV/Å; meV/atom" for said in WAYS.values()) + " |\n|---|---|---|")
    for number, data in sets.items():
        epochs = str(round(SEEN / number))
        ways = {"scratch": ["--epochs", epochs], "taught": ["--pretrained", str(student / "model.pt")]}
        for way, how in ways.items():
            fitted(folder / f"{way}-{number}", str(data), *how)
            found[f"{way}-{number}"] = errors(folder / f"{way}-{number}", test)
        cells = " | ".join("{:.1f}; {:.1f}".format(*found[f"{way}-{number}"]) for way in WAYS)
        print(f"| {number} | {cells} |", flush=True)
    draw(list(sets), found, folder / "teacher_curve.png", options.teacher)


def drawn(file: Path, number: int, output: Path) -> Path:
    """A training set: the isolated atoms of `file`, and so many of its other frames; each set has those of the shorter ones."""
    if not output.exists():
        frames = read(file, ":")
        alone, others = ([atoms for atoms in frames if (len(atoms) == 1) == is_alone] for is_alone in (True, False))
        chosen = np.random.default_rng(0).permutation(len(others))[:number]
        write(output, alone + [others[i] for i in chosen])
    return output


def fitted(run: Path, *arguments: str) -> None:
    if not (run / "model.pt").exists():
        flashace("fit", *arguments, "--check", "off", "--output", str(run), "--overwrite")


def flashace(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "flashace", *arguments], check=True, stdout=sys.stderr)


def errors(run: Path, test: list[Atoms]) -> tuple[float, float]:
    """Root mean squares of forces (meV/Å) and energies (meV/atom)."""
    found = evaluate_many(test, FlashACE(run))
    forces = np.concatenate([(its["forces"] - atoms.get_forces()).ravel() for atoms, its in zip(test, found, strict=True)])
    energies = np.array([(its["energy"] - atoms.get_potential_energy()) / len(atoms) for atoms, its in zip(test, found, strict=True)])
    return rms(forces), rms(energies)


def rms(off: np.ndarray) -> float:
    """In thousandths."""
    return 1e3 * float(np.sqrt(np.mean(np.square(off))))


def draw(numbers: list[int], found: dict[str, tuple[float, float]], output: Path, teacher: str) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for k, (axis, of, unit) in enumerate(zip(axes, ("forces", "energy"), ("meV/Å", "meV/atom"), strict=True)):
        for way, said in WAYS.items():
            axis.loglog(numbers, [found[f"{way}-{number}"][k] for number in numbers], "o-", label=said.replace("a teacher", teacher))
        if k == 0:
            axis.axhline(found["student"][k], color="grey", linestyle=":", label=f"student of {teacher}, no DFT")
        axis.minorticks_off()
        axis.set(title=f"{of} of test frames", xlabel="DFT frames", ylabel=f"RMSE, {unit}", xticks=numbers, xticklabels=map(str, numbers))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[0].legend()
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
