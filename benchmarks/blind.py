"""Where a model leaves its data unseen: which warning comes first, and how wrong the model is by then.

    python benchmarks/blind.py alloy FOLDER      # Cu-Au, EMT; the model's own dynamics, heated until the melt boils off
    python benchmarks/blind.py ethanol FOLDER    # GFN2-xTB (tblite); bonds pulled in steps of 0.05 Å to 4 Å, all else as it is

A small model is fitted to a few frames of ordinary dynamics. Warnings are those of the guards of the mean atom, of neighbours and of
distances, and of the uncertainty of the least certain atom, in units of the largest one that the calibration saw. They are asked for every
frame anew.
FOLDER keeps frames and fit, and what is there is not made again. About 15 minutes of one core each.
"""

import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from flashace import CoordinationWarning, FlashACE, ShortDistanceWarning, UnfamiliarWarning
from flashace.guards import Guards

EPOCHS = {"alloy": 60, "ethanol": 120}
THRESHOLDS = 2.0, 3.0, 5.0  # of the largest uncertainty in validation
ASKED = 0.05, 0.3  # eV/atom and eV: no later than here


def truth(case: str) -> Calculator:
    if case == "alloy":
        return EMT()
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


def start(case: str, seed: int, stretch: float = 1.0) -> Atoms:
    if case == "ethanol":
        return molecule("CH3CH2OH")
    atoms = bulk("Cu", cubic=True, a=3.8 * stretch).repeat(2)
    numbers = atoms.numbers
    numbers[np.random.default_rng(seed).permutation(32)[:16]] = 79
    atoms.numbers = numbers
    return atoms


def labelled(atoms: Atoms, calculator: Calculator) -> Atoms:
    asked = atoms.copy()
    asked.calc = calculator
    energy, forces = asked.get_potential_energy(), asked.get_forces()
    frame = atoms.copy()
    frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces, **({"stress": asked.get_stress()} if frame.pbc.all() else {}))
    return frame


def dynamics(case: str, atoms: Atoms, temperature: float, frames: int, every: int, seed: int) -> list[Atoms]:
    """After a start of 100 steps (5 fs) or 400 (0.5 fs), each `every`-th step of the truth's dynamics."""
    calculator, rng = truth(case), np.random.default_rng(seed)
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    step = (5.0 if case == "alloy" else 0.5) * units.fs
    run = Langevin(atoms, step, temperature_K=temperature, friction=0.02 / units.fs, rng=rng)
    run.run(100 if case == "alloy" else 400)
    found = []
    for _ in range(frames):
        run.run(every)
        found.append(labelled(atoms, calculator))
    return found


def ordinary(case: str, seed: int, frames: int, every: int) -> list[Atoms]:
    """Those of training, or others of the same kind with another seed."""
    if case == "ethanol":
        conditions = [(300.0, 1.0), (500.0, 1.0)]
    else:
        conditions = [(300.0, 1.0), (300.0, 1.03), (600.0, 1.0), (900.0, 1.02), (900.0, 0.97)]
    return [
        frame
        for k, (temperature, stretch) in enumerate(conditions)
        for frame in dynamics(case, start(case, seed + k, stretch), temperature, frames // len(conditions), every, seed + k)
    ]


def heated(model: Path, seed: int) -> Iterator[tuple[str, Atoms]]:
    """The model's dynamics at 1 bar from 300 K, 3 K hotter at each step of 5 fs, until the volume is sixteen times that of the start."""
    atoms, rng = start("alloy", 200 + seed), np.random.default_rng(seed)
    atoms.calc = FlashACE(model)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
    volume = atoms.get_volume()
    run = NPTBerendsen(
        atoms, 5 * units.fs, temperature_K=300, pressure_au=1 * units.bar, taut=50 * units.fs, taup=200 * units.fs,
        compressibility_au=1e-6 / units.bar,
    )  # fmt: skip
    for k in range(1, 301):
        run.run(10)
        run.set_temperature(temperature_K=300 + 30 * k)
        yield f"{atoms.get_temperature():.0f} K, volume x {atoms.get_volume() / volume:.2f}", atoms.copy()
        if atoms.get_volume() > 16 * volume:
            return


def pulled(a: int, b: int, moved: list[int]) -> Iterator[tuple[str, Atoms]]:
    """Atom b, with all of `moved`, away from a along their bond."""
    atoms = molecule("CH3CH2OH")
    vec = atoms.positions[b] - atoms.positions[a]
    length = float(np.linalg.norm(vec))
    for r in np.arange(np.ceil(length * 20) / 20, 4.001, 0.05):
        at = atoms.copy()
        at.positions[moved] += vec / length * (r - length)
        yield f"{r:.2f} Å", at


def look(frames: Iterable[tuple[str, Atoms]], calc: FlashACE, reference: Calculator | None) -> list[dict]:
    """Of each frame: true errors (with labels of `reference`, or its own), and what would have warned."""
    largest, of_forces = calc.model.uncertainty.largest, calc.model.uncertainty.force_law
    rows = []
    for name, atoms in frames:
        frame = atoms if reference is None else labelled(atoms, reference)
        calc.guards = Guards(calc.model)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            asked = frame.copy()
            asked.calc = calc
            energy, forces, sigma = asked.get_potential_energy(), asked.get_forces(), calc.get_uncertainty()
        error = energy - frame.get_potential_energy()
        each = np.linalg.norm(forces - frame.get_forces(), axis=1) / 3**0.5
        rows.append(
            {
                "name": name,
                "total": abs(error),
                "per_atom": abs(error) / len(frame),
                "force": float(each.max()),
                "sigma": float(sigma.energy),
                "sigma_force": float(sigma.forces.max()),
                "coordination": any(issubclass(w.category, CoordinationWarning) for w in told),
                "mean atom": any(issubclass(w.category, UnfamiliarWarning) for w in told),
                "distance": any(issubclass(w.category, ShortDistanceWarning) for w in told),
                "energies": float(sigma.energies.max()) / largest,
                "forces": float(sigma.forces.max()) / of_forces.largest,
            }
        )
    return rows


def guards() -> dict[str, object]:
    found: dict[str, object] = {name: lambda row, name=name: row[name] for name in ("mean atom", "coordination", "distance")}
    for k in THRESHOLDS:
        found[f"energies > {k:g}"] = lambda row, k=k: row["energies"] > k
        found[f"forces > {k:g}"] = lambda row, k=k: row["forces"] > k
    return found


def tell(title: str, rows: list[dict]) -> None:
    """When each guard warns first; the largest true errors before that; and when the errors pass what is asked."""
    print(
        f"\n{title}: {len(rows)} frames, errors to {max(r['per_atom'] for r in rows):.3g} eV/atom, {max(r['total'] for r in rows):.3g} eV"
    )
    for i, row in enumerate(rows):
        if row["per_atom"] > ASKED[0] or row["total"] > ASKED[1]:
            print(f"  first error beyond {ASKED[0]} eV/atom or {ASKED[1]} eV: frame {i}, {row['name']}")
            break
    for name, warns in guards().items():
        first = next((i for i, row in enumerate(rows) if warns(row)), None)
        before = rows[:first]
        worst = [max((r[key] for r in before), default=0.0) for key in ("per_atom", "total", "force")]
        when = "never" if first is None else f"frame {first} ({rows[first]['name']})"
        print(f"  {name:15s} {when:32s} largest error before: {worst[0]:.3f} eV/atom, {worst[1]:.2f} eV, force {worst[2]:.2f} eV/Å")


def main() -> None:
    case, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    model = folder / "fit" / "model.pt"
    for name, seed, frames, every in (("train", 0, 60 if case == "ethanol" else 40, 40), ("ordinary", 100, 1000, 8)):
        if not (folder / f"{name}.extxyz").exists():
            write(folder / f"{name}.extxyz", ordinary(case, seed, frames, every))
    if not model.exists():
        command = f"fit {folder}/train.extxyz --size small --epochs {EPOCHS[case]} --compile false --check off -o {folder}/fit --overwrite"
        subprocess.run([sys.executable, "-m", "flashace", *command.split()], check=True)
    calc = FlashACE(model)
    rows = look([("", atoms) for atoms in read(folder / "ordinary.extxyz", ":")], calc, None)
    print(f"{len(rows)} ordinary frames, errors to {max(r['total'] for r in rows):.3g} eV; false warnings:")
    for name, warns in guards().items():
        print(f"  {name:15s} {sum(bool(warns(row)) for row in rows)}")
    print("  largest ratio: energies {:.2f}, forces {:.2f}".format(*(max(r[key] for r in rows) for key in ("energies", "forces"))))
    if case == "alloy":
        for seed in range(int(sys.argv[3]) if len(sys.argv) > 3 else 1):
            tell(f"heated, seed {seed}", look(heated(model, seed), calc, truth(case)))
        return
    for name, a, b, moved in (("O-H", 2, 3, [3]), ("C-O", 1, 2, [2, 3]), ("C-C", 1, 0, [0, 6, 7, 8]), ("C-H", 0, 6, [6])):
        tell(f"{name} pulled", look(pulled(a, b, moved), calc, truth(case)))


if __name__ == "__main__":
    main()
