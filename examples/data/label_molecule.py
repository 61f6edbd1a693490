"""Nothing in, `ethanol.extxyz` out: geometries of ethanol and their PBE/def2-SVP energy and forces.

    python label_molecule.py label ethanol.extxyz    # appends the frames that are not there yet
    python label_molecule.py check ethanol.extxyz    # forces against differences of the energy

Energies eV, positions Å, forces eV/Å, under ASE's own keys; no cell, no stress.
Every frame says in `config_type` how it was made. Source: our own run of PySCF (README.md).
"""

import sys
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.optimize import BFGS
from pyscf import gto

UNPAIRED = {"H": 1, "C": 2, "O": 2}  # electrons of the free atoms
CONFORMERS = {"trans": 180.0, "gauche": 62.0}  # degrees, C-C-O-H
SEEDS = (21, 22)  # one round of frames each; a further seed adds a round

# Order of the atoms: C (methyl), C, O, H of OH, two H of CH2, three H of CH3.
DIHEDRAL = {"OH": (0, 1, 2, 3), "CH3": (2, 1, 0, 6)}
TURNED = {"OH": [3], "CH3": [6, 7, 8]}

NUM_FRAMES = {
    "relaxed": 2,
    "rattled_300K": 18,
    "rattled_600K": 14,
    "rattled_1200K": 6,
    "torsion": 12,
    "torsion_300K": 8,
}
NOT_DRAWN = ("relaxed", "torsion")  # the same in every round, so in the first alone
TORSION_SCAN = [("OH", angle) for angle in range(0, 360, 45)] + [("CH3", angle) for angle in (15, 30, 45, 60)]


def frames() -> list[Atoms]:
    """Every structure, in the order of the file: round by round, all kinds of a round mixed; the free atoms after the first."""
    free_atoms = [Atoms(symbol, info={"config_type": "IsolatedAtom"}) for symbol in UNPAIRED]
    first, *further = (_round(np.random.default_rng(seed)) for seed in SEEDS)
    drawn = [atoms for made in further for atoms in made if atoms.info["config_type"] not in NOT_DRAWN]
    return first + free_atoms + drawn


def _round(rng: np.random.Generator) -> list[Atoms]:
    names = list(CONFORMERS)
    makers = {
        "relaxed": lambda i: relaxed(names[i]),
        "rattled_300K": lambda i: rattle(names[i % 2], 300, rng),
        "rattled_600K": lambda i: rattle(names[i % 2], 600, rng),
        "rattled_1200K": lambda i: rattle(names[i % 2], 1200, rng),
        "torsion": lambda i: turn(relaxed("trans"), *TORSION_SCAN[i]),
        "torsion_300K": lambda i: turn(turn(rattle("trans", 300, rng), "OH", rng.uniform(0, 360)), "CH3", rng.uniform(0, 120)),
    }
    made = []
    for config_type, num in NUM_FRAMES.items():
        for i in range(num):
            atoms = makers[config_type](i)
            atoms.info["config_type"] = config_type
            made.append(atoms)
    return [made[k] for k in rng.permutation(len(made))]


def turn(atoms: Atoms, group: str, degrees: float) -> Atoms:
    """The group turned rigidly about the bond that holds it."""
    atoms.rotate_dihedral(*DIHEDRAL[group], degrees, indices=TURNED[group])
    return atoms


def rattle(conformer: str, temperature: float, rng: np.random.Generator) -> Atoms:
    """Gaussian displacement along every vibration: variance k_B T / spring constant, classical and harmonic."""
    atoms = relaxed(conformer)
    springs, modes = vibrations(conformer)
    amplitudes = rng.normal(0, 1, len(springs)) * np.sqrt(units.kB * temperature / springs)
    atoms.positions += (amplitudes @ modes).reshape(-1, 3)
    return atoms


def relaxed(conformer: str) -> Atoms:
    """A fresh copy of ethanol at the minimum of this conformer."""
    return minimum(conformer).copy()


@cache
def minimum(conformer: str) -> Atoms:
    """Relaxed from a textbook geometry with the labels' own method."""
    atoms = molecule("CH3CH2OH")
    atoms.set_dihedral(*DIHEDRAL["OH"], CONFORMERS[conformer], indices=TURNED["OH"])
    atoms.calc = PBE()
    optimizer = BFGS(atoms, logfile="bfgs.log")
    optimizer.H0 = hessian(atoms) + 2 * np.eye(3 * len(atoms))  # a good first guess saves most steps
    optimizer.run(fmax=0.02, steps=40)
    atoms.calc = None
    return atoms


@cache
def vibrations(conformer: str) -> tuple[np.ndarray, np.ndarray]:
    """Spring constants (V,) in eV/Å² and orthonormal directions (V, 3N) of the V = 3N - 6 internal motions."""
    atoms = minimum(conformer)
    internal = internal_directions(atoms.positions)
    springs, vectors = np.linalg.eigh(internal @ hessian(atoms) @ internal.T)
    return np.maximum(springs, 0.3), vectors.T @ internal


def hessian(atoms: Atoms) -> np.ndarray:
    """(3N, 3N) in eV/Å², from Hartree-Fock/STO-3G: it takes a second and only has to give sensible amplitudes."""
    second = to_pyscf(atoms, "sto-3g").RHF().run().Hessian().kernel()
    return second.transpose(0, 2, 1, 3).reshape(3 * len(atoms), -1) * units.Hartree / units.Bohr**2


def internal_directions(positions: np.ndarray) -> np.ndarray:
    """Orthonormal basis (3N - 6, 3N) of the displacements without translation and rotation."""
    shifts = [np.tile(axis, (len(positions), 1)) for axis in np.eye(3)]
    turns = [np.cross(axis, positions - positions.mean(0)) for axis in np.eye(3)]
    rigid = np.reshape(shifts + turns, (6, -1))
    return np.linalg.svd(rigid)[2][6:]


def to_pyscf(atoms: Atoms, basis: str) -> gto.Mole:
    symbols = atoms.get_chemical_symbols()
    spin = UNPAIRED[symbols[0]] if len(atoms) == 1 else 0
    return gto.M(atom=list(zip(symbols, atoms.positions, strict=True)), basis=basis, spin=spin, verbose=0)


class PBE(Calculator):
    """PBE/def2-SVP: restricted for the molecule, unrestricted for a free atom. The gradient follows the grid."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]
    density = None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        mol = to_pyscf(self.atoms, "def2-svp")
        field = mol.UKS(xc="pbe") if mol.spin else mol.RKS(xc="pbe")
        field.conv_tol = 1e-9
        self.results["energy"] = field.kernel(dm0=self.density) * units.Hartree
        if not field.converged:
            raise RuntimeError(f"{self.atoms.symbols}: the self-consistent field did not converge")
        self.density = field.make_rdm1()
        if "forces" in properties:
            gradient = field.nuc_grad_method()
            gradient.grid_response = True
            self.results["forces"] = -gradient.kernel() * units.Hartree / units.Bohr


def label(atoms: Atoms) -> Atoms:
    """A copy that carries energy and forces; a free atom carries its energy only."""
    atoms = atoms.copy()
    wanted = ["energy", "forces"] if len(atoms) > 1 else ["energy"]
    calc = PBE()
    calc.calculate(atoms, wanted)
    atoms.calc = SinglePointCalculator(atoms, **{name: calc.results[name] for name in wanted})
    return atoms


def check(path: Path, step: float = 0.005) -> None:
    """Print force components of two labelled frames beside central differences of the energy."""
    everything = read(path, ":")
    print(f"{'frame':14s} {'component':10s} {'label':>10s} {'difference':>10s}   (eV/Å)")
    for config_type in ("rattled_600K", "torsion_300K"):
        labelled = next(frame for frame in everything if frame.info["config_type"] == config_type)
        for atom, axis in ((1, 0), (3, 1)):
            ends = []
            for sign in (1, -1):
                moved = labelled.copy()
                moved.positions[atom, axis] += sign * step
                ends.append(label(moved).get_potential_energy())
            slope = -(ends[0] - ends[1]) / (2 * step)
            force = labelled.get_forces()[atom, axis]
            print(f"{config_type:14s} F[{atom}, {'xyz'[axis]}]    {force:10.5f} {slope:10.5f}", flush=True)


def append_missing(path: Path) -> None:
    """Label what `path` does not hold yet, one frame at a time; stop it and start it again at will."""
    done = len(read(path, ":")) if path.exists() else 0
    for atoms in frames()[done:]:
        write(path, label(atoms), append=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["label", path]:
            append_missing(Path(path))
        case ["check", path]:
            check(Path(path))
        case _:
            sys.exit(__doc__)
