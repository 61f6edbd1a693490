"""`flashace select`, as a user types it."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write


@pytest.fixture
def pool(tmp_path):
    frames = []
    for seed in range(8):
        atoms = bulk("SiC", "zincblende", a=4.4, cubic=True)
        atoms.positions += np.random.default_rng(seed).normal(scale=0.03 * (1 + seed), size=atoms.positions.shape)
        frames.append(atoms)
    write("pool.traj", frames)
    return "pool.traj"


def test_what_is_chosen_and_expected_is_said(flashace, run_folder, pool, data_file):
    result = flashace("select", pool, data_file, "--model", run_folder, "-n", 4, "-o", "next.extxyz")
    assert result.exit_code == 0, result.output
    for said in ("pool  20 frames", "expected with these 4 labels", "frames drawn by chance", "frames  next.extxyz"):
        assert said in result.output
    chosen = read("next.extxyz", ":")
    assert len(chosen) == 4
    assert all(frame.info["origin"].startswith(("pool.traj#", str(data_file))) for frame in chosen)
    places = [int(frame.info["origin"].split("#")[1]) for frame in chosen if "pool" in frame.info["origin"]]
    assert places == sorted(places)
    again = flashace("select", pool, "--model", run_folder, "-n", 20, "--known", "next.extxyz", "-o", "more.extxyz")
    assert "20 were asked for, but no more than" in again.output
    assert not {f.info["origin"] for f in chosen} & {f.info["origin"] for f in read("more.extxyz", ":")}


def test_mistakes_are_told_before_the_work(flashace, run_folder, pool, model_file, one_line_error):
    asked = ("select", pool, "-n", 4)
    one_line_error(flashace(*asked, "--model", run_folder, "-o", pool), "expected another file than those that are read")
    one_line_error(flashace(*asked, "--model", run_folder, "-o", "next.traj"), "ends in .extxyz")
    one_line_error(flashace(*asked, "--model", model_file, "-o", "next.extxyz"), "flashace calibrate")
    one_line_error(flashace(*asked, "--model", "no.pt", "-o", "next.extxyz"), "no.pt")
    one_line_error(flashace("select", "no.xyz", "--model", run_folder, "-n", 4, "-o", "next.extxyz"), "no.xyz")
    write("cu.xyz", bulk("Cu"))
    one_line_error(flashace("select", "cu.xyz", "--model", run_folder, "-n", 4, "-o", "n.extxyz"), r"cu.xyz#0: .*knows C, Si")
    one_line_error(
        flashace("select", pool, "--model", run_folder, "-n", 1, "--known", pool, "-o", "n.extxyz"), "none that differs from --known"
    )
