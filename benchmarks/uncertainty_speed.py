"""What uncertainty costs a step: ASE and LAMMPS, with it and without, in turns; CPU time of one process.

    python benchmarks/uncertainty_speed.py MODEL.pt [--steps 10] [--rounds 15]

512 silicon atoms at 600 K in float32. The time of a step is the median of the rounds; the cost is the median of the ratio of
neighbouring turns, which other work disturbs alike.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from flashace import FlashACE
from flashace.engines.lammps.export import export_for_lammps
from flashace.potential.model_file import load_model

BIN = Path(sys.executable).parent
INPUT = """
units metal
lattice diamond 5.431
region box block 0 4 0 4 0 4
create_box 1 box
create_atoms 1 box
mass 1 28.085
pair_style flashace {options}
pair_coeff * * model.so Si
velocity all create 600 1
fix nve all nve
run {steps}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with_it, without = (load_model(options.model, torch.float32) for _ in range(2))
    without.uncertainty = None
    with tempfile.TemporaryDirectory() as folder:
        export_for_lammps(with_it, Path(folder) / "model.so", str(options.model))
        engines = {
            "ASE": [ase(without), ase(with_it)],
            "LAMMPS": [lammps(folder, ""), lammps(folder, "uncertainty warn 1e9"), lammps(folder, "uncertainty warn 1e9 stop 1e9")],
        }
        for name, kinds in engines.items():
            times = 1e3 * np.array([[kind(options.steps) / options.steps for kind in kinds] for _ in range(options.rounds)])
            cost = 100 * (np.median(times / times[:, :1], axis=0) - 1)
            print(f"{name}: {np.round(np.median(times, axis=0), 2)} ms per step of 512 atoms, cost {np.round(cost, 1)} %", flush=True)


def ase(model):
    atoms = bulk("Si", cubic=True) * 4
    atoms.calc = FlashACE(model, "cpu", "float32", kernel="compiled")
    thermalize_momenta(atoms, 600, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep=1 * units.fs)
    dynamics.run(1)

    def seconds(steps: int) -> float:
        start = time.process_time()
        dynamics.run(steps)
        return time.process_time() - start

    return seconds


def lammps(folder: str, options: str):
    def seconds(steps: int) -> float:
        command = [BIN / "mpirun", "-n", "1", BIN / "lmp", "-log", "none"]
        text = INPUT.format(options=options, steps=steps)
        text = subprocess.run(command, input=text, cwd=folder, check=True, capture_output=True, text=True).stdout
        wall, percent = (float(re.search(pattern, text).group(1)) for pattern in (r"Loop time of (\S+)", r"([\d.]+)% CPU use"))
        return wall * percent / 100

    return seconds


if __name__ == "__main__":
    main()
