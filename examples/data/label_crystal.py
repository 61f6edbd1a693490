"""Nothing in, `sic.extxyz` out: cells of 3C-SiC and their PBE energy, forces and stress.

    python label_crystal.py label sic.extxyz    # appends the frames that are not there yet
    python label_crystal.py check sic.extxyz    # forces and stress against differences of the energy

Energies eV, positions Å, forces eV/Å, stress eV/Å³ with ASE's sign, under ASE's own keys.
Every frame says in `config_type` how it was made. Source: our own run of GPAW (README.md).
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.stress import voigt_6_to_full_3x3_strain
from gpaw import GPAW, PW, Davidson, FermiDirac, Mixer, MixerDif

LATTICE_CONSTANT = 4.38  # Å, PBE
SPRING = 22.0  # eV/Å², a rough guess at the pull on one displaced atom; it only sets amplitudes
CUTOFF = 600.0  # eV
SEED = 20
MIN_DISTANCE = 1.15  # Å, nearest pair that a frame may hold; the bond is 1.90

NUM_FRAMES = {
    "rattled_300K": 16,
    "rattled_600K": 14,
    "rattled_1200K": 12,
    "strong_rattle": 8,
    "bond_scan": 4,
    "strained": 11,
    "strained_rattled": 12,
    "sheared": 8,
    "uniaxial": 8,
    "vacancy": 12,
    "supercell_600K": 4,
}


def frames() -> list[Atoms]:
    """The structures in the order of the file: free atoms, then all kinds mixed, so that any first part is diverse."""
    rng = np.random.default_rng(SEED)
    makers = {
        "rattled_300K": lambda i, n: rattle(strain(crystal(), isotropic(rng.normal(0, 0.004))), 300, rng),
        "rattled_600K": lambda i, n: rattle(strain(crystal(), isotropic(rng.normal(0, 0.008))), 600, rng),
        "rattled_1200K": lambda i, n: rattle(strain(crystal(), isotropic(rng.normal(0, 0.012))), 1200, rng),
        "strong_rattle": lambda i, n: rattle(strain(crystal(), isotropic(rng.uniform(-0.04, 0.02))), 4000, rng),
        "bond_scan": lambda i, n: stretch_bond(crystal(), (1.30, 1.45, 1.60, 2.20)[i]),
        "strained": lambda i, n: strain(crystal(), isotropic(np.linspace(-0.06, 0.06, n)[i])),
        "strained_rattled": lambda i, n: rattle(strain(crystal(), isotropic(np.linspace(-0.06, 0.06, n)[i])), 300, rng),
        "sheared": lambda i, n: rattle(strain(crystal(), shear(rng.uniform(-0.05, 0.05, 3))), 300 * (i % 2), rng),
        "uniaxial": lambda i, n: rattle(strain(crystal(), uniaxial(i % 3, np.linspace(-0.06, 0.06, n)[i])), 300 * (i % 2), rng),
        "vacancy": lambda i, n: rattle(
            strain(without_one("Si" if i % 2 else "C"), isotropic(rng.normal(0, 0.01))), (300, 900)[i // 2 % 2], rng
        ),
        "supercell_600K": lambda i, n: rattle(strain(crystal() * (3, 1, 1), isotropic(rng.normal(0, 0.008))), 600, rng),
    }
    made = []
    for config_type, num in NUM_FRAMES.items():
        for i in range(num):
            atoms = makers[config_type](i, num)
            while too_close(atoms):
                atoms = makers[config_type](i, num)
            atoms.info["config_type"] = config_type
            made.append(atoms)
    return [isolated("Si"), isolated("C")] + [made[k] for k in rng.permutation(len(made))]


def crystal() -> Atoms:
    """The cubic cell of 3C-SiC, 8 atoms."""
    return bulk("SiC", "zincblende", a=LATTICE_CONSTANT, cubic=True)


def without_one(symbol: str) -> Atoms:
    """The cubic cell without its first atom of this element, 7 atoms."""
    atoms = crystal()
    del atoms[atoms.get_chemical_symbols().index(symbol)]
    return atoms


def isolated(symbol: str) -> Atoms:
    """One atom in a box of three unequal edges, so that its open shell has no symmetry to break."""
    atoms = Atoms(symbol, cell=[9.0, 9.3, 9.6], pbc=True, info={"config_type": "IsolatedAtom"})
    atoms.center()
    return atoms


def isotropic(e: float) -> np.ndarray:
    return np.eye(3) * (1 + e)


def uniaxial(axis: int, e: float) -> np.ndarray:
    deformation = np.eye(3)
    deformation[axis, axis] += e
    return deformation


def shear(yz_xz_xy: np.ndarray) -> np.ndarray:
    a, b, c = yz_xz_xy
    return np.array([[1, c, b], [c, 1, a], [b, a, 1]])


def strain(atoms: Atoms, deformation: np.ndarray) -> Atoms:
    """Cell and positions multiplied from the right by a (3, 3) deformation."""
    atoms.set_cell(atoms.cell[:] @ deformation, scale_atoms=True)
    return atoms


def rattle(atoms: Atoms, temperature: float, rng: np.random.Generator) -> Atoms:
    """Gaussian displacements of classical, independent oscillators: variance k_B T / SPRING per component."""
    width = np.sqrt(units.kB * temperature / SPRING)
    atoms.positions += rng.normal(0, 1, (len(atoms), 3)) * width
    return atoms


def stretch_bond(atoms: Atoms, length: float) -> Atoms:
    """The first carbon moved along its bond to the first silicon until the bond has this length, Å."""
    si, c = (atoms.get_chemical_symbols().index(symbol) for symbol in ("Si", "C"))
    bond = atoms.get_distance(si, c, mic=True, vector=True)
    atoms.positions[c] += bond * (length / np.linalg.norm(bond) - 1)
    return atoms


def too_close(atoms: Atoms) -> bool:
    distances = atoms.get_all_distances(mic=True)
    return distances[np.triu_indices(len(atoms), 1)].min() < MIN_DISTANCE


def calculator(atoms: Atoms) -> GPAW:
    """PBE in plane waves; a free atom is spin-polarised in Hund's ground state.

    The k-grid is 3x3x3 for the cubic cell and 1x3x3 for three of them in a row, which are the same
    k-points: one error for all frames, also under strain. `dedecut` makes the stress
    the derivative of the energy at constant cutoff.
    """
    if len(atoms) == 1:
        shell = {"hund": True, "occupations": FermiDirac(0.0, fixmagmom=True), "nbands": 8}
        solver = {"eigensolver": Davidson(3), "mixer": MixerDif(0.25, 3, 1)}
        k_grid = (1, 1, 1)
    else:
        num_cells = 3 if len(atoms) > 8 else 1
        shell = {"occupations": FermiDirac(0.05), "nbands": 20 * num_cells}
        solver = {"mixer": Mixer(0.5, 8, 1)}
        k_grid = (3 // num_cells, 3, 3)
    return GPAW(
        mode=PW(CUTOFF, dedecut="estimate"),
        xc="PBE",
        kpts={"size": k_grid, "gamma": True},
        symmetry={"point_group": False},
        convergence={"density": 1e-5},
        txt="gpaw.log",
        **shell,
        **solver,
    )


def label(atoms: Atoms) -> Atoms:
    """A copy that carries energy, forces and stress; a free atom carries its energy only.

    The energy is the one that forces and stress derive from (with the electronic entropy).
    """
    atoms = atoms.copy()
    atoms.calc = calculator(atoms)
    results = {"energy": atoms.get_potential_energy(force_consistent=True)}
    if len(atoms) > 1:
        results |= {"forces": atoms.get_forces(), "stress": atoms.get_stress()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def energy(atoms: Atoms) -> float:
    return label(atoms).get_potential_energy()


def check(path: Path, step: float = 0.01, strain_step: float = 0.005) -> None:
    """Print force and stress components of two labelled frames beside central differences of the energy."""
    everything = read(path, ":")
    print(f"{'frame':14s} {'component':10s} {'label':>10s} {'difference':>10s}   (eV/Å, eV/Å³)")
    for config_type, atom, axis, voigt in (("rattled_600K", 0, 0, 0), ("vacancy", 5, 2, 3)):
        labelled = next(frame for frame in everything if frame.info["config_type"] == config_type)
        ends = []
        for sign in (1, -1):
            moved = labelled.copy()
            moved.positions[atom, axis] += sign * step
            ends.append(energy(moved))
        slope = -(ends[0] - ends[1]) / (2 * step)
        print_row(config_type, f"F[{atom}, {'xyz'[axis]}]", labelled.get_forces()[atom, axis], slope)

        deformations = [voigt_6_to_full_3x3_strain(sign * strain_step * np.eye(6)[voigt]) for sign in (1, -1)]
        ends = [energy(strain(labelled.copy(), deformation)) for deformation in deformations]
        slope = (ends[0] - ends[1]) / (2 * strain_step * labelled.get_volume())
        print_row(config_type, f"stress[{voigt}]", labelled.get_stress()[voigt], slope)


def print_row(config_type: str, component: str, value: float, difference: float) -> None:
    print(f"{config_type:14s} {component:10s} {value:10.5f} {difference:10.5f}", flush=True)


def append_missing(path: Path) -> None:
    """Label what `path` does not hold yet, one frame at a time; stop it and start it again at will."""
    done = len(read(path, ":")) if path.exists() else 0
    for atoms in frames()[done:]:
        write(path, label(atoms), append=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    match sys.argv[1:]:
        case ["label", path]:
            append_missing(Path(path))
        case ["check", path]:
            check(Path(path))
        case _:
            sys.exit(__doc__)
