"""Structures in, labels out: each once, none lost, those that cannot be had put aside."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from flashace.data.frames import read_labelled
from flashace.data.shards import convert
from flashace.errors import FlashACEError
from flashace.teach.labelling import key_of, label
from flashace.teach.teachers import Teacher
from flashace.teach.workers import Workers


def coppers(number: int, first: int = 0) -> list[Atoms]:
    frames = []
    for i in range(first, first + number):
        atoms = bulk("Cu")
        atoms.rattle(0.1, seed=i)
        atoms.info["config_type"] = "hot" if i % 2 else "cold"
        frames.append(atoms)
    return frames


def emt() -> Workers:
    return Workers(Teacher("emt"))


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_labels_are_those_of_the_teacher_and_nothing_else_stays() -> None:
    frames = coppers(3)
    for atoms in frames:
        atoms.info |= {"REF_energy": 7.0, "name": "x", "energy_of_somebody": 5.0}
        atoms.arrays["REF_forces"] = np.ones((1, 3))
        atoms.set_initial_charges([1.0])
        atoms.calc = SinglePointCalculator(atoms, energy=9.0, forces=np.ones((1, 3)))
    write("in.traj", frames)
    summary = label(["in.traj"], emt(), "out.extxyz")
    assert (summary.frames, summary.had_labels, summary.charged, summary.labelled) == (3, 3, 3, 3)
    found, labels = read_labelled("out.extxyz")
    assert set(found[0].atoms.info) == {"task", "task_frames", "config_type", "origin", "source"}
    assert set(found[0].atoms.arrays) == {"numbers", "positions"}
    assert labels.counts["energy"].used == {"calculator energy": 3}
    for frame in found:
        file, _, place = frame.atoms.info["origin"].rpartition("#")
        given = frames[int(place)]
        assert (file, frame.config_type, frame.atoms.info["source"]) == ("in.traj", given.info["config_type"], "emt")
        given.calc = EMT()
        assert frame.energy == pytest.approx(given.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(frame.forces, given.get_forces(), atol=1e-8)
        np.testing.assert_allclose(frame.stress, given.get_stress(voigt=False), atol=1e-12)


def test_a_second_run_makes_what_is_new_and_copies_are_labelled_once() -> None:
    write("a.extxyz", [*coppers(4), *coppers(2)])
    summary = label(["a.extxyz"], emt(), "out.extxyz")
    assert (summary.frames, summary.twice, summary.labelled) == (6, 2, 4)
    before = Path("out.extxyz").read_bytes()
    write("b.traj", coppers(3, first=3))  # one of them is in a.extxyz, with eight decimals
    plans = []
    summary = label(["a.extxyz", "b.traj"], emt(), "out.extxyz", plan=lambda summary, left: plans.append(left))
    assert (summary.twice, summary.already, summary.labelled, plans) == (3, 4, 2, [2])
    assert Path("out.extxyz").read_bytes().startswith(before)
    assert len({key_of(frame.atoms) for frame in read_labelled("out.extxyz")[0]}) == 6
    assert label(["b.traj"], Workers(Teacher("emt")), "out.extxyz").labelled == 0


def test_what_cannot_be_labelled_is_put_aside_with_its_reason() -> None:
    close = bulk("Cu", cubic=True)
    close.positions[0] += (1.2, 1.2, 0)
    broken = bulk("Cu")
    broken.positions[0, 0] = np.nan
    write("in.extxyz", [*coppers(2), bulk("Si"), close, broken])
    summary = label(["in.extxyz"], emt(), "out.extxyz", max_force=50.0)
    assert summary.labelled == 2
    assert dict(summary.aside) == {
        "NotImplementedError: No EMT-potential for Si": 1,
        "a force of … eV/Å is more than … (--max-force)": 1,
        "expected finite positions, got NaN or infinity": 1,
    }
    aside = read("out.failed.extxyz", ":")
    assert {len(atoms) for atoms in aside} == {1, 2, 4}
    assert any("361.1 eV/Å is more than 50" in atoms.info["reason"] for atoms in aside)
    again = label(["in.extxyz"], emt(), "out.extxyz", max_force=50.0)
    assert (again.already, again.aside_before, again.labelled, again.aside.total()) == (2, 3, 0, 0)
    Path("out.failed.extxyz").unlink()
    again = label(["in.extxyz"], emt(), "out.extxyz", max_force=500.0)
    assert (again.already, again.labelled, again.aside.total()) == (2, 1, 2)


def test_shards_are_structures_too() -> None:
    frames = coppers(2)
    for atoms in frames:
        atoms.calc = EMT()
        atoms.get_forces()
    write("in.extxyz", frames)
    convert(["in.extxyz"], "shards")
    assert label(["shards"], emt(), "out.extxyz").labelled == 2
    assert label(["in.extxyz"], emt(), "out.extxyz").already == 2


def test_another_teacher_and_another_name_are_refused() -> None:
    write("in.extxyz", coppers(1))
    label(["in.extxyz"], emt(), "out.extxyz")
    with pytest.raises(FlashACEError, match=r"expected labels of the teacher emt fixed_cutoff=true, got some of emt"):
        label(["in.extxyz"], Workers(Teacher("emt", ("fixed_cutoff=true",))), "out.extxyz")
    with pytest.raises(FlashACEError, match=r"ends in \.extxyz"):
        label(["in.extxyz"], emt(), "out.traj")


def test_the_key_is_that_of_the_structure_alone() -> None:
    atoms = coppers(1)[0]
    same = atoms.copy()
    same.info.clear()
    same.positions += 1e-12
    atoms.positions[0, 2], same.positions[0, 2] = 0.0, -0.0
    assert key_of(atoms) == key_of(same)
    others = [atoms.copy() for _ in range(4)]
    others[0].numbers[:] = 47
    others[1].positions[0, 0] += 1e-6
    others[2].pbc = (True, True, False)
    others[3].cell[0, 1] += 1e-6
    assert len({key_of(other) for other in (atoms, *others)}) == 5
