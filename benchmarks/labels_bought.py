"""Error on a fixed test set against the number of labels bought: frames that `flashace select` chooses, and frames drawn by chance.

    python benchmarks/labels_bought.py alloy /tmp/bought --seeds 3
    python benchmarks/labels_bought.py molecule /tmp/bought-too

`alloy`: copper, palladium and gold in all compositions, 16 atoms, crystals from 300 K to above the melting point, with vacancies, strain
and surfaces; ASE's EMT labels. `molecule`: methoxyethane from 300 K to where its bonds break; GFN2-xTB (tblite) labels. The pool has 24
trajectories of 40 frames, the test set 10 others. Both ways start from the same few frames; then the number of labels is doubled again and
again. Each time a small model is fitted from scratch, and its errors are measured. Everything is kept in the folder, and what is there is
not made twice.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from rich.console import Console

from flashace.calculator import FlashACE
from flashace.data.files import structures
from flashace.engines.many import evaluate_many
from flashace.teach.selection import Selector
from flashace.teach.task import labelled
from flashace.train.config import make_config
from flashace.train.loop import fit
from flashace.train.prepare import prepare

METALS = ("Cu", "Pd", "Au")
TRAJECTORIES, FRAMES, EVERY = 24, 40, 10  # steps
STEPS = 600  # of a fit, however many frames it has
SMALL = {"size": "small", "hidden_dim": 32, "num_channels": 8, "r_max": 4.3, "compile": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=int, default=10)
    parser.add_argument("--doublings", type=int, default=3)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    system = SYSTEMS[arguments.system]
    pool = trajectories(system, arguments.folder / "pool.extxyz", 0, TRAJECTORIES)
    test = trajectories(system, arguments.folder / "test.extxyz", 1, 10)[::4]
    rows = []
    for seed in range(arguments.seeds):
        for way in ("chance", "select"):
            model = Path()
            chosen = np.random.default_rng(seed).choice(len(pool), arguments.start, replace=False).tolist()
            for doubling in range(arguments.doublings + 1):
                if doubling:
                    chosen += more(way, pool, chosen, model, arguments.folder, seed)
                name = f"{way if doubling else 'start'}-{seed}-{len(chosen)}"
                model = fitted(system, [pool[i] for i in chosen], arguments.folder / name, seed)
                rows.append({"seed": seed, "way": way, "labels": len(chosen), **errors(model, test, system.temperatures[-1])})
                print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    with (arguments.folder / "labels_bought.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


class System(NamedTuple):
    """`start` makes the atoms of a trajectory, whose temperature is one of `temperatures` in turn."""

    start: Callable[[int, np.random.Generator], Atoms]
    calculator: Callable[[], Calculator]
    elements: tuple[str, ...]
    temperatures: tuple[float, ...]  # K
    timestep: float  # fs


def alloy(number: int, rng: np.random.Generator) -> Atoms:
    """Crystals mostly; each fourth has a vacancy and strain, each sixth is a slab."""
    shares = rng.dirichlet([1.0] * len(METALS))
    a = shares @ [3.61, 3.89, 4.08]
    atoms = fcc111("Cu", (2, 2, 4), a=a, vacuum=6.0, periodic=True) if number % 6 == 5 else bulk("Cu", cubic=True, a=a) * (2, 2, 1)
    atoms = Atoms(rng.choice(METALS, len(atoms), p=shares), atoms.positions, cell=atoms.cell, pbc=True)
    if number % 4 == 3:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), scale_atoms=True)
        del atoms[int(rng.integers(len(atoms)))]
    atoms.rattle(0.02, rng=rng)
    return atoms


def methoxyethane(number: int, rng: np.random.Generator) -> Atoms:
    atoms = molecule("CH3CH2OCH3")
    atoms.rattle(0.02, rng=rng)
    return atoms


def xtb() -> Calculator:
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


SYSTEMS = {
    "alloy": System(alloy, EMT, METALS, (300.0, 600.0, 1000.0, 1600.0, 2500.0), 3.0),
    "molecule": System(methoxyethane, xtb, ("H", "C", "O"), (300.0, 600.0, 1000.0, 1600.0, 2500.0), 0.5),
}


def trajectories(system: System, path: Path, seed: int, number: int) -> list[Atoms]:
    """Labelled frames, trajectory by trajectory; `config_type` is the temperature."""
    if not path.exists():
        rng = np.random.default_rng(seed)
        write(path, [frame for n in range(number) for frame in trajectory(system, n, rng)])
    return read(path, ":")


def trajectory(system: System, number: int, rng: np.random.Generator) -> list[Atoms]:
    atoms, temperature = system.start(number, rng), system.temperatures[number % len(system.temperatures)]
    atoms.calc = system.calculator()
    thermalize_momenta(atoms, temperature, rng=rng)
    dynamics = Langevin(atoms, system.timestep * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng)
    frames = []
    for _ in range(FRAMES):
        dynamics.run(EVERY)
        frames.append(labelled(atoms, system.calculator(), config_type=f"{temperature:.0f}K"))
    return frames


def more(way: str, pool: list[Atoms], chosen: list[int], model: Path, folder: Path, seed: int) -> list[int]:
    """As many frames again."""
    left = sorted(set(range(len(pool))) - set(chosen))
    if way == "chance":
        return np.random.default_rng([seed, len(chosen)]).choice(left, len(chosen), replace=False).tolist()
    selector = Selector(FlashACE(str(model)), max_force=100.0)
    found = selector.look((atoms, origin) for atoms, origin in structures([folder / "pool.extxyz"]) if origin.index in set(left))
    choice = selector.choose(found, len(chosen))
    return [int(candidate.atoms.info["origin"].rpartition("#")[2]) for candidate in choice.chosen]


def fitted(system: System, frames: list[Atoms], folder: Path, seed: int) -> Path:
    """model.pt of a small model."""
    if not (folder / "model.pt").exists():
        folder.mkdir(exist_ok=True)
        write(folder / "train.extxyz", frames)
        fraction = 0.0 if len(frames) < 20 else 0.1
        epochs = max(round(STEPS * 2 / len(frames)), 1)
        options = {"data": [str(folder / "train.extxyz")], "epochs": epochs, "batch_size": 2}
        config = make_config(
            {**options, **SMALL, "valid_fraction": fraction, "seed": seed, "atomic_energies": energies_alone(system), "check": "off"}
        )
        fit(prepare(config), folder, Console(quiet=True), overwrite=True)
    return folder / "model.pt"


def energies_alone(system: System) -> dict[str, float]:
    return {symbol: labelled(Atoms(symbol), system.calculator()).get_potential_energy() for symbol in system.elements}


def errors(model: Path, test: list[Atoms], hottest: float) -> dict[str, float]:
    """Root mean squares: forces (meV/Å) of all frames and of the hottest, energies (meV/atom)."""
    found = evaluate_many(test, FlashACE(str(model)))
    forces = [(frame.get_forces() - its["forces"]).ravel() for frame, its in zip(test, found, strict=True)]
    hot = [off for frame, off in zip(test, forces, strict=True) if frame.info["config_type"] == f"{hottest:.0f}K"]
    energies = [(frame.get_potential_energy() - its["energy"]) / len(frame) for frame, its in zip(test, found, strict=True)]
    named = {"forces": np.concatenate(forces), "hot": np.concatenate(hot), "energy": np.array(energies)}
    named |= {"largest": np.array([np.abs(off).max() for off in forces])}
    return {name: round(1e3 * float(np.sqrt(np.mean(np.square(off)))), 2) for name, off in named.items()}


if __name__ == "__main__":
    main()
