import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa

from flashace.data.frames import LabelKeys, content_hash, isolated_atom_energies, read_labelled
from flashace.data.origin import Origin
from flashace.errors import FlashACEError

STRESS = np.array([[0.10, 0.04, 0.05], [0.04, -0.20, 0.06], [0.05, 0.06, 0.30]])  # eV/Å³
FORCES = np.array([[0.1, 0.2, -0.3], [-0.1, 0.4, 0.5]])  # eV/Å


def crystal(info=None, arrays=None, **results):
    """Two silicon atoms with the given info, arrays and calculator results."""
    atoms = bulk("Si", a=5.43)
    atoms.info.update(info or {})
    for name, values in (arrays or {}).items():
        atoms.new_array(name, values)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def saved(tmp_path):
    """Writes frames to a file whose suffix says the format, and returns its path."""

    def save(*frames, suffix="traj"):
        path = tmp_path / f"data.{suffix}"
        write(path, list(frames))
        return path

    return save


def fails(message, call, *args, **kwargs):
    with pytest.raises(FlashACEError, match=message):
        call(*args, **kwargs)


# Where labels come from


@pytest.mark.parametrize("suffix", ["extxyz", "xyz", "traj", "db", "json"])
def test_every_format_gives_the_same_labels(saved, suffix):
    full = crystal(energy=-5.0, forces=FORCES, stress=full_3x3_to_voigt_6_stress(STRESS))
    frames, summary = read_labelled(saved(full, crystal(energy=-4.0, forces=-FORCES), suffix=suffix))
    assert [frame.energy for frame in frames] == [-5.0, -4.0]
    np.testing.assert_allclose(frames[0].forces, FORCES, atol=1e-8)
    np.testing.assert_allclose(frames[0].stress, STRESS, atol=1e-15)
    assert frames[1].stress is None
    assert summary.frames == 2
    assert summary.counts["energy"].used == {"calculator energy": 2}
    assert summary.counts["stress"].used == {"calculator stress": 1}
    assert Path(str(frames[1].origin)).name == f"data.{suffix}#1"


def test_reference_keys_come_before_the_calculator(saved):
    info = {"REF_energy": -7, "REF_stress": STRESS}  # a whole number reads as an integer
    path = saved(crystal(info, {"REF_forces": 2 * FORCES}, energy=-5.0, forces=FORCES), suffix="extxyz")
    (frame,), summary = read_labelled(path)
    assert frame.energy == -7.0
    np.testing.assert_allclose(frame.forces, 2 * FORCES)
    np.testing.assert_allclose(frame.stress, STRESS)
    assert (summary.counts["energy"].used, summary.counts["forces"].used) == ({"REF_energy": 1}, {"REF_forces": 1})


def test_explicit_keys_come_first(saved):
    info = {"dft": -9.0, "REF_energy": -7.0, "pressure_tensor": STRESS.ravel()}
    path = saved(crystal(info, {"pull": 3 * FORCES}, energy=-5.0, forces=FORCES), suffix="extxyz")
    (frame,), summary = read_labelled(path, LabelKeys(energy="dft", forces="pull", stress="pressure_tensor"))
    assert frame.energy == -9.0
    np.testing.assert_allclose(frame.forces, 3 * FORCES, atol=1e-8)
    np.testing.assert_array_equal(frame.stress, STRESS)
    assert summary.counts["stress"].used == {"pressure_tensor": 1}
    (frame,), summary = read_labelled(path, LabelKeys(energy="energy"))
    assert frame.energy == -5.0
    assert summary.counts["energy"].used == {"calculator energy": 1}


def test_explicit_key_in_info_wins_over_a_result_of_that_name(saved):
    (frame,), _ = read_labelled(saved(crystal({"energy": -9.0}, energy=-5.0)), LabelKeys(energy="energy"), ["energy"])
    assert frame.energy == -9.0


def test_free_energy_belongs_to_forces(saved):
    path = saved(
        crystal(energy=-5.0, free_energy=-5.5, forces=FORCES),
        crystal(energy=-4.0, free_energy=-4.5),
        crystal(energy=-3.0, forces=FORCES),
        crystal(free_energy=-2.5),
    )
    frames, summary = read_labelled(path)
    assert [frame.energy for frame in frames] == [-5.5, -4.0, -3.0, -2.5]
    assert summary.counts["energy"].used == {"calculator free_energy": 2, "calculator energy": 2}
    frames, _ = read_labelled(path, LabelKeys(energy="energy"))
    assert [frame.energy for frame in frames] == [-5.0, -4.0, -3.0, None]


def test_a_label_under_two_names_in_one_file_is_an_error_unless_one_is_named(saved):
    path = saved(crystal({"REF_energy": -7.0}, forces=FORCES), crystal(energy=-5.0), crystal())
    message = "data.traj: expected energy under one name in this file, got REF_energy in 1 frames and only .* in 1; .*--energy-key"
    fails(message, read_labelled, path)
    frames, summary = read_labelled(path, LabelKeys(energy="REF_energy"))
    assert [frame.energy for frame in frames] == [-7.0, None, None]
    assert summary.counts["energy"].used == {"REF_energy": 1}
    assert summary.counts["energy"].ignored == {"calculator energy": 1}
    assert [frame.forces is None for frame in frames] == [False, True, True]


def test_a_check_hears_of_each_label_that_would_be_lost(saved):
    complaints = []
    path = saved(crystal({"REF_energy": -7.0}), crystal(energy=-5.0), crystal(energy=-4.0))
    frames, _ = read_labelled(path, required=(), complain=complaints.append)
    assert [frame.energy for frame in frames] == [-7.0, None, None]
    assert [complaint.origin.index for complaint in complaints] == [1, 2]
    assert "expected energy under one name in this file, REF_energy, got calculator energy; rename it" in str(complaints[0])


def test_each_file_has_keys_of_its_own(tmp_path):
    """In 154 of 199 frames of a user the labels were lost since one file had other names."""
    write(tmp_path / "a.extxyz", [crystal({"REF_energy": -7.0}, {"REF_forces": FORCES})])
    write(tmp_path / "b.extxyz", [crystal(energy=-5.0, forces=2 * FORCES)] * 3)
    paths = [tmp_path / "a.extxyz", tmp_path / "b.extxyz"]
    frames, summary = read_labelled(paths)
    assert [frame.energy for frame in frames] == [-7.0, -5.0, -5.0, -5.0]
    assert all(frame.forces is not None for frame in frames)
    assert summary.counts["energy"].used == {"REF_energy": 1, "calculator energy": 3}
    assert (summary.counts["energy"].ignored, summary.counts["forces"].ignored) == ({}, {})
    frames, summary = read_labelled(paths, LabelKeys(energy="REF_energy"))
    assert [frame.energy for frame in frames] == [-7.0, None, None, None]
    assert summary.counts["energy"].ignored == {"calculator energy": 3}


@pytest.mark.parametrize("shape", [(6,), (9,), (3, 3)])
@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_reference_stress_of_every_shape(saved, shape, suffix):
    numbers = full_3x3_to_voigt_6_stress(STRESS) if shape == (6,) else STRESS.reshape(shape)
    path = saved(crystal({"REF_stress": numbers}, energy=-5.0, forces=FORCES), suffix=suffix)
    np.testing.assert_allclose(read_labelled(path)[0][0].stress, STRESS, atol=1e-15)


@pytest.mark.parametrize("key", ["REF_virial", "REF_virials", "virial", "virials"])
@pytest.mark.parametrize("shape", [(6,), (9,), (3, 3)])
def test_virials_become_stress(saved, key, shape):
    virial = -STRESS * crystal().get_volume()
    numbers = full_3x3_to_voigt_6_stress(virial) if shape == (6,) else virial.reshape(shape)
    (frame,), summary = read_labelled(saved(crystal({key: numbers}, energy=-5.0, forces=FORCES)))
    np.testing.assert_allclose(frame.stress, STRESS, atol=1e-15)
    assert summary.counts["stress"].used == {key: 1}


def test_explicit_virial_key_is_converted(saved):
    path = saved(crystal({"dft_Virial": -STRESS * crystal().get_volume()}, energy=-5.0, forces=FORCES))
    np.testing.assert_allclose(read_labelled(path, LabelKeys(stress="dft_Virial"))[0][0].stress, STRESS, atol=1e-15)


def test_stress_and_virials_that_agree_are_one_label(saved):
    info = {"REF_stress": STRESS, "REF_virial": -STRESS * crystal().get_volume()}
    (frame,), summary = read_labelled(saved(crystal(info, energy=-5.0, forces=FORCES)))
    np.testing.assert_array_equal(frame.stress, STRESS)
    assert summary.counts["stress"].used == {"REF_stress": 1}


@pytest.mark.parametrize("suffix", ["traj", "db", "extxyz"])
def test_constraints_are_not_applied_to_forces(saved, suffix):
    atoms = crystal(energy=-5.0, forces=FORCES)
    atoms.set_constraint(FixAtoms([0]))
    np.testing.assert_allclose(read_labelled(saved(atoms, suffix=suffix))[0][0].forces, FORCES, atol=1e-8)


def test_database_rows_keep_their_own_keys(tmp_path):
    with connect(tmp_path / "data.db") as rows:
        rows.write(crystal(), config_type="bulk", REF_energy=-7.0, data={"REF_forces": FORCES})
    (frame,), _ = read_labelled(tmp_path / "data.db")
    assert (frame.energy, frame.config_type) == (-7.0, "bulk")
    np.testing.assert_array_equal(frame.forces, FORCES)


def test_vasprun_gives_the_free_energy_and_the_sign_of_ase(tmp_path):
    cell = '<crystal><varray name="basis"><v>5 0 0</v><v>0 5 0</v><v>0 0 5</v></varray></crystal>'
    structure = f'{cell}<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>'
    energies = {"e_fr_energy": -10.5, "e_wo_entrp": -10.0, "e_0_energy": -10.2}
    energy = "".join(f'<i name="{name}">{value}</i>' for name, value in energies.items())
    (tmp_path / "vasprun.xml").write_text(
        '<modeling><kpoints><generation param="Gamma"/><varray name="kpointlist"><v>0 0 0</v></varray>'
        '<varray name="weights"><v>1</v></varray></kpoints><parameters/><atominfo><array name="atoms"><set>'
        "<rc><c>Si</c></rc><rc><c>Si</c></rc></set></array></atominfo>"
        f'<structure name="initialpos">{structure}<calculation><scstep><energy>{energy}</energy></scstep>'
        f'<structure>{structure}<varray name="forces"><v>0 0 1</v><v>0 0 -1</v></varray>'
        f'<varray name="stress"><v>10 0 0</v><v>0 20 0</v><v>0 0 30</v></varray><energy>{energy}</energy>'
        "</calculation></modeling>"
    )
    (frame,), summary = read_labelled(tmp_path / "vasprun.xml")
    assert frame.energy == -10.5
    np.testing.assert_array_equal(frame.forces, [[0, 0, 1], [0, 0, -1]])
    np.testing.assert_allclose(np.diag(frame.stress), -np.array([10, 20, 30]) * 0.1 * GPa)  # kbar of pressure
    assert summary.counts["energy"].used == {"calculator free_energy": 1}


def test_lattice_without_a_pbc_flag_is_periodic_and_several_files_are_one_set(tmp_path):
    header = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 config_type=300'
    text = f"1\n{header}\nH 0 0 0 0 0 1\n"
    (tmp_path / "a.xyz").write_text(text)
    (tmp_path / "b.xyz").write_text(text.replace("energy", "REF_energy"))
    frames, summary = read_labelled([tmp_path / "a.xyz", str(tmp_path / "b.xyz")])
    assert frames[0].atoms.pbc.all()
    assert frames[0].config_type == "300"
    assert [frame.energy for frame in frames] == [-1.5, -1.5]
    assert summary.counts["energy"].used == {"calculator energy": 1, "REF_energy": 1}
    assert frames[1].origin == Origin(str(tmp_path / "b.xyz"), 0)


# What is refused


def test_files_that_cannot_be_read(tmp_path):
    fails("nothing.xyz: expected a file of structures, found no such file", read_labelled, tmp_path / "nothing.xyz")
    (tmp_path / "cut.xyz").write_text("3\nenergy=1\nH 0 0 0\n")
    fails("cut.xyz#0, line 4: expected 3 atoms in frame 0, got 1 before the end", read_labelled, tmp_path / "cut.xyz")
    (tmp_path / "prose.dat").write_text("no structures here")
    fails("prose.dat: expected a file that ase.io.read can read", read_labelled, tmp_path / "prose.dat")
    fails("expected at least one frame, got none", read_labelled, [])


def test_an_explicit_key_that_no_frame_has(saved):
    path = saved(crystal({"dft_energy": -5.0}, {"dft_forces": FORCES}, energy=-5.0, forces=FORCES), suffix="xyz")
    message = (
        "expected energy under the key 'dft_enrgy', but no frame has it; the keys that exist are info: dft_energy, "
        "arrays: dft_forces, calculator results: energy, forces; correct --energy-key or leave it out"
    )
    fails(message, read_labelled, path, LabelKeys(energy="dft_enrgy"))
    fails("expected stress under the key 'x'.*--stress-key", read_labelled, path, LabelKeys(stress="x"))


def test_a_required_label_that_no_frame_has(saved):
    path = saved(crystal({"E": -5.0}), crystal({"E": -5.0}))
    message = (
        "data.traj: expected energy in at least one of 2 frames, found none; looked for REF_energy, calculator "
        "free_energy, calculator energy; the keys that exist are info: E, arrays: none, calculator results: none; "
        "name the right key with --energy-key"
    )
    fails(message, read_labelled, path)
    fails("expected forces in at least one.*--forces-key", read_labelled, path, LabelKeys(energy="E"))
    frames, summary = read_labelled(path, LabelKeys(energy="E"), required=["energy"])
    assert frames[0].forces is None
    assert summary.counts["forces"].used == {}


def test_frames_that_are_no_structures(saved):
    broken = crystal(energy=-5.0, forces=FORCES)
    broken.positions[0, 0] = np.nan
    fails(r"data.traj#1: expected finite positions", read_labelled, saved(crystal(energy=-5.0, forces=FORCES), broken))
    fails(r"data.traj#0: expected at least one atom", read_labelled, saved(Atoms()))


@pytest.mark.parametrize(
    ("info", "results", "message"),
    [
        ({}, {"energy": np.nan, "forces": FORCES}, "calculator energy: expected finite numbers, got NaN or infinity"),
        ({}, {"energy": -5.0, "forces": FORCES * np.inf}, "calculator forces: expected finite numbers"),
        ({"REF_energy": "unknown"}, {"forces": FORCES}, "REF_energy: expected numbers, got 'unknown'"),
        ({"REF_energy": [1.0, 2.0]}, {"forces": FORCES}, r"REF_energy: expected one number, got shape \(2,\)"),
        ({"REF_forces": FORCES[:1]}, {"energy": -5.0}, r"REF_forces: expected shape \(2, 3\), got shape \(1, 3\)"),
        ({"REF_stress": [1.0, 2.0]}, {"energy": -5.0, "forces": FORCES}, r"REF_stress: expected 6 numbers .*got shape"),
        ({"REF_stress": np.arange(9.0)}, {"energy": -5.0, "forces": FORCES}, "REF_stress: expected a symmetric tensor"),
        (
            {"REF_stress": STRESS, "REF_virial": STRESS * 40},  # the wrong sign
            {"energy": -5.0, "forces": FORCES},
            "expected REF_stress and REF_virial to agree as stress = -virial / volume, got xx, yy, zz = .*--stress-key",
        ),
    ],
)
def test_labels_that_cannot_be_right(saved, info, results, message):
    fails(r"data.traj#1: " + message, read_labelled, saved(crystal(), crystal(info, **results)))


def test_a_stress_needs_a_cell(saved):
    atoms = Atoms("Si2", [[0, 0, 0], [2, 0, 0]], cell=[4, 4, 0], pbc=[True, True, False], info={"REF_stress": STRESS})
    atoms.calc = SinglePointCalculator(atoms, energy=-5.0, forces=FORCES)
    fails("data.traj#0: REF_stress: a stress needs a cell with three vectors, got 2", read_labelled, saved(atoms))


@pytest.mark.parametrize("nothing", [0.0, np.nan])
@pytest.mark.parametrize("name", ["REF_stress", "REF_virial", "stress"])
@pytest.mark.parametrize("cell", [None, [9.0, 9.0, 9.0]])
def test_a_stress_of_zeros_or_nan_of_a_molecule_is_none(saved, nothing, name, cell):
    """As other programs write molecules beside crystals; the crystals keep theirs, and a true stress without a cell stays an error."""
    molecule = Atoms("Si2", [[0, 0, 0], [2, 0, 0]], cell=cell)
    if name == "stress":
        molecule.calc = SinglePointCalculator(molecule, energy=-5.0, forces=FORCES, stress=np.full(6, nothing))
        bulky = crystal(energy=-5.0, forces=FORCES, stress=full_3x3_to_voigt_6_stress(STRESS))
    else:
        molecule.info[name] = np.full(9, nothing)
        molecule.calc = SinglePointCalculator(molecule, energy=-5.0, forces=FORCES)
        bulky = crystal({name: STRESS}, energy=-5.0, forces=FORCES)
    frames, summary = read_labelled(saved(molecule, bulky))
    assert [frame.stress is None for frame in frames] == [True, False]
    assert sum(summary.counts["stress"].used.values()) == 1


def test_a_crystal_may_not_carry_nan(saved):
    fails("expected finite numbers", read_labelled, saved(crystal({"REF_stress": np.full(9, np.nan)}, energy=-5.0, forces=FORCES)))


def test_one_number_per_atom_is_no_label_of_the_frame(saved):
    """A `virial` or `stress` of each atom, as some codes write it."""
    columns = {"virial": np.ones((2, 9)), "REF_energy": np.ones(2), "REF_stress": np.ones((2, 6))}
    (frame,), summary = read_labelled(saved(crystal({}, columns, energy=-5.0, forces=FORCES), suffix="extxyz"))
    assert (frame.energy, frame.stress) == (-5.0, None)
    assert summary.unused == {"virial of each atom": 1}


def test_none_as_a_key_leaves_a_label_out(saved):
    path = saved(crystal({"REF_stress": [1.0, 2.0]}, energy=-5.0, forces=FORCES))
    fails("expected 6 numbers", read_labelled, path)
    (frame,), summary = read_labelled(path, LabelKeys(stress="none"))
    assert frame.stress is None
    assert summary.counts["stress"].ignored == {"REF_stress": 1}
    fails("forces is needed here, but --forces-key none leaves it out", read_labelled, path, LabelKeys(forces="none"))


def test_weights_of_frames_are_named_since_nothing_reads_them(saved):
    names = ["config_weight", "config_forces_weight", "weight"]
    frames = [crystal({name: 0.5}, energy=-5.0, forces=FORCES) for name in names]
    plain = crystal({"config_weight": 1.0, "molecular_weight": 30.0}, energy=-5.0, forces=FORCES)  # changes nothing; no weight
    assert read_labelled(saved(*frames, plain))[1].unused == dict.fromkeys(names, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": [14, 200]}, "expected atomic numbers from 1 to 118, got 200"),
        ({"numbers": [0, 14]}, r"expected atomic numbers from 1 to 118, got 0 \(the symbol X\)"),
        ({"cell": np.eye(3) * 1e300}, r"expected cell of at most 1e\+09 Å, got 1e\+300"),
        ({"cell": np.eye(3) * 1e-200}, "expected lattice vectors that span a cell, .* flatter than 0.001 Å"),
        ({"cell": [[4, 0, 0], [0, 4, 0], [4, 4, 0]]}, "expected lattice vectors that span a cell"),
        ({"positions": [[0, 0, 0], [1e12, 0, 0]]}, r"expected positions of at most 1e\+09 Å, got 1e\+12"),
    ],
)
def test_what_no_structure_can_have(saved, change, message):
    broken = crystal({"REF_energy": -5.0})
    for name, value in change.items():
        setattr(broken, name, value)
    fails(f"data.traj#1: {message}", read_labelled, saved(crystal(), broken), required=["energy"])
    complaints = []
    assert len(read_labelled(saved(crystal(), broken), required=(), complain=complaints.append)[0]) == 1
    assert len(complaints) == 1


@pytest.mark.parametrize("info", [{"REF_energy": 1e300}, {"REF_energy": -1e16}])
def test_labels_beyond_all_bounds(saved, info):
    fails(r"REF_energy: expected numbers up to 1e\+15", read_labelled, saved(crystal(info)), required=["energy"])


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.diag([3.0, 3.0, 2e4]), np.diag([4.0, 0, 0]), [[4, 0, 0], [40, 4, 0], [0, 40, 4]]])
def test_cells_may_be_flat_or_long_or_skewed(saved, cell):
    atoms = crystal({"REF_energy": -5.0})
    atoms.set_cell(cell)
    assert len(read_labelled(saved(atoms), required=["energy"])[0]) == 1


# Isolated atoms, split, hash


def atom(element, energy, config_type="IsolatedAtom"):
    atoms = Atoms(element, info={"config_type": config_type})
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_isolated_atoms_are_taken_out(saved):
    molecule = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    path = saved(atom("H", -13.5), molecule, atom("O", -2000.0, "isolated_atom"), atom("H", -13.500001), atom("H", -1.0, "other"))
    energies, rest = isolated_atom_energies(read_labelled(path, required=["energy"])[0])
    assert energies == {"H": -13.5, "O": -2000.0}
    assert [Path(str(frame.origin)).name for frame in rest] == ["data.traj#1", "data.traj#4"]
    assert isolated_atom_energies(rest) == ({}, rest)


def test_isolated_atoms_that_contradict(saved):
    frames, _ = read_labelled(saved(atom("H", -13.5), atom("H", -13.6), atom("O", None)), required=["energy"])
    message = r"isolated H: expected one energy, got -13.5 eV in .*data.traj#0 and -13.6 eV in .*data.traj#1"
    fails(message, isolated_atom_energies, frames)
    fails(
        "data.traj#2: .*expected one atom and its energy, got 1 atoms and energy None",
        isolated_atom_energies,
        frames[2:],
    )
    several = replace(frames[0], atoms=Atoms("H2"))
    fails("expected one atom and its energy, got 2 atoms", isolated_atom_energies, [several])


@pytest.fixture
def ten(saved):
    return read_labelled(saved(*[crystal(energy=float(i), forces=FORCES) for i in range(10)]))[0]


def test_content_hash_feels_structures_and_labels_only(ten):
    first = content_hash(ten)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert content_hash([replace(frame, origin=Origin("elsewhere", 0), config_type="x") for frame in ten]) == first
    moved = ten[0].atoms.copy()
    moved.positions[0, 0] += 1e-9
    unbound = ten[0].atoms.copy()
    unbound.pbc = False
    for change in (
        {"energy": 0.5},
        {"energy": None},
        {"forces": None},
        {"stress": STRESS},
        {"atoms": moved},
        {"atoms": unbound},
    ):
        assert content_hash([replace(ten[0], **change), *ten[1:]]) != first
    assert content_hash(ten[::-1]) != first
