"""Frames to label as folders, and labels that other programs leave there: known by the structure, whatever the order of its atoms."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from flashace.teach.by_files import answers, ask
from flashace.teach.task import labelled


def alloy(seed):
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[:] = ["Cu", "Au", "Cu", "Au"]
    atoms.rattle(0.1, seed=seed)
    atoms.info["config_type"] = "own"
    return atoms


def water():
    atoms = molecule("H2O")
    atoms.rattle(0.02, seed=0)
    return atoms


def told(path):
    return lambda text: path.append(text)


def test_each_frame_has_a_folder_and_those_that_are_there_stay(tmp_path):
    frames = [alloy(0), water()]
    places = ask(frames, tmp_path / "calc", "round-1")
    assert [place.name for place in places] == ["round-1-001", "round-1-002"]
    assert np.allclose(read(places[0] / "POSCAR").positions, frames[0].positions[[1, 3, 0, 2]])  # POTCAR has each element once
    assert not (places[1] / "POSCAR").exists()
    assert answers(frames, tmp_path / "calc", pytest.fail) == [None, None]
    (places[0] / "POSCAR").write_text("mine")
    ask(frames, tmp_path / "calc", "round-1")
    assert (places[0] / "POSCAR").read_text() == "mine"


@pytest.mark.parametrize("name", ["round-1-001/out.extxyz", "everything.xyz", "deep/below/md.traj"])
def test_labels_are_found_wherever_they_are_and_sorted_back(tmp_path, name):
    frames = [alloy(0), alloy(1)]
    ask(frames, tmp_path, "round-1")
    other = labelled(frames[1], EMT())
    order = [1, 3, 0, 2]  # by elements, as VASP wants it
    moved = Atoms(other.numbers[order], other.positions[order], cell=other.cell, pbc=True)
    moved.positions += other.cell[0]
    moved.calc = SinglePointCalculator(
        moved, energy=other.get_potential_energy(), forces=other.get_forces()[order], stress=other.get_stress()
    )
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path / name, [moved])
    none, found = answers(frames, tmp_path, pytest.fail)
    assert none is None
    assert np.allclose(found.positions, frames[1].positions)
    assert np.allclose(found.get_forces(), other.get_forces(), atol=1e-7)
    assert np.allclose(found.get_stress(), other.get_stress(), atol=1e-7)
    assert found.info["config_type"] == "own"
    assert found.info["origin"].endswith(f"{name}#0")


def test_a_shifted_molecule_is_the_same_and_strangers_are_told(tmp_path):
    atoms, said = water(), []
    moved = atoms.copy()
    moved.positions += 5.0
    forces = np.arange(9.0).reshape(3, 3)
    moved.calc = SinglePointCalculator(moved, energy=-14.0, forces=forces)
    write(tmp_path / "a.extxyz", [moved])
    write(tmp_path / "b.extxyz", labelled(bulk("Cu"), EMT()))
    (tmp_path / "OUTCAR").write_text("running…")
    (found,) = answers([atoms], tmp_path, said.append)
    assert np.allclose(found.get_forces(), forces)
    assert len(said) == 2
    assert "OUTCAR" in said[0]
    assert "b.extxyz: none of its 1 frames" in said[1]
