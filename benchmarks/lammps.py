"""LAMMPS with an exported model beside ASE: equal step by step, time per atom, scaling over processes.

    python benchmarks/lammps.py MODEL.pt [--steps 20] [--rounds 3]

The input is examples/lammps/melt.in. Times are LAMMPS's own `Loop time`, of which the best of the rounds counts: other work makes
them longer, never shorter.
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
        frame = next(frames(Path(folder) / "md.dump"))
        print("\n| system | processes | us per atom and step | times processes |\n|---|---|---|---|")
        print(f"| {len(frame)} atoms, ASE | 1 | {1e6 * ase_time(options.model, frame, options.steps):.1f} | |")
        for name, sizes in (("strong", {1: "8 8 8", 2: "8 8 8"}), ("weak", {1: "8 8 4", 2: "8 8 8"})):
            for ranks, cells in sizes.items():
                atoms = 8 * int(np.prod([int(n) for n in cells.split()]))
                best = min(loop_time(exported["float32"], ranks, options.steps, cells) for _ in range(options.rounds))
                per_atom = 1e6 * best / atoms / options.steps
                print(f"| {atoms} atoms, LAMMPS, {name} | {ranks} | {per_atom:.1f} | {ranks * per_atom:.1f} |", flush=True)


def run_lammps(text: str, ranks: int, folder: Path) -> str:
    (folder / "in.md").write_text(text)
    command = [BIN / "mpirun", "-n", str(ranks), BIN / "lmp", "-in", "in.md", "-log", "none"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def input_for(model: Path, steps: int, cells: str) -> str:
    nx, ny, nz = cells.split()
    text = INPUT.read_text().replace("0 ${cells} 0 ${cells} 0 ${cells}", f"0 {nx} 0 {ny} 0 {nz}")
    return f"variable model string {model}\nvariable steps string {steps}\n{text}"


def loop_time(model: Path, ranks: int, steps: int, cells: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return float(re.search(r"Loop time of (\S+)", run_lammps(input_for(model, steps, cells), ranks, Path(folder))).group(1))


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


def ase_time(model: Path, atoms: Atoms, steps: int) -> float:
    """Seconds per atom and step of ASE's own dynamics, float32, in this process."""
    atoms.calc = FlashACE(model, device="cpu", dtype="float32", kernel="compiled")
    thermalize_momenta(atoms, 6000, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    dynamics.run(1)
    start = time.perf_counter()
    dynamics.run(steps)
    return (time.perf_counter() - start) / steps / len(atoms)


if __name__ == "__main__":
    main()
