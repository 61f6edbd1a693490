"""Made-up molecules, converted to shards: time of a random read, beside ASE databases, and memory of a fit, which should not grow.

python benchmarks/shards.py                                # 10^4, 10^5 and 10^6 frames; about 40 minutes of one core, 2 GB of disk
python benchmarks/shards.py --frames 10000 --folder /tmp/x # one size, and where to write
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io import iread
from memory import memory

from flashace.data.shards import Shards

IN_DATABASES = 10_000  # frames; a million rows would take hours to write
READS = 20_000
FIT = ["--size", "small", "--max-time", "0.01", "--batch-size", "32", "--device", "cpu"]


def main() -> None:
    """A table of each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="for all files; one that is deleted again where not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print("| frames | convert, CPU s | own memory, MB | shards, MB | random read, µs | fit, CPU s | own memory, MB | with files, MB |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for frames in arguments.frames:
            print(f"| {frames:,} | {row(folder, frames)} |", flush=True)
        print("\n| 10^4 frames in | random read, µs |\n|---|---|")
        for name, read in databases(folder).items():
            print(f"| {name} | {microseconds(read, IN_DATABASES):.0f} |", flush=True)


def row(folder: Path, frames: int) -> str:
    """Cells of the first table."""
    data, shards, run = (folder / f"{frames}{suffix}" for suffix in (".extxyz", ".shards", ".run"))
    write_molecules(data, frames)
    converting, own, _ = watch("convert", data, shards, "--overwrite")
    data.unlink()
    size = sum(file.stat().st_size for file in shards.iterdir())
    read = microseconds(Shards(shards).__getitem__, frames)
    config = folder / "options.yaml"
    config.write_text("valid_fraction: 0.001\n")
    fitting, own_of_fit, all_of_fit = watch("fit", shards, "-c", config, "--output", run, "--overwrite", "--solve-atomic-energies", *FIT)
    cells = (converting, own / 1e6, size / 1e6, read, fitting, own_of_fit / 1e6, all_of_fit / 1e6)
    return " | ".join(f"{cell:,.0f}" for cell in cells)


def write_molecules(path: Path, frames: int) -> None:
    """3 to 6 atoms of H, C and O in a chain, displaced at random, with energies and forces of a Lennard-Jones potential."""
    rng = np.random.default_rng(0)
    symbols = np.array(["H", "C", "O"])
    with path.open("w") as file:
        for _ in range(frames):
            n = int(rng.integers(3, 7))
            x = np.outer(np.arange(n), (0.9, 0.7, 0.0)) + rng.normal(scale=0.04, size=(n, 3))
            d = x[:, None] - x[None]
            r2 = (d**2).sum(-1) + 1e9 * np.eye(n)
            s6 = r2**-3
            energy = 2 * (s6**2 - s6).sum()
            forces = (24 * (2 * s6**2 - s6) / r2)[..., None] * d
            rows = np.hstack([x, forces.sum(1)]).round(8).tolist()
            chosen = rng.choice(symbols, n).tolist()
            lines = [f'{n}\nProperties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f} pbc="F F F"']
            lines += [" ".join(map(str, (symbol, *row))) for symbol, row in zip(chosen, rows, strict=True)]
            file.write("\n".join(lines) + "\n")


def watch(*command: object) -> tuple[float, float, float]:
    """CPU seconds that `flashace …` takes, and its peaks of memory in bytes: its own, and with the files that are mapped into it."""
    begin = cpu_of_children()
    program = [sys.executable, "-c", "from flashace.cli.main import main; main()"]
    process = subprocess.Popen([*program, *map(str, command)], stdout=subprocess.DEVNULL)
    own = everything = 0.0
    while process.poll() is None:
        try:
            own, everything = max(own, memory("RssAnon", process.pid)), max(everything, memory("VmHWM", process.pid))
        except (OSError, StopIteration):  # it has just ended
            continue
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{command}: ended with {process.returncode}")
    return cpu_of_children() - begin, own, everything


def cpu_of_children() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def databases(folder: Path) -> dict[str, Callable[[int], Atoms]]:
    """The same frames in shards, SQLite and, where its package is installed, LMDB; each with what reads the frame with an index."""
    data, shards = folder / "small.extxyz", folder / "small.shards"
    write_molecules(data, IN_DATABASES)
    watch("convert", data, shards, "--overwrite")
    readers: dict[str, Callable[[int], Atoms]] = {"shards": Shards(shards).__getitem__}
    for name, kind in (("SQLite (ase.db)", "db"), ("LMDB (ase-db-backends)", "aselmdb")):
        file = folder / f"small.{kind}"
        file.unlink(missing_ok=True)
        try:
            database = connect(file, type=kind, use_lock_file=False)
        except ModuleNotFoundError:
            continue
        with database:
            for atoms in iread(data, ":"):
                database.write(atoms)
        opened = connect(file, type=kind, use_lock_file=False)
        readers[name] = lambda i, opened=opened: opened.get(id=i + 1).toatoms()  # type: ignore[misc]
    return readers


def microseconds(read: Callable[[int], object], frames: int) -> float:
    """CPU time of a random read."""
    indices = np.random.default_rng(1).integers(0, frames, READS).tolist()
    begin = time.process_time()
    for i in indices:
        read(i)
    return 1e6 * (time.process_time() - begin) / READS


if __name__ == "__main__":
    main()
