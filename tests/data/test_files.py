import gzip
import os
import shutil
import sys
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.db import connect
from ase.io import read, write

from flashace.data.files import structures
from flashace.data.frames import read_labelled
from flashace.errors import FlashACEError

VASP = Path(ase.__file__).parent / "test/testdata/vasp"
OUTCAR, VASPRUN = VASP / "OUTCAR_example_1", VASP / "vasprun_dfpt.xml"


def origins(*paths):
    return [str(origin) for _, origin in structures(paths)]


@pytest.fixture
def calculations(tmp_path):
    """A folder of VASP runs: b/ has both files, a/deep/ and c/ an OUTCAR, the last one packed."""
    for name in ("b", "a/deep", "c"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(OUTCAR, tmp_path / "b/OUTCAR")
    shutil.copy(VASPRUN, tmp_path / "b/vasprun.xml")
    shutil.copy(OUTCAR, tmp_path / "a/deep/OUTCAR")
    (tmp_path / "c/OUTCAR.gz").write_bytes(gzip.compress(OUTCAR.read_bytes()))
    (tmp_path / "c/notes.txt").write_text("not a structure")
    return tmp_path


def test_a_folder_gives_one_file_of_each_calculation_with_all_its_steps(calculations):
    steps = [len(read(file, ":", format=form)) for file, form in ((OUTCAR, "vasp-out"), (VASPRUN, "vasp-xml"))]
    found = origins(calculations)
    assert found[: steps[0]] == [f"{calculations}/a/deep/OUTCAR#{i}" for i in range(steps[0])]
    assert found[steps[0] : sum(steps)] == [f"{calculations}/b/vasprun.xml#{i}" for i in range(steps[1])]
    assert found[sum(steps) :] == [f"{calculations}/c/OUTCAR.gz#{i}" for i in range(steps[0])]


@pytest.mark.parametrize(("name", "source"), [("OUTCAR", OUTCAR), ("vasprun.xml", VASPRUN)])
def test_labels_of_vasp_are_the_free_energy_its_forces_and_stress(tmp_path, name, source):
    shutil.copy(source, tmp_path / name)
    frames, summary = read_labelled(tmp_path / name)
    assert summary.counts["energy"].used == {"calculator free_energy": len(frames)}
    for frame in frames:
        results = frame.atoms.calc.results
        assert frame.energy == results["free_energy"]
        np.testing.assert_array_equal(frame.forces, results["forces"])
        np.testing.assert_array_equal(frame.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], results["stress"])


def test_lmdb_gives_the_labels_and_keys_of_its_rows(tmp_path, make_frames):
    pytest.importorskip("ase_db_backends")
    frames = make_frames(3)
    for name in ("one.aselmdb", "two.lmdb"):
        database = connect(tmp_path / name, type="aselmdb")
        for atoms in frames:
            database.write(atoms, config_type=atoms.info["config_type"])
        database.close()
    labelled, _ = read_labelled(tmp_path)
    assert [str(frame.origin) for frame in labelled] == [f"{tmp_path}/{name}#{i}" for name in ("one.aselmdb", "two.lmdb") for i in range(3)]
    for atoms, frame in zip([*frames, *frames], labelled, strict=True):
        assert (frame.energy, frame.config_type) == (atoms.get_potential_energy(), atoms.info["config_type"])
        np.testing.assert_array_equal(frame.forces, atoms.get_forces())
        np.testing.assert_array_equal(frame.atoms.positions, atoms.positions)


def test_lmdb_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ase_db_backends.aselmdb", None)
    (tmp_path / "one.aselmdb").touch()
    with pytest.raises(FlashACEError, match=r"one\.aselmdb: .* ModuleNotFoundError.*; `pip install 'flashace\[lmdb\]'`"):
        origins(tmp_path / "one.aselmdb")


def test_a_bundle_is_a_folder_that_ase_reads(tmp_path, make_frames):
    write(tmp_path / "run.bundle", make_frames(2), format="bundletrajectory")
    assert origins(tmp_path / "run.bundle") == [f"{tmp_path}/run.bundle#{i}" for i in range(2)]


def test_structures_come_one_by_one(tmp_path, make_frames):
    write(tmp_path / "data.extxyz", make_frames(3))
    with (tmp_path / "data.extxyz").open("a") as file:
        file.write("2\n\nSi 0 0 0\nSi here\n")  # half a frame
    found = structures([tmp_path / "data.extxyz"])
    assert [str(next(found)[1]) for _ in range(3)] == [f"{tmp_path}/data.extxyz#{i}" for i in range(3)]
    with pytest.raises(FlashACEError, match=r"data\.extxyz#3, line 16: expected 4 columns of atom 2 of 2, got 'Si here'"):
        next(found)


def test_a_folder_without_anything_to_read_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FlashACEError, match=r"expected a folder with vasprun\.xml, OUTCAR, .* found none; name the files themselves"):
        origins(tmp_path)
    with pytest.raises(FlashACEError, match="no such file"):
        origins(tmp_path / "absent")


def test_a_folder_of_other_files_says_how_they_are_read(tmp_path):
    for name in ("data.extxyz", "run.traj", "rows.db", "more.xyz"):
        (tmp_path / name).touch()
    message = rf"found none; {tmp_path}/data\.extxyz, .*more\.xyz, .*rows\.db, …: these are read when they are named one by one"
    with pytest.raises(FlashACEError, match=message):
        origins(tmp_path)


def test_a_slice_of_a_file_says_what_to_do(tmp_path, make_frames):
    write(tmp_path / "data.extxyz", make_frames(2))
    with pytest.raises(
        FlashACEError, match=r"found no such file; all frames are read; for some of them: `ase convert .*data\.extxyz@:50 part"
    ):
        origins(f"{tmp_path}/data.extxyz@:50")
    with pytest.raises(FlashACEError, match="found no such file; check the path"):
        origins(f"{tmp_path}/absent.extxyz@:50")


@pytest.mark.parametrize("in_a_folder", [False, True])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, in_a_folder):
    pipe = tmp_path / ("OUTCAR" if in_a_folder else "data.xyz")
    os.mkfifo(pipe)
    with pytest.raises(FlashACEError, match=f"{pipe.name}: expected a file of structures, got a pipe or a device"):
        origins(tmp_path if in_a_folder else pipe)


def test_names_that_no_file_of_ours_could_keep(tmp_path, make_frames):
    """They would stand in config.yaml, the manifest of shards and the model."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.extxyz")
    write(tmp_path / "data.extxyz", make_frames(1))
    (tmp_path / "data.extxyz").rename(path)
    with pytest.raises(FlashACEError, match=r"\\udcff\.extxyz: expected a name in UTF-8, got other bytes in it; rename the file"):
        origins(path)
    with pytest.raises(FlashACEError, match="got File name too long"):
        origins(tmp_path / ("x" * 3000))


def test_trajectories_that_cat_has_joined_are_refused(tmp_path, make_frames):
    """ASE reads the first of them."""
    write(tmp_path / "a.traj", make_frames(2))
    assert len(origins(tmp_path / "a.traj")) == 2
    (tmp_path / "both.traj").write_bytes(2 * (tmp_path / "a.traj").read_bytes())
    with pytest.raises(FlashACEError, match=r"both\.traj: expected one trajectory, got several joined"):
        origins(tmp_path / "both.traj")
