"""A model in, the phonon bands of a crystal out, by finite displacements in a supercell.

    python examples/phonons.py runs/sic/model.pt

A local model has no long-range electrostatics: the splitting of the optical branches at Γ in a polar crystal is absent.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.phonons import Phonons
from ase.spectrum.band_structure import BandStructure
from crystals import crystal
from matplotlib.figure import Figure

from flashace import FlashACE

THZ = 1e12 * 2 * np.pi * units._hbar / units._e  # eV


def main() -> None:
    options = read_options()
    calculator = FlashACE(options.model)
    atoms = crystal(options.model, options.structure, primitive=True)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=0.005, steps=100)

    bands = band_structure(atoms, calculator, options.supercell, options.displacement)
    frequencies = bands.energies[0] / THZ

    lattice, lengths = atoms.cell.get_bravais_lattice().longname, ", ".join(f"{x:.4f}" for x in atoms.cell.lengths())
    print(f"{lattice}, a cell of {lengths} Å, {len(atoms)} atoms, repeated {options.supercell}³ times\n")
    print("frequencies (THz; an imaginary one has a minus)")
    for name in bands.path.special_points:
        row = np.abs(bands.path.kpts - bands.path.special_points[name]).sum(axis=1).argmin()
        print(f"{name.replace('G', 'Γ'):>4}" + "".join(f"{value:8.2f}" for value in frequencies[row]))
    print(f"\nlowest {frequencies.min():.2f} THz, highest {frequencies.max():.2f} THz")

    output = options.output or options.model.parent
    output.mkdir(parents=True, exist_ok=True)
    draw(bands, frequencies, output / "phonons.png")
    print(f"\nPicture: {output / 'phonons.png'}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Phonon bands of a crystal.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/sic/model.pt"), help="model file")
    parser.add_argument("--structure", help="file with a crystal, whose last frame is taken; one of the model's elements where not given")
    parser.add_argument("--supercell", type=int, default=4, help="repetitions of the cell in each direction")
    parser.add_argument("--displacement", type=float, default=0.03, help="in Å")
    parser.add_argument("--output", type=Path, help="folder for the picture; the model's own where not given")
    return parser.parse_args()


def band_structure(atoms: Atoms, calculator: Calculator, supercell: int, displacement: float) -> BandStructure:
    with TemporaryDirectory() as folder:
        phonons = Phonons(atoms, calculator, (supercell,) * 3, name=f"{folder}/phonons", delta=displacement)
        phonons.run()
        phonons.read(acoustic=True)
    return phonons.get_band_structure(atoms.cell.bandpath(npoints=120), verbose=False)


def draw(bands: BandStructure, frequencies: np.ndarray, path: Path) -> None:
    distance, ticks, names = bands.path.get_linear_kpoint_axis()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(distance, frequencies, color="tab:blue")
    axis.axhline(0, color="gray", linewidth=1)
    axis.set_xticks(ticks, [name.replace("G", "Γ") for name in names])
    axis.grid(axis="x", color="lightgray")
    axis.set(xlim=(distance[0], distance[-1]), ylabel="frequency (THz)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
