"""Fitted models in, dynamics far outside their data out: the largest force, and how well the total energy holds while atoms fly.

    python benchmarks/endurance.py --slab si/model.pt --molecule ethanol/model.pt --block sic/model.pt [--picoseconds 20]
    python benchmarks/endurance.py --molecule ethanol/model.pt --timestep 0.25

A silicon slab at 6,000 K into vacuum; ethanol with its O-H bond pulled to 3 Å, at 3,000 K; a block of silicon carbide squeezed to 60 % of
its volume and let go in vacuum. Each at constant energy, in ASE and in LAMMPS from the same start. The largest force is that on atoms of
which no pair is closer than 0.9 of the shortest in training, where the repulsion of the nuclei begins. Rows of a table are printed as
they are found, and warnings in full go to stderr.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.io import read, write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from flashace import FlashACE
from flashace.potential.model import TRUSTED
from flashace.potential.model_file import load_model
from flashace.structure.neighbors import build_graph

EVERY = 10  # steps between the looks at forces
BOX = 80.0  # Å, around what has no cell
BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in STARTS:
        parser.add_argument(f"--{name}", type=Path, metavar="MODEL")
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--timestep", type=float, default=0.5, metavar="FS", help="hydrogen at 3,000 K asks for 0.25")
    options = parser.parse_args()
    print("| | atoms | engine | largest force, eV/Å | drift, eV/atom | largest jump | seconds | warned of |")
    print("|---|---|---|---|---|---|---|---|")
    for name, start in STARTS.items():
        model = getattr(options, name)
        if model is None:
            continue
        network = load_model(model)
        for engine in (with_ase, with_lammps):
            begin = time.perf_counter()
            forces, totals, warned = [], [], set()
            for atoms, force, total, said in engine(model, start(), options.picoseconds, options.timestep):
                forces.append(largest_force(atoms, force, network))
                totals.append(total / len(atoms))
                warned |= said
            change, said = np.array(totals) - totals[0], ", ".join(sorted({what for what, _ in warned})) or "nothing"
            row = name, len(atoms), engine.__name__[5:], f"{max(forces):.1f}", f"{change[-1]:+.4f}", f"{np.abs(np.diff(totals)).max():.4f}"
            print("|", " | ".join(map(str, row)), f"| {time.perf_counter() - begin:.0f} | {said} |", flush=True)
            print(*(f"{name}, {engine.__name__[5:]}: {text}" for _, text in sorted(warned)), sep="\n", file=sys.stderr, flush=True)


def slab() -> Atoms:
    atoms = bulk("Si", cubic=True).repeat((2, 2, 2))
    atoms.center(vacuum=10.0, axis=2)
    atoms.rattle(0.05, seed=0)
    thermalize_momenta(atoms, 2 * 6000, rng=np.random.default_rng(0))  # half of it becomes potential energy
    return atoms


def pulled() -> Atoms:
    atoms = molecule("CH3CH2OH")
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    hydrogen = min(np.flatnonzero(atoms.numbers == 1), key=lambda i: atoms.get_distance(i, oxygen))
    atoms.set_distance(oxygen, hydrogen, 3.0, fix=0)
    thermalize_momenta(atoms, 3000, rng=np.random.default_rng(0))
    atoms.cell, atoms.pbc = [BOX] * 3, True
    atoms.center()
    return atoms


def block() -> Atoms:
    atoms = bulk("SiC", "zincblende", a=4.37 * 0.6 ** (1 / 3), cubic=True).repeat((2, 2, 2))
    atoms.rattle(0.02, seed=0)
    atoms.cell = [BOX] * 3
    atoms.center()
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    return atoms


STARTS = {"slab": slab, "molecule": pulled, "block": block}
Look = tuple[Atoms, np.ndarray, float, set[tuple[str, str]]]  # structure, forces, total energy in eV; what was warned of, and the warning


def with_ase(model: Path, atoms: Atoms, picoseconds: float, timestep: float) -> Iterator[Look]:
    atoms.calc = FlashACE(model)
    dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
    for _ in range(num_looks(picoseconds, timestep)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dynamics.run(EVERY)
        yield atoms.copy(), atoms.get_forces(), atoms.get_total_energy(), {(w.category.__name__, str(w.message)) for w in caught}


def with_lammps(model: Path, atoms: Atoms, picoseconds: float, timestep: float) -> Iterator[Look]:
    symbols = sorted(set(atoms.symbols))
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.so"
        subprocess.run([BIN / "flashace", "export", model, "--for", "lammps", "--output", exported], check=True, capture_output=True)
        write(f"{folder}/start.data", atoms, format="lammps-data", specorder=symbols, velocities=True, masses=True, units="metal")
        text = f"""
            units metal
            boundary p p p
            read_data start.data
            pair_style flashace
            pair_coeff * * {exported} {" ".join(symbols)}
            timestep {timestep / 1000}
            fix 1 all nve
            thermo {EVERY}
            thermo_style custom step etotal
            thermo_modify format float %.10f lost error
            dump d all custom {EVERY} md.dump id element xu yu zu fx fy fz
            dump_modify d sort id element {" ".join(symbols)} format float %.10f
            neigh_modify delay 0 every 1 check yes
            run {num_looks(picoseconds, timestep) * EVERY}
        """
        said = subprocess.run([BIN / "lmp", "-in", "/dev/stdin"], input=text, cwd=folder, check=True, capture_output=True, text=True).stdout
        news = [line for line in said.splitlines() if line.startswith("WARNING") and "flashace" in line]
        warned = {("number of neighbours" if "neighbors" in line else "short distance", line) for line in news}
        totals = [float(total) for total in re.findall(r"^ *\d+ +(-?\d+\.\d+) *$", said, flags=re.M)]
        frames = read(f"{folder}/md.dump", ":", format="lammps-dump-text", order=True)
        for frame, total in zip(frames[1:], totals[1:], strict=True):
            frame.pbc = True
            yield frame, frame.get_forces(), total, warned


def num_looks(picoseconds: float, timestep: float) -> int:
    return round(1000 * picoseconds / timestep) // EVERY


def largest_force(atoms: Atoms, forces: np.ndarray, model) -> float:
    """Of atoms whose pairs are all farther apart than where the repulsion begins, in eV/Å."""
    shortest = TRUSTED * model.shortest.numpy()
    species = model.element_index.numpy()[atoms.numbers]
    graph = build_graph(atoms, float(shortest.max()))
    (i, j), r = graph.edge_index.numpy(), graph.edge_vec.norm(dim=1).numpy()
    close = np.zeros(len(atoms), dtype=bool)
    close[i[r < shortest[species[i], species[j]]]] = True
    return float(np.linalg.norm(forces[~close], axis=1).max(initial=0.0))


if __name__ == "__main__":
    main()
