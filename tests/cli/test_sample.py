"""`flashace sample`: its tables, its file, and a run that goes on."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write

from flashace.teach.journal import Journal
from flashace.teach.sample import forget_failures, journal_of


@pytest.fixture
def copper():
    write("cu.extxyz", bulk("Cu"))
    return ["sample", "cu.extxyz", "--teacher", "emt", "--max-atoms", "8", "--temperatures", "300", "--temperatures", "900"]


def test_frames_of_a_crystal_and_a_run_that_goes_on(flashace, copper, tmp_path, one_line_error):
    shown = flashace(*copper, "-n", 24, "--dry-run")
    assert shown.exit_code == 0, shown.output
    for word in ("emt", "crystal: 1", "isolated_atom: 1", "vacancy", "surface", "md-300K", "time step 2 fs"):
        assert word in shown.output

    done = flashace(*copper, "-n", 24, "-o", "first.extxyz")
    assert done.exit_code == 0, done.output
    frames = read("first.extxyz", ":")
    kinds = [frame.info["config_type"] for frame in frames]
    assert kinds[:2] == ["isolated_atom", "seed"]
    assert {"strained", "surface", "opened", "md-300K"} < set(kinds)
    assert {frame.info["source"] for frame in frames} == {"emt"}
    assert 20 <= len(frames) <= 25
    assert not journal_of(tmp_path / "first.extxyz").exists()
    one_line_error(flashace(*copper, "-o", "first.extxyz"), "--overwrite")

    # a run that was killed has some tasks in its journal, here with a label that no teacher gives
    kept = [frame for frame in frames if frame.info["task"] == frames[-1].info["task"]]
    for frame in kept:
        frame.calc.results["energy"] += 1000
    with Journal(journal_of(tmp_path / "second.extxyz"), "emt") as journal:
        journal.append(kept[0].info["task"], kept)
        journal.append("of-other-seeds", kept)
    done = flashace(*copper, "-n", 24, "-o", "second.extxyz")
    assert "1 of" in done.output, done.output
    again = read("second.extxyz", ":")
    assert [frame.info["task"] for frame in again] == [frame.info["task"] for frame in frames]
    assert again[-1].get_potential_energy() == kept[-1].get_potential_energy()
    assert np.allclose(again[0].get_potential_energy(), frames[0].get_potential_energy())


def test_charges_that_the_teacher_does_not_hear_of_are_told(flashace, copper):
    charged = bulk("Cu")
    charged.info["charge"] = 1
    write("cu.extxyz", [bulk("Cu"), charged])
    assert "1 of 2 seeds have charges" in flashace(*copper, "-n", 5, "--dry-run").output


def test_what_a_user_may_get_wrong(flashace, copper, one_line_error, tmp_path):
    one_line_error(flashace(*copper, "-n", 5), "--output: expected a file")
    one_line_error(flashace(*copper, "-o", "cu.extxyz"), "another file")
    one_line_error(flashace(*copper, "-o", "a.traj"), "ends in .extxyz")
    one_line_error(flashace(*copper, "-n", 0, "-o", "a.extxyz"), "`num`")
    one_line_error(flashace(*copper, "--temperatures", "-3", "-o", "a.extxyz"), "`temperatures`")
    one_line_error(flashace("sample", "cu.extxyz", "--teacher", "nobody", "-o", "a.extxyz"), "nobody")
    one_line_error(flashace("sample", "cu.extxyz", "-o", "a.extxyz"), "teacher: expected emt")
    no_teacher = "--teacher", "fractions:Fraction", "--teacher-arg", "colour=3"
    one_line_error(flashace("sample", "cu.extxyz", *no_teacher, "-o", "a.extxyz"), "fractions:Fraction")
    assert [path.name for path in tmp_path.iterdir()] == ["cu.extxyz"]


def test_what_failed_is_tried_again_where_a_file_is_made_anew(flashace, copper, tmp_path):
    """And what an interrupted run has put aside stays so."""
    output = tmp_path / "a.extxyz"
    aside, journal = (tmp_path / f"a.journal{end}.extxyz" for end in (".failed", ""))
    write(aside, bulk("Cu"))  # not even of a journal
    write(output, bulk("Cu"))
    done = flashace(*copper, "-n", 4, "-o", output, "--overwrite")
    assert done.exit_code == 0, done.output
    assert not aside.exists()
    for path in (aside, journal):
        path.touch()
    forget_failures(output)
    assert aside.exists()
