"""A fit of MACE with its published recipe, and its errors on test files, for a comparison at equal CPU time.

    python benchmarks/peers_mace_accuracy.py train.xyz valid.xyz --isolated-atoms isolated_atoms.xyz --test test.xyz --epochs 84

Runs in MACE's own environment (mace-torch 0.3.16). Hidden irreps, cutoff and batch size as given; everything else as in its README for
small molecules: EMA 0.99, AMSGrad, learning rate 0.01, energy and force weights 1 and 100, in the last quarter 1000 and 100.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 with torch of today

import numpy as np
from ase.io import read, write
from mace.calculators import MACECalculator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("valid")
    parser.add_argument("--isolated-atoms", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--hidden", default="32x0e+32x1o")
    parser.add_argument("--r-max", type=float, default=5.0)
    parser.add_argument("--batch-size", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/mace"))
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    references = {int(frame.numbers[0]): float(frame.get_potential_energy()) for frame in read(arguments.isolated_atoms, ":")}
    files = {name: rename_labels(getattr(arguments, name), arguments.folder / f"{name}.xyz") for name in ("train", "valid")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    fit(arguments, files, references)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU minutes {(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60:.1f}")
    calculator = MACECalculator(model_paths=str(arguments.folder / "mace_stagetwo.model"), device="cpu", default_dtype="float32")
    for test in arguments.test:
        print(Path(test).stem, errors(read(test, ":"), calculator))


def rename_labels(source: str, target: Path) -> Path:
    """The same frames with labels under names that MACE reads without touching ASE's own."""
    frames = read(source, ":")
    for frame in frames:
        frame.info["REF_energy"] = frame.get_potential_energy()
        frame.arrays["REF_forces"] = frame.get_forces()
        frame.calc = None
    write(target, frames)
    return target


def fit(arguments: argparse.Namespace, files: dict[str, Path], references: dict[int, float]) -> None:
    """`mace_run_train`, output to `log` in the folder."""
    options = {
        "name": "mace",
        "train_file": files["train"].resolve(),
        "valid_file": files["valid"].resolve(),
        "E0s": str(references),
        "energy_key": "REF_energy",
        "forces_key": "REF_forces",
        "model": "MACE",
        "hidden_irreps": arguments.hidden,
        "r_max": arguments.r_max,
        "batch_size": arguments.batch_size,
        "valid_batch_size": 10,
        "max_num_epochs": arguments.epochs,
        "start_swa": arguments.epochs * 3 // 4,
        "ema_decay": 0.99,
        "lr": 0.01,
        "energy_weight": 1,
        "forces_weight": 100,
        "swa_energy_weight": 1000,
        "swa_forces_weight": 100,
        "default_dtype": "float32",
        "device": "cpu",
        "eval_interval": 5,
        "seed": arguments.seed,
    }
    command = [str(Path(sys.executable).with_name("mace_run_train")), "--ema", "--amsgrad", "--swa"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (arguments.folder / "log").open("w") as log:
        subprocess.run(command, cwd=arguments.folder, stdout=log, stderr=log, check=True)


def errors(frames: list, calculator: MACECalculator) -> str:
    """Root mean square errors of energies and forces."""
    energies, forces = [], []
    for frame in frames:
        energy, force = frame.get_potential_energy(), frame.get_forces()
        frame.calc = calculator
        energies.append((frame.get_potential_energy() - energy) / len(frame))
        forces.append((frame.get_forces() - force).ravel())
    return f"{1e3 * np.sqrt(np.mean(np.square(energies))):.3f} meV/atom, {1e3 * np.sqrt(np.mean(np.concatenate(forces) ** 2)):.2f} meV/Å"


if __name__ == "__main__":
    main()
