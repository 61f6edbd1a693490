"""LAMMPS with an exported model beside ASE: equal step by step, time per atom, scaling over processes.

    python benchmarks/lammps_speed.py MODEL.pt [--steps 20] [--rounds 3]

The input is examples/lammps/melt.in. Times are those that LAMMPS prints of its loop, the least of the rounds:
other work makes them longer.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from flashace import FlashACE

BIN = Path(sys.executable).parent
INPUT = Path(__file__).parents[1] / "examples/lammps/melt.in"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exported = {}
        for dtype in ("float64", "float32"):
            exported[dtype] = Path(folder) / f"{dtype}.so"
            flags = ["--for", "lammps", "--dtype", dtype, "--output", exported[dtype]]
            subprocess.run([BIN / "flashace", "export", options.model, *flags], check=True)
        for ranks in (1, 2, 4):
            compare(options.model, exported["float64"], ranks, options.steps, Path(folder))
        speed(options.model, exported["float32"], next(frames(Path(folder) / "md.dump")), options.steps, options.rounds)


def speed(model: Path, exported: Path, atoms: Atoms, steps: int, rounds: int) -> None:
    """The table. CPU time is that of all processes, in which waiting for each other counts."""
    print("\n| | atoms | processes | wall, us per atom and step | CPU, us per atom and step |\n|---|---|---|---|---|")
    wall, cpu = ase_times(model, atoms, steps)
    print(f"| ASE | {len(atoms)} | 1 | {1e6 * wall:.1f} | {1e6 * cpu:.1f} |", flush=True)
    for cells, ranks in (("8 8 4", 1), ("8 8 8", 1), ("8 8 8", 2)):
        number = 8 * int(np.prod([int(n) for n in cells.split()]))
        wall, cpu = np.min([lammps_times(exported, ranks, steps, cells) for _ in range(rounds)], axis=0) * 1e6 / number / steps
        print(f"| LAMMPS | {number} | {ranks} | {wall:.1f} | {cpu:.1f} |", flush=True)


def run_lammps(text: str, ranks: int, folder: Path) -> str:
    (folder / "in.md").write_text(text)
    command = [BIN / "mpirun", "-n", str(ranks), BIN / "lmp", "-in", "in.md", "-log", "none"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def input_for(model: Path, steps: int, cells: str) -> str:
    nx, ny, nz = cells.split()
    text = INPUT.read_text().replace("0 ${cells} 0 ${cells} 0 ${cells}", f"0 {nx} 0 {ny} 0 {nz}")
    return f"variable model string {model}\nvariable steps string {steps}\n{text}"


def lammps_times(model: Path, ranks: int, steps: int, cells: str) -> tuple[float, float]:
    """Seconds of the loop, and CPU seconds of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        text = run_lammps(input_for(model, steps, cells), ranks, Path(folder))
    wall, percent = (float(re.search(pattern, text).group(1)) for pattern in (r"Loop time of (\S+)", r"([\d.]+)% CPU use"))
    return wall, wall * ranks * percent / 100


def compare(model: Path, exported: Path, ranks: int, steps: int, folder: Path) -> None:
    """Every step of LAMMPS against ASE on the positions that LAMMPS wrote."""
    extra = "compute e all pe/atom\ndump d all custom 1 md.dump id type x y z fx fy fz c_e\ndump_modify d sort id format float %.17g\n"
    run_lammps(input_for(exported, steps, "8 8 8").replace("run  ", f"{extra}run  "), ranks, folder)
    calculator = FlashACE(model, device="cpu", dtype="float64", kernel="compiled")
    energy, forces = [], []
    for frame in frames(folder / "md.dump"):
        calculator.calculate(frame)
        energy.append(abs(frame.arrays["energies"].sum() - calculator.results["energy"]))
        forces.append(np.abs(frame.arrays["found"] - calculator.results["forces"]).max())
    print(f"{ranks} processes, {len(frame)} atoms, {len(energy)} steps: largest difference {max(energy):.1e} eV, {max(forces):.1e} eV/A")


def frames(dump: Path):
    for text in dump.read_text().split("ITEM: TIMESTEP\n")[1:]:
        head, rows = text.split("ITEM: ATOMS", 1)
        columns = np.array([row.split() for row in rows.splitlines()[1:]], dtype=float)
        low, high = np.array([line.split() for line in head.splitlines()[-3:]], dtype=float).T
        atoms = Atoms(np.where(columns[:, 1] == 1, "Si", "C"), columns[:, 2:5], cell=high - low, pbc=True)
        atoms.arrays.update(found=columns[:, 5:8], energies=columns[:, 8])
        yield atoms


def ase_times(model: Path, atoms: Atoms, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds per atom and step of ASE's own dynamics, float32, in this process."""
    atoms.calc = FlashACE(model, device="cpu", dtype="float32", kernel="compiled")
    thermalize_momenta(atoms, 6000, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    dynamics.run(1)
    start = np.array([time.perf_counter(), time.process_time()])
    dynamics.run(steps)
    return tuple((np.array([time.perf_counter(), time.process_time()]) - start) / steps / len(atoms))


if __name__ == "__main__":
    main()
