"""A file of labels, cut off at every byte, in wrong hands, and written to by two."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from flashace.data.frames import read_labelled
from flashace.errors import FlashACEError
from flashace.teach.journal import Journal
from flashace.teach.task import Failure, labelled


def frame(seed: int = 0, **info: object) -> Atoms:
    atoms = bulk("Cu")
    atoms.rattle(0.1, seed=seed)
    return labelled(atoms, EMT(), **info)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.extxyz"


def test_what_was_appended_is_there_and_done(path: Path) -> None:
    first, second = [frame(0, config_type="hot"), frame(1)], [frame(2)]
    with Journal(path) as journal:
        journal.append("a", first)
        journal.append("b", second)
        assert journal.done == {"a", "b"}
    frames, _ = read_labelled(path)
    assert [f.atoms.info["task"] for f in frames] == ["a", "a", "b"]
    assert frames[0].config_type == "hot"
    with Journal(path) as journal:
        assert journal.done == {"a", "b"}
        journal.append("c", [frame(3)])
    assert len(read_labelled(path)[0]) == 4


def test_labels_keep_their_digits(path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    atoms.positions += rng.normal(size=(9, 3))
    atoms.cell, atoms.pbc = rng.normal(size=(3, 3)) * 9, True
    forces, stress, energy = rng.normal(size=(9, 3)) * 1e4, rng.normal(size=6), -123456.78901234567
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
    with Journal(path) as journal:
        journal.append("a", [atoms])
    (read,), _ = read_labelled(path)
    assert read.energy == energy
    assert read.forces is not None
    assert read.stress is not None
    np.testing.assert_allclose(read.forces, forces, rtol=0, atol=1e-8)
    np.testing.assert_allclose(read.atoms.positions, atoms.positions, rtol=0, atol=1e-8)
    assert (read.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] == stress).all()
    assert (read.atoms.cell.array == atoms.cell.array).all()


def test_cut_off_anywhere_it_has_the_whole_tasks_and_goes_on(path: Path) -> None:
    groups = {"a": [frame(0)], "b": [frame(1), frame(2), frame(3)], "c": [frame(4)]}
    ends = {}
    with Journal(path) as journal:
        for key, frames in groups.items():
            journal.append(key, frames)
            ends[key] = path.stat().st_size
    whole = path.read_bytes()
    for cut in {*range(0, len(whole), 37), *(end + i for end in (0, *ends.values()) for i in range(-3, 4))} & {*range(len(whole))}:
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert journal.done == {key for key, end in ends.items() if end <= cut}, cut
            assert path.stat().st_size == max([0, *(end for end in ends.values() if end <= cut)])
            for key, frames in groups.items():
                if key not in journal.done:
                    journal.append(key, frames)
        assert path.read_bytes() == whole


def test_blocks_that_never_reached_the_disk_are_dropped(path: Path) -> None:
    with Journal(path) as journal:
        for key in "abcd":
            journal.append(key, [frame()])
    whole = path.read_bytes()
    size = len(whole) // 4
    path.write_bytes(whole[: size + 30] + bytes(size) + whole[2 * size + 30 :])
    with Journal(path) as journal:
        assert journal.done == {"a"}


OTHERS = {
    "frames without a task": lambda whole: b"1\nProperties=species:S:1:pos:R:3\nCu 0 0 0\n",
    "after ours": lambda whole: whole + b"1\nProperties=species:S:1:pos:R:3\nCu 0 0 0\n",
    "one of ours missing": lambda whole: whole[len(whole) // 3 :],
    "binary": lambda whole: b"PK\3\4\0\0\0",
    "a line": lambda whole: b"Dear diary",
    "text": lambda whole: b"Dear diary,\ntoday\nnothing\n",
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_nothing_of_others_is_dropped(path: Path, other) -> None:
    with Journal(path) as journal:
        for key in "ab":
            journal.append(key, [frame(i) for i in range(3)])
    path.write_bytes(other(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(FlashACEError, match=r"out\.extxyz: expected whole frames"):
        Journal(path)
    assert path.read_bytes() == before


def test_one_writer_at_a_time(path: Path) -> None:
    with Journal(path), pytest.raises(FlashACEError, match=r"out\.extxyz.*wait until it has ended"):
        Journal(path)
    Journal(path).close()


def test_labels_of_another_teacher_are_refused(path: Path) -> None:
    mine = 'tblite electric_field="a b"'
    with Journal(path, mine) as journal:
        journal.append("a", [frame(source=mine)])
    with Journal(path, mine) as journal:
        assert journal.done == {"a"}
    for other in ("tblite", "chgnet"):
        with pytest.raises(FlashACEError, match=f"expected labels of the teacher {other}, got some of"):
            Journal(path, other)


@pytest.mark.parametrize("atoms", [None, Atoms(), bulk("Si"), Atoms("H", [(np.nan, 0, 0)])], ids=["none", "empty", "silicon", "NaN"])
def test_failures_stand_beside_with_their_reason_and_are_done(path: Path, atoms: Atoms | None) -> None:
    with Journal(path, "emt") as journal:
        journal.append("a", [frame(source="emt")])
        journal.put_aside(Failure("bad", 'said "no" = \\ σ\nand more', atoms))
        assert (journal.done, journal.labelled, journal.failed) == ({"a", "bad"}, {"a"}, {"bad"})
    text = (path.parent / "out.failed.extxyz").read_text()
    assert len(text.splitlines()) == 2 + len(atoms or ())
    with Journal(path, "emt") as journal:
        assert journal.failed == {"bad"}
        journal.put_aside(Failure("worse", "same", bulk("Si")))
    with Journal(path, "emt") as journal:
        assert journal.failed == {"bad", "worse"}
    (path.parent / "out.failed.extxyz").unlink()
    with Journal(path, "emt") as journal:
        assert journal.done == {"a"}


def test_info_cannot_break_a_frame(path: Path) -> None:
    odd = {"note": "two\nlines", "task": "mine", "task_frames": 7, "energy": 3.0, "quote": '"', "empty": "", "list": [1, "a"]}
    with Journal(path) as journal:
        journal.append("a", [frame(**odd)])
    (read,), _ = read_labelled(path)
    assert (read.atoms.info["task"], read.atoms.info["note"], read.atoms.info["quote"]) == ("a", "two lines", '"')
    assert read.energy == frame().get_potential_energy()
    with Journal(path) as journal:
        assert journal.done == {"a"}


def test_a_full_disk_leaves_whole_tasks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flashace.teach.journal as module

    with Journal(path) as journal:
        journal.append("a", [frame()])
        size = path.stat().st_size
        write = module.os.pwrite

        def full(file, data, place):
            if place > size:
                raise OSError(28, "No space left on device")
            return write(file, data[:10], place)

        monkeypatch.setattr(module.os, "pwrite", full)
        with pytest.raises(OSError, match=r"No space left.*out\.extxyz"):
            journal.append("b", [frame()])
        assert path.stat().st_size == size
        assert journal.done == {"a"}
