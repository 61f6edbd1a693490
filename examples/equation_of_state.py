"""A model in, the equation of state of a crystal out: energy and pressure against volume.

    python examples/equation_of_state.py runs/sic/model.pt

The curve is fitted to the energies alone, so that the pressures, which come from the stress, check it.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.eos import EquationOfState, birchmurnaghan
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from crystals import crystal
from matplotlib.figure import Figure

from flashace import FlashACE


def main() -> None:
    options = read_options()
    atoms = crystal(options.model, options.structure)
    atoms.calc = FlashACE(options.model)
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=0.01, steps=100)

    cell = atoms.cell.copy()
    volumes, energies, pressures = [], [], []
    for strain in np.linspace(-options.strain, options.strain, options.points):
        atoms.set_cell((1 + strain) * cell, scale_atoms=True)
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
        pressures.append(-atoms.get_stress()[:3].mean() / units.GPa)

    curve = EquationOfState(volumes, energies, eos="birchmurnaghan")
    v0, e0, bulk_modulus = curve.fit()
    parameters = curve.eos_parameters

    print(f"{'volume (Å³/cell)':>18}{'energy (eV/cell)':>18}{'stress (GPa)':>14}{'-dE/dV of fit (GPa)':>22}")
    for volume, energy, pressure in zip(volumes, energies, pressures, strict=True):
        print(f"{volume:18.3f}{energy:18.4f}{pressure:14.2f}{fitted_pressure(volume, parameters):22.2f}")
    a, b, c = atoms.cell.lengths() * (v0 / atoms.get_volume()) ** (1 / 3)
    print(f"\na, b, c          {a:8.4f} {b:8.4f} {c:8.4f} Å")
    print(f"energy           {e0 / len(atoms):8.4f} eV/atom")
    print(f"bulk modulus     {bulk_modulus / units.GPa:8.1f} GPa")

    output = options.output or options.model.parent
    output.mkdir(parents=True, exist_ok=True)
    draw(np.array(volumes), np.array(energies), np.array(pressures), parameters, output / "equation_of_state.png")
    print(f"\nPicture: {output / 'equation_of_state.png'}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Equation of state of a crystal.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/sic/model.pt"), help="model file")
    parser.add_argument("--structure", help="file with a crystal, whose last frame is taken; one of the model's elements where not given")
    parser.add_argument("--strain", type=float, default=0.02, help="largest change of the lattice constant")
    parser.add_argument("--points", type=int, default=9, help="number of volumes")
    parser.add_argument("--output", type=Path, help="folder for the picture; the model's own where not given")
    return parser.parse_args()


def fitted_pressure(volume: np.ndarray | float, parameters: np.ndarray) -> np.ndarray | float:
    """-dE/dV of the fitted curve, in GPa."""
    step = 1e-4 * volume
    difference = birchmurnaghan(volume + step, *parameters) - birchmurnaghan(volume - step, *parameters)
    return -difference / (2 * step) / units.GPa


def draw(volumes: np.ndarray, energies: np.ndarray, pressures: np.ndarray, parameters: np.ndarray, path: Path) -> None:
    figure = Figure(figsize=(6, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    fine = np.linspace(volumes.min(), volumes.max(), 200)
    top.plot(fine, birchmurnaghan(fine, *parameters), color="gray", label="Birch-Murnaghan")
    top.plot(volumes, energies, "o", color="tab:blue", label="energy of the model")
    top.set_ylabel("energy (eV/cell)")
    top.legend()
    bottom.plot(fine, fitted_pressure(fine, parameters), color="gray", label="-dE/dV of the curve above")
    bottom.plot(volumes, pressures, "o", color="tab:orange", label="stress of the model")
    bottom.set(xlabel="volume (Å³/cell)", ylabel="pressure (GPa)")
    bottom.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
