"""A model in, molecular dynamics out: first NVE, where the total energy must stay, then Langevin at a temperature.

    python examples/md.py runs/sic/model.pt

NVE is the sharper test of a potential: forces that are not the exact derivative of the energy show as a drift.
"""

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from crystals import crystal
from matplotlib.figure import Figure

from flashace import FlashACE


def main() -> None:
    options = read_options()
    rng = np.random.default_rng(options.seed)
    atoms = ase.io.read(options.structure) if options.structure else crystal(options.model, None).repeat(2)
    atoms.calc = FlashACE(options.model)
    atoms.set_constraint(FixCom())

    # On an ideal lattice half of the kinetic energy turns into potential energy within the first vibrations.
    thermalize_momenta(atoms, 2 * options.temperature, rng=rng)

    timestep = options.timestep * units.fs
    nve = record(VelocityVerlet(atoms, timestep), atoms, options.steps)
    thermostat = Langevin(atoms, timestep, temperature_K=options.temperature, friction=0.02 / units.fs, fixcm=False, rng=rng)
    langevin = record(thermostat, atoms, options.steps)

    print(f"{len(atoms)} atoms, {options.steps} steps of {options.timestep} fs each\n")
    print(f"{'':10}{'mean temperature (K)':>24}{'largest change of the total energy (meV/atom)':>50}")
    for name, run in {"NVE": nve, "Langevin": langevin}.items():
        change = np.abs(run["total"] - run["total"][0]).max()
        print(f"{name:10}{run['temperature'].mean():24.0f}{1000 * change:50.3f}")

    output = options.output or options.model.parent
    output.mkdir(parents=True, exist_ok=True)
    draw(nve, langevin, options.timestep, output / "md.png")
    print(f"\nPicture: {output / 'md.png'}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="NVE, then Langevin dynamics of a structure.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/sic/model.pt"), help="model file")
    parser.add_argument("--structure", help="file, whose last frame is taken; a crystal of the model's elements where not given")
    parser.add_argument("--steps", type=int, default=150, help="steps of each of the two runs")
    parser.add_argument("--timestep", type=float, default=1.0, help="in fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="in K")
    parser.add_argument("--seed", type=int, default=0, help="of the velocities and of the thermostat")
    parser.add_argument("--output", type=Path, help="folder for the picture; the model's own where not given")
    return parser.parse_args()


def record(dynamics: MolecularDynamics, atoms: Atoms, steps: int) -> dict[str, np.ndarray]:
    """Run, and keep temperature (K), potential and total energy (eV/atom) of every step, the first included."""
    rows = []

    def keep() -> None:
        potential = atoms.get_potential_energy() / len(atoms)
        rows.append((atoms.get_temperature(), potential, potential + atoms.get_kinetic_energy() / len(atoms)))

    dynamics.attach(keep)
    dynamics.run(steps)
    return dict(zip(("temperature", "potential", "total"), np.array(rows).T, strict=True))


def draw(nve: dict[str, np.ndarray], langevin: dict[str, np.ndarray], timestep: float, path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    floor = nve["potential"][0]
    for column, (title, run) in enumerate({"NVE": nve, "Langevin": langevin}.items()):
        top, bottom = axes[:, column]
        time = timestep * np.arange(len(run["total"]))
        top.plot(time, 1000 * (run["total"] - floor), color="black", label="total")
        top.plot(time, 1000 * (run["potential"] - floor), color="tab:blue", label="potential")
        top.set_title(title)
        bottom.plot(time, run["temperature"], color="tab:orange")
        bottom.set_xlabel("time (fs)")
    axes[0, 0].set_ylabel("energy (meV/atom)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    axes[1, 0].set_ylabel("temperature (K)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
