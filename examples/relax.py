"""A model in, a relaxed crystal out: the cell and the atoms move together until nothing pulls any more.

    python examples/relax.py runs/sic/model.pt

Without --structure it starts from a crystal of the model's elements that is 2 % too large and whose atoms are displaced at random.
What is not periodic in three directions relaxes in its cell.
"""

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from crystals import crystal
from matplotlib.figure import Figure

from flashace import FlashACE


def main() -> None:
    options = read_options()
    atoms = ase.io.read(options.structure) if options.structure else displaced(crystal(options.model, None))
    atoms.calc = FlashACE(options.model)
    output = options.output or options.model.parent
    output.mkdir(parents=True, exist_ok=True)

    start = summary(atoms)
    history = []
    optimizer = BFGS(FrechetCellFilter(atoms) if is_crystal(atoms) else atoms, logfile=None)
    optimizer.attach(lambda: history.append((atoms.get_potential_energy() / len(atoms), largest_force(atoms))))
    converged = optimizer.run(fmax=options.fmax, steps=options.steps)
    end = summary(atoms)

    print(f"{atoms.get_chemical_formula()}, {optimizer.nsteps} steps\n")
    print(f"{'':24}{'start':>12}{'end':>12}")
    for name in start:
        print(f"{name:24}{start[name]:12.4f}{end[name]:12.4f}")

    ase.io.write(output / "relaxed.extxyz", atoms)
    draw(np.array(history), options.fmax, output / "relax.png")
    print(f"\nStructure: {output / 'relaxed.extxyz'}\nPicture:   {output / 'relax.png'}")
    if not converged:
        raise SystemExit(f"not relaxed: after {options.steps} steps a force is still larger than {options.fmax} eV/Å")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Relax the atoms of a structure, and the cell of a crystal.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/sic/model.pt"), help="model file")
    parser.add_argument("--structure", help="file with a structure; its last frame is relaxed")
    parser.add_argument("--fmax", type=float, default=0.01, help="stop when no force is larger, in eV/Å")
    parser.add_argument("--steps", type=int, default=200, help="stop after so many steps")
    parser.add_argument("--output", type=Path, help="folder for the results; the model's own where not given")
    return parser.parse_args()


def displaced(atoms: Atoms) -> Atoms:
    atoms.set_cell(1.02 * atoms.cell.array, scale_atoms=True)
    atoms.rattle(stdev=0.05, seed=1)
    return atoms


def is_crystal(atoms: Atoms) -> bool:
    return bool(atoms.pbc.all()) and atoms.cell.rank == 3


def summary(atoms: Atoms) -> dict[str, float]:
    shown = {"energy (eV/atom)": atoms.get_potential_energy() / len(atoms), "largest force (eV/Å)": largest_force(atoms)}
    if not is_crystal(atoms):
        return shown
    a, b, c = atoms.cell.lengths()
    return {
        **shown,
        "pressure (GPa)": -atoms.get_stress()[:3].mean() / units.GPa,
        "a (Å)": a,
        "b (Å)": b,
        "c (Å)": c,
        "volume (Å³/atom)": atoms.get_volume() / len(atoms),
    }


def largest_force(atoms: Atoms) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def draw(history: np.ndarray, fmax: float, path: Path) -> None:
    figure = Figure(figsize=(6, 5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    energy, force = history.T
    top.plot(1000 * (energy - energy[-1]), "o-", markersize=3, color="tab:blue")
    top.set_ylabel("energy (meV/atom)")
    bottom.semilogy(force, "o-", markersize=3, color="tab:orange")
    bottom.axhline(fmax, color="gray", linestyle="--", linewidth=1)
    bottom.set(xlabel="step", ylabel="largest force (eV/Å)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
