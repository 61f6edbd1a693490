"""pair_style flashace under mpirun against the calculator of ASE: the same C in both, so that they differ by rounding alone."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.data import atomic_masses, atomic_masses_iupac2016, atomic_numbers, chemical_symbols

from flashace import FlashACE
from flashace.backends.c.backend import kernel_of
from flashace.engines.lammps.export import checksum
from flashace.engines.lammps.plugin import SOURCE
from flashace.structure.neighbors import build_graph

RANKS = 1, 2, 4
TOLERANCE = 1e-11  # relative
STRUCTURES = "crystal", "primitive", "sheared", "slab in vacuum", "slab without cell height", "wire", "molecule"
STRUCTURES += "molecule in a box", "mixed pbc", "atoms outside", "one atom per cell", "atom"
TYPES = "C", "Si"
THERMO = "pe", "etotal", "c_w[1]", "c_w[2]", "c_w[3]", "c_w[6]", "c_w[5]", "c_w[4]"
BAR = 1 / 1.6021765e6  # eV/Å³, as LAMMPS has it


class Frame(NamedTuple):
    """What LAMMPS says of a configuration, in eV and Å, with the signs and the order of ASE."""

    atoms: Atoms  # where it says that they are
    energy: float
    total: float  # with kinetic energy
    energies: np.ndarray
    forces: np.ndarray
    stress: np.ndarray  # without what velocities add
    stresses: np.ndarray  # times volume


@pytest.fixture
def calculator(model_file):
    return FlashACE(model_file, device="cpu", dtype="float64", kernel="compiled")


def supercell(size=3):
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * size
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.mark.parametrize("ranks", RANKS)
def test_every_periodicity_is_as_in_ase(exported, lammps, calculator, structure, tmp_path, ranks):
    """One process for all of them: `clear` between two leaves nothing behind. Most boxes are smaller than the cutoff."""
    some = (
        STRUCTURES if ranks < 4 else ("crystal", "sheared", "slab in vacuum", "molecule")
    )  # many processes on few cores wait for each other
    atoms = {name: for_lammps(structure(name)) for name in some}
    atoms["far apart"] = Atoms("SiCSi", [[0, 0, 0], [9, 0, 0], [0, 20, 0]], cell=[30, 30, 30], pbc=True)
    atoms["supercell"] = supercell()
    data = {name: tmp_path / name.replace(" ", "-") for name in atoms}
    lammps("clear\n".join(setup(atoms[name], exported, data[name]) + "run 0\n" for name in atoms), ranks)
    for name in atoms:
        (frame,) = frames(atoms[name], data[name])
        assert_is_ase(frame, calculator, name)


@pytest.mark.parametrize("ranks", RANKS)
def test_dynamics_conserve_energy_and_stay_those_of_ase(exported, lammps, calculator, tmp_path, ranks):
    """Atoms change the process and are sorted all the time; a second run goes on where the first one stopped."""
    atoms, temperature = supercell(2), 3000
    commands = (
        "atom_modify sort 5 2.0\nneigh_modify delay 0 every 1 check yes\nneighbor 0.2 bin\n"
        f"velocity all create {temperature} 1 loop geom\ntimestep 0.0001\nfix nve all nve\nrun 100\nrun 100\n"
    )
    lammps(setup(atoms, exported, tmp_path / "md", every=50) + commands, ranks)
    found = frames(atoms, tmp_path / "md")
    assert len(found) == 5
    kinetic = 1.5 * units.kB * temperature * len(atoms)
    assert np.ptp([frame.energy for frame in found]) > 0.05 * kinetic
    assert np.ptp([frame.total for frame in found]) < 2e-4 * kinetic
    for frame in found:
        assert_is_ase(frame, calculator)


def test_a_barostat_sees_the_stress_of_ase(exported, lammps, calculator, tmp_path):
    atoms = supercell(2)
    atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.01, 1, 0], [-0.02, 0.03, 1]], scale_atoms=True)
    commands = "velocity all create 1000 1 loop geom\nfix npt all npt temp 1000 1000 0.1 tri 0 0 0.1\nrun 10\n"
    lammps(setup(atoms, exported, tmp_path / "md") + commands, 2)
    found = frames(atoms, tmp_path / "md")
    assert len(found) == 11
    assert np.abs(found[-1].atoms.cell.array - atoms.cell.array)[np.tril_indices(3)].min() > 1e-5
    for frame in found:
        assert_is_ase(frame, calculator)


def test_processes_without_atoms_or_neighbors(exported, lammps, calculator, structure, tmp_path):
    """Four slices along x: two molecules at the ends, and nothing in between."""
    molecule = structure("molecule")
    far = molecule.copy()
    far.positions[:, 0] += 60
    atoms = for_lammps(molecule + far)
    done = lammps("processors 4 1 1\n" + setup(atoms, exported, tmp_path / "ends") + "run 0\n", 4)
    assert re.search(r"Nlocal: .* 0 min", done.stdout)
    (frame,) = frames(atoms, tmp_path / "ends")
    assert_is_ase(frame, calculator)


def test_balanced_domains_of_different_sizes(exported, lammps, calculator, tmp_path):
    """Where the ghosts of a process come from many others."""
    atoms = supercell()
    commands = "comm_style tiled\ncomm_modify cutoff 2.0\nbalance 1.0 rcb\nrun 0\n"  # LAMMPS widens a range that is too short
    lammps(setup(atoms, exported, tmp_path / "tiled") + commands, 4)
    (frame,) = frames(atoms, tmp_path / "tiled")
    assert_is_ase(frame, calculator)


def test_heat_flux_gets_the_virial_of_each_neighbor(exported, lammps, model, tmp_path):
    """centroid/stress/atom: the force on an atom from each E_i, times how far from i it stands."""
    atoms = supercell()
    columns = " ".join(f"c_c[{k}]" for k in range(1, 10))
    commands = (
        f"compute c all centroid/stress/atom NULL pair\ndump c all custom 1 c.dump id {columns}\ndump_modify c sort id format float %.17g\n"
    )
    lammps(setup(atoms, exported, tmp_path / "flux") + commands + "run 0\n", 2)
    found = BAR * np.loadtxt(tmp_path / "c.dump", skiprows=9)[:, 1:]
    graph = build_graph(atoms, model.config.r_max)
    r, g = graph.edge_vec.numpy(), kernel_of(model)(graph).slopes.numpy()
    expected = np.zeros((len(atoms), 3, 3))
    np.add.at(expected, graph.edge_index[1].numpy(), r[:, :, None] * g[:, None, :])
    order = [0, 4, 8, 1, 2, 5, 3, 6, 7]  # xx yy zz xy xz yz yx zx zy
    np.testing.assert_allclose(found, expected.reshape(-1, 9)[:, order], rtol=0, atol=1e-9 * np.abs(expected).max())


def test_hybrid_leaves_out_the_types_of_others(exported, lammps, calculator, tmp_path):
    """A third type among the atoms, without any interaction, changes nothing; nor does another style on top."""
    atoms = supercell(2)
    nothing = "\npair_coeff * 3 lj/cut 0.0 1.0\npair_coeff 1 2 lj/cut 0.0 1.0"
    changes = {
        "/hybrid\n": "/hybrid extra/atom/types 1\nmass 3 40\ncreate_atoms 3 single 1.1 1.2 1.3\ncreate_atoms 3 single 3.1 3.2 3.3\n",
        "pair_style flashace": "pair_style hybrid/overlay flashace lj/cut 3.0",
        f"* * {exported} C Si": f"* * flashace {exported} C Si NULL{nothing}",
    }
    text = setup(atoms, exported, tmp_path / "hybrid") + "run 0\n"
    for right, wrong in changes.items():
        assert right in text
        text = text.replace(right, wrong, 1)
    lammps(text, 2)
    (frame,) = frames(atoms + Atoms("Ar2"), tmp_path / "hybrid")
    assert not frame.forces[-2:].any()
    n = len(atoms)
    own = frame._replace(atoms=frame.atoms[:n], energies=frame.energies[:n], forces=frame.forces[:n], stresses=frame.stresses[:n])
    assert_is_ase(own, calculator)


def test_a_restart_goes_on_with_the_model_named_again(exported, lammps, calculator, tmp_path):
    atoms = supercell(2)
    first = setup(atoms, exported, tmp_path / "first") + "run 0\nwrite_restart now.restart\nwrite_data now.data\n"
    model = f"pair_style flashace\npair_coeff * * {exported} C Si\n"
    again = f"clear\nread_restart now.restart\n{model}{outputs(tmp_path / 'again')}run 0\n"
    lammps(first + again, 2)
    for name in ("first", "again"):
        (frame,) = frames(atoms, tmp_path / name)
        assert_is_ase(frame, calculator)


ON_TOP = "create_atoms 1 single 2 2 2\ncreate_atoms 2 single 2 2 2\n"
BAD = {
    "units": ("units metal", "units real", "expected units metal .* got real"),
    "newton": ("units metal", "units metal\nnewton off", "expected newton on for pairs, got off; write `newton on`"),
    "words after the style": ("pair_style flashace", "pair_style flashace 5.0", "expected nothing after it, or uncertainty, got 5.0"),
    "one element for two types": ("C Si\n", "C\n", "2 elements, one for each type of atoms, got 4 words"),
    "unknown element": ("C Si\n", "C Ge\n", "knows the elements C Si, got Ge for atom type 2"),
    "NULL": ("C Si\n", "C NULL\n", "got NULL for type 2; NULL is for pair_style hybrid"),
    "no such file": ("MODEL", "none.so", "expected a file that `flashace export .*` has written, got none.so: .*No such file"),
    "model.pt": ("MODEL", "MODEL_PT", "expected a file that `flashace export .*` has written, got .*model.pt: .*ELF"),
    "another library": ("MODEL", "other.so", "expected a file that `flashace export .*` has written, got other.so"),
    "a folder": ("MODEL", ".", "expected a file that `flashace export .*` has written, got [.]: "),
    "truncated": ("MODEL", "truncated.so", "has written, got truncated.so, which is damaged, or of an earlier version"),
    "a wrong bit": ("MODEL", "damaged.so", "has written, got damaged.so, which is damaged, or of an earlier version"),
    "another version": ("MODEL", "version.so", "of version 3, got version.so of version 7; export it again"),
    "neigh_modify exclude": ("run 0", "neigh_modify exclude type 1 2\nrun 0", "got neigh_modify exclude; leave it out"),
    "neigh_modify include": (
        "run 0",
        "group half id 1:4\natom_modify first half\nneigh_modify include half\nrun 0",
        "got those of one group; leave out neigh_modify include",
    ),
    "comm_modify group": (
        "run 0",
        "group half id 1:4\natom_modify first half\ncomm_modify group half\nrun 0",
        "got those of one group; leave out comm_modify group",
    ),
    "atoms on top of each other": ("run 0", f"{ON_TOP}run 0", "got NaN or infinity for atom"),
    "bonds": ("atom_style atomic", "atom_style bond", "write `special_bonds lj/coul 1 1 1`"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_named(exported, lammps, model_file, tmp_path, name):
    right, wrong, message = BAD[name]
    text = (setup(supercell(1), Path("MODEL"), tmp_path / "bad") + "run 0\n").replace(right, wrong)
    if name == "bonds":
        with_molecules = re.sub(r"(?m)^(\d+) (\d) (\S+) (\S+ \S+)$", r"\1 1 \2 \3 \4", (tmp_path / "bad").read_text())
        (tmp_path / "bad").write_text(with_molecules.replace("# atomic", "# bond"))
    for library, source in {"other.so": "", "version.so": "long flashace_model[9] = {7};"}.items():
        if library in text:
            subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", tmp_path / library], input=source, text=True, check=True)
            with (tmp_path / library).open("ab") as file:
                file.write(checksum((tmp_path / library).read_bytes()))
    data = bytearray(exported.read_bytes())
    if "truncated.so" in text:
        (tmp_path / "truncated.so").write_bytes(data[: len(data) // 2])
    if "damaged.so" in text:
        data[len(data) // 2] ^= 1
        (tmp_path / "damaged.so").write_bytes(data)
    ranks = 1 if "NaN" in message else 2  # a process that stops the others from within a step may be faster than their output
    done = lammps(text.replace("MODEL_PT", str(model_file)).replace("MODEL", str(exported)), ranks, ok=False)
    assert re.search(message, " ".join((done.stdout + done.stderr).split())), done.stdout[-1500:] + done.stderr[-1500:]


def test_a_type_with_the_mass_of_another_element_is_pointed_out(exported, lammps):
    """Isotopes pass; the order of the elements is shown, once for each pair_coeff."""
    box = "units metal\nregion box block 0 9 0 9 0 9\ncreate_box 2 box\npair_style flashace\n"
    right = f"mass 1 14.003\nmass 2 28.085\npair_coeff * * {exported} C Si\nrun 0\nrun 0\n"
    wrong = f"pair_coeff * * {exported} Si C\nrun 0\n"
    said = " ".join(lammps(box + right + wrong).stdout.split())
    assert said.count("pair_style flashace: type 1 is C (mass 14.003), type 2 is Si (mass 28.085)") == 1
    assert said.count("WARNING: pair_style flashace") == 1
    assert (
        "type 1 is Si (mass 14.003), type 2 is C (mass 28.085) WARNING: pair_style flashace: expected a mass near 28.085 for type 1" in said
    )
    assert "which pair_coeff says is Si, got 14.003; a mass near 12.011 for type 2, which pair_coeff says is C, got 28.085; give" in said


def test_masses_of_the_elements():
    table = re.findall(r'\{"(\w+)", ([\d.]+)\}', SOURCE.read_text())
    assert [symbol for symbol, _ in table] == chemical_symbols[1:]
    np.testing.assert_allclose([float(mass) for _, mass in table], atomic_masses_iupac2016[1:], rtol=1e-3)


def for_lammps(atoms: Atoms) -> Atoms:
    """The structure, turned so that LAMMPS takes its cell: first vector along x, second in the plane of x and y."""
    atoms = atoms.copy()
    atoms.cell = atoms.cell.complete()
    box, _ = atoms.cell.standard_form()
    atoms.set_cell(box, scale_atoms=True)
    return atoms


def read_data(atoms: Atoms, path: Path) -> str:
    """Writes the atoms, as `for_lammps` gives them, to path; the commands that read them."""
    low, high = np.zeros(3), np.diag(atoms.cell).copy()
    open_ = ~atoms.pbc
    low[open_], high[open_] = atoms.positions.min(0)[open_] - 5, atoms.positions.max(0)[open_] + 5
    lines = ["from ASE", "", f"{len(atoms)} atoms", f"{len(TYPES)} atom types"]
    lines += [f"{a!r} {b!r} {axis}lo {axis}hi" for a, b, axis in zip(low.tolist(), high.tolist(), "xyz", strict=True)]
    cell = atoms.cell.array
    if np.any(tilts := [cell[1, 0], cell[2, 0], cell[2, 1]]):
        lines.append(" ".join(map(repr, map(float, tilts))) + " xy xz yz")
    lines += ["", "Masses", "", *(f"{t} {atomic_masses[atomic_numbers[symbol]]}" for t, symbol in enumerate(TYPES, 1))]
    lines += ["", "Atoms # atomic", ""]
    for i, (symbol, x) in enumerate(zip(atoms.symbols, atoms.positions.tolist(), strict=True), 1):
        lines.append(f"{i} {TYPES.index(symbol) + 1} {x[0]!r} {x[1]!r} {x[2]!r}")
    path.write_text("\n".join(lines) + "\n")
    open_boundary = "s" if len(atoms) > 1 and not atoms.pbc.any() else "f"  # LAMMPS does not shrink a box to one point
    boundary = " ".join("p" if periodic else open_boundary for periodic in atoms.pbc)
    return f"units metal\natom_style atomic\nboundary {boundary}\nread_data {path}\n"


def setup(atoms: Atoms, model: Path, data: Path, every: int = 1) -> str:
    """Commands up to the first `run`: the structure, the model, and everything written to `data` with .dump and .log for its ending."""
    return read_data(atoms, data) + f"pair_style flashace\npair_coeff * * {model} {' '.join(TYPES)}\n" + outputs(data, every)


def outputs(data: Path, every: int = 1) -> str:
    columns = "id type x y z fx fy fz c_e c_s[1] c_s[2] c_s[3] c_s[6] c_s[5] c_s[4]"
    return (
        "compute e all pe/atom\ncompute s all stress/atom NULL pair\ncompute w all pressure NULL pair\n"
        f"dump d all custom {every} {data}.dump {columns}\ndump_modify d sort id format float %.17g\n"
        f"thermo_style custom step {' '.join(THERMO)}\nthermo {every}\nthermo_modify format float %.17g\nlog {data}.log\n"
    )


def frames(atoms: Atoms, data: Path) -> list[Frame]:
    """What `outputs` wrote, one for each step."""
    row = re.compile(rf"^ *(\d+)((?: +[-+.e\d]+){{{len(THERMO)}}}) *$", re.MULTILINE)
    thermo = {int(step): list(map(float, numbers.split())) for step, numbers in row.findall(Path(f"{data}.log").read_text())}
    found = []
    for text in Path(f"{data}.dump").read_text().split("ITEM: TIMESTEP\n")[1:]:
        energy, total, *pressures = thermo[int(text.split(maxsplit=1)[0])]
        head, rows = text.split("ITEM: ATOMS", 1)
        columns = np.array([row.split() for row in rows.splitlines()[1:]], dtype=float)
        here = Atoms(atoms.symbols, columns[:, 2:5], cell=_cell(head, atoms), pbc=atoms.pbc)
        found.append(Frame(here, energy, total, columns[:, 8], columns[:, 5:8], -BAR * np.array(pressures), BAR * columns[:, 9:15]))
    return found


def _cell(head: str, atoms: Atoms) -> np.ndarray:
    """Of a dump, where the bounds are those of a box around the tilted one."""
    title, *rows = head[head.index("ITEM: BOX BOUNDS") :].splitlines()
    bounds = np.array([row.split() for row in rows], dtype=float)
    xy, xz, yz = bounds[:, 2] if "xy xz yz" in title else np.zeros(3)
    lengths = bounds[:, 1] - bounds[:, 0]
    lengths[0] -= max(0, xy, xz, xy + xz) - min(0, xy, xz, xy + xz)
    lengths[1] -= max(0, yz) - min(0, yz)
    cell = np.array([[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]])
    cell[~atoms.pbc] = atoms.cell.array[~atoms.pbc]
    return cell


def assert_is_ase(frame: Frame, calculator: FlashACE, name: str = "") -> None:
    """Energies, forces and stresses are those of the calculator on the same positions."""
    atoms = frame.atoms
    calculator.calculate(atoms)
    expected = {name: calculator.results[name] for name in ("energies", "forces")}
    found = {"energies": frame.energies, "forces": frame.forces}
    if atoms.cell.rank == 3:
        expected["stresses"], found["stresses"] = calculator.get_property("stresses", atoms) * atoms.get_volume(), frame.stresses
    if atoms.pbc.all():
        expected["stress"], found["stress"] = calculator.results["stress"], frame.stress
    scale = np.abs(expected["forces"]).max() + 1e-3
    assert abs(frame.energy - calculator.results["energy"]) < TOLERANCE * abs(frame.energy), name
    for what, value in expected.items():
        np.testing.assert_allclose(found[what], value, rtol=TOLERANCE, atol=100 * TOLERANCE * scale, err_msg=f"{what} of {name}")
