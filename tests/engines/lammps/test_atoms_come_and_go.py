"""pair_style flashace where LAMMPS adds, deletes, hides or renames atoms: their numbers are those of physics, energies those of ASE."""

import math
import re

import numpy as np
import pytest
from ase import Atoms

from flashace import FlashACE

E0 = {"C": -7.5, "Si": -5.25}  # of `model_file`
KT = 8.617343e-5 * 3000  # eV, with LAMMPS's constants
LAMBDA2 = 4.135667403e-3**2 / (2 * math.pi * 12.011 * 1.0364269e-4 * KT)  # square of carbon's thermal wavelength, Å²


def ideal_gas(mean, edge):
    """Chemical potential at which atoms without neighbours number `mean` in a box of this edge, and P(1)/P(0) is `mean`."""
    return E0["C"] + KT * math.log(mean * LAMBDA2**1.5 / edge**3)


def box(exported, edge):
    return (
        f"units metal\nregion box block 0 {edge} 0 {edge} 0 {edge}\ncreate_box 2 box\nmass 1 12.011\nmass 2 28.085\n"
        f"pair_style flashace\npair_coeff * * {exported} C Si\nneigh_modify delay 0 every 1\nneighbor {2 + edge / 10} nsq\n"
    )


def means(path):
    return np.loadtxt(path, ndmin=2)[:, 1]


def test_gcmc_has_the_ideal_gas(exported, lammps, tmp_path):
    """Of 0 or 1 atom there is one 3 times of 4; of any number, 3 on average. A trial deletion takes the energy of the atom away as well."""
    text = ""
    for name, edge, most in (("one", 60, "max 1"), ("many", 600, "")):
        text += box(exported, edge) + f"fix g all gcmc 1 20 0 1 12345 3000 {ideal_gas(3, edge)!r} 0.1 {most}\n"
        text += f"variable n equal count(all)\nfix n all ave/time 1 1000 1000 v_n file {name}.txt\n"
        text += "run 1000\nwrite_data now.data\nrun 1000\nclear\n"
    lammps(text)
    assert means(tmp_path / "one.txt") == pytest.approx([0.75, 0.75], abs=0.06)
    assert means(tmp_path / "many.txt") == pytest.approx([3.0, 3.0], abs=0.4)


def test_gcmc_on_two_processes(exported, lammps, tmp_path):
    """The same moves as on one."""
    text = box(exported, 60) + f"fix g all gcmc 1 4 0 1 12345 3000 {ideal_gas(3, 60)!r} 0.1\nvariable n equal count(all)\n"
    text += "fix n all ave/time 1 1 1 v_n file n.txt\nrun 6\n"
    found = []
    for ranks in (1, 2):
        lammps(text, ranks)
        found.append(means(tmp_path / "n.txt").tolist())
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


def test_insertions_and_swaps_weigh_reference_energies(exported, lammps, tmp_path):
    """fix widom in an empty box; and one atom that the chemical potentials make silicon 3 times of 4."""
    widom = "fix w all widom 1 5 1 12345 3000\nfix a all ave/time 1 1 1 f_w[1] file mu.txt\nrun 2\nrun 2\nclear\n"
    mu = E0["Si"] - E0["C"] + KT * math.log(3)
    swap = (
        f"create_atoms 1 single 30 30 30\nfix s all atom/swap 1 5 12345 3000 semi-grand yes types 1 2 mu 0.0 {mu!r}\n"
        "variable t atom type\ncompute t all reduce sum v_t\nfix a all ave/time 1 1000 1000 c_t file type.txt\nrun 1000\n"
    )
    lammps(box(exported, 60) + widom + box(exported, 60) + swap)
    assert means(tmp_path / "mu.txt")[1:] == pytest.approx(E0["C"], abs=1e-9)
    assert means(tmp_path / "type.txt") == pytest.approx(1.75, abs=0.06)


COMINGS_AND_GOINGS = {
    "deposit": "region in block 0 9 0 9 0 9 units box\nfix d all deposit 4 1 2 12345 region in near 0.9 units box\n",
    "evaporate": "region in block 0 9 0 9 0 9 units box\nfix e all evaporate 2 1 in 12345\n",
    "swap": "fix s all atom/swap 1 5 12345 30000 ke no types 1 2\n",
    "gcmc": "fix g all gcmc 2 10 10 1 12345 3000 -7.0 0.3\n",
    "delete_atoms": "run 2\ndelete_atoms random fraction 0.3 yes all NULL 12345\n",
    "exclusion of nobody": "group none empty\nneigh_modify exclude group none all\n",
}


def test_energies_and_forces_stay_those_of_ase(exported, lammps, model_file, tmp_path):
    """In dynamics, at every step, while atoms come, go and change."""
    text = ""
    for name, commands in COMINGS_AND_GOINGS.items():
        text += box(exported, 9).replace("neighbor 2.9 nsq", "neighbor 0.5 bin") + (
            "lattice fcc 4.5 origin 0.25 0.25 0.25\ncreate_atoms 1 box basis 3 2 basis 4 2\ndisplace_atoms all random 0.1 0.1 0.1 12345\n"
            "fix nve all nve\ntimestep 0.0005\nthermo 1\nthermo_style custom step atoms pe\nthermo_modify format float %.17g\n"
            f'dump d all custom 1 "{name}.dump" type x y z fx fy fz\ndump_modify d format float %.17g\nlog "{name}.log"\n'
        )
        text += commands + "run 8\nclear\n"
    lammps(text)
    calculator = FlashACE(model_file, device="cpu", dtype="float64", kernel="compiled")
    for name in COMINGS_AND_GOINGS:
        rows = re.findall(r"^ +(\d+) +\d+ +(\S+) *$", (tmp_path / f"{name}.log").read_text(), re.MULTILINE)
        energies = {int(step): float(energy) for step, energy in reversed(rows)}  # of two runs, as the dump: the first that has the step
        compositions = set()
        for frame in (tmp_path / f"{name}.dump").read_text().split("ITEM: TIMESTEP\n")[1:]:
            values = np.array([row.split() for row in frame.split("ITEM: ATOMS")[1].splitlines()[1:]], dtype=float)
            compositions.add(tuple(sorted(values[:, 0])) if name != "swap" else tuple(values[:, 0]))
            atoms = Atoms(np.where(values[:, 0] == 1, "C", "Si"), values[:, 1:4], cell=[9, 9, 9], pbc=True)
            calculator.calculate(atoms)
            assert energies[int(frame.split(maxsplit=1)[0])] == pytest.approx(calculator.results["energy"], rel=1e-11), name
            np.testing.assert_allclose(values[:, 4:], calculator.results["forces"], rtol=1e-9, atol=1e-9, err_msg=name)
        assert (len(compositions) > 1) == (name != "exclusion of nobody"), name


HIDDEN = {
    "a group from all": ("region r block 0 30 0 60 0 60\ngroup g region r\nneigh_modify exclude group g all\n", "got neigh_modify exclude"),
    "a group that fills": (
        "group g empty\nneigh_modify exclude group g all\nregion r block 0 60 0 60 0 60\nfix d g deposit 1 1 2 12345 region r\n",
        "got atom 2 in a group of neigh_modify exclude; leave that out",
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_atoms_are_not_hidden_from_their_neighbors(exported, lammps, name):
    commands, message = HIDDEN[name]
    done = lammps(box(exported, 60) + "create_atoms 1 single 20 20 20\n" + commands + "run 5\n", ok=False)
    assert message in " ".join((done.stdout + done.stderr).split())


def test_a_type_of_others_does_not_become_one_of_ours(exported, lammps):
    """LAMMPS makes the lists of a hybrid style by types."""
    hybrid = box(exported, 60).replace("pair_style flashace", "pair_style hybrid flashace zero 4.0")
    hybrid = hybrid.replace(f"* * {exported} C Si", f"* * flashace {exported} C NULL\npair_coeff * 2 zero")
    two = "create_atoms 1 single 20 20 20\ncreate_atoms 2 single 21 21 21\nrun 1\nset type 1 type 2\nrun 1 pre no\n"
    done = lammps(hybrid + two, ok=False)
    assert "expected the atoms that the neighbor list was made for, got others" in " ".join((done.stdout + done.stderr).split())
