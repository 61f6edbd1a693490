"""`flashace learn`, as a user types it: from a few frames to a model that stays sure, by a calculator or by files."""

import csv
import signal
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.io import read, write

from flashace import FlashACE
from flashace.teach import learning
from flashace.teach.task import labelled

TINY = ("--size", "small", "--hidden-dim", 16, "--num-channels", 4, "--correlation", 2, "--r-max", 4.0, "--compile", "false")
RUN = ("--temperatures", 300, "--time", 0.1, "-n", 4, "--rounds", 2, "--output", "run", *TINY)


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch):
    monkeypatch.setattr(learning, "STEPS", 20)


@pytest.fixture
def seeds():
    frames = []
    for n in range(4):
        atoms = fcc111("Cu", (2, 2, 3), a=3.6, vacuum=6.0, periodic=True)
        atoms.info.clear()
        atoms.rattle(0.08, seed=n)
        frames.append(atoms)
    write("seeds.extxyz", frames)
    return frames


def rounds():
    with Path("run/rounds.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_that_stays_sure_ends_it(flashace, seeds):
    cold = [1 if word == 300 else word for word in RUN]  # so that no atom leaves what four frames have shown
    result = flashace("learn", "seeds.extxyz", "--teacher", "emt", "--stop", 1e3, *cold)
    assert result.exit_code == 0, result.output
    assert "round 0: 4 labels" in result.output
    assert "stayed below" in result.output
    assert rounds()[-1]["stopped"] == "0"
    assert np.isfinite(FlashACE("run").get_potential_energy(seeds[0]))


@pytest.mark.slow
def test_an_unsure_model_buys_labels_and_what_is_there_is_not_made_twice(flashace, seeds):
    result = flashace("learn", "seeds.extxyz", "--teacher", "emt", "--stop", 1e-9, *RUN)
    assert result.exit_code == 1, result.output
    assert "still unsure in 4 of 4 trajectories" in result.output
    found = rounds()
    assert [row["stopped"] for row in found] == ["4", "4", "4"]
    assert [int(row["labels"]) for row in found] == sorted({int(row["labels"]) for row in found})
    assert float(found[0]["forces"]) > 0
    own = read("run/round-0/own.extxyz", ":")
    assert all("uncertain by more than" in frame.info["ended"] or "neighbours" in frame.info["ended"] for frame in own)
    before = {path: path.read_bytes() for path in Path("run").glob("round-*/**/*") if path.suffix in (".extxyz", ".pt")}
    again = flashace("learn", "--resume", "run")
    assert again.exit_code == 1, again.output
    assert {path: path.read_bytes() for path in before} == before
    assert rounds() == found


@pytest.mark.slow
def test_by_files_it_waits_and_goes_on_with_what_is_labelled(flashace, seeds):
    result = flashace("learn", "seeds.extxyz", "--teacher", "files:calc", "--stop", 1e-9, *RUN)
    assert result.exit_code == 3, result.output
    assert "4 frames to label" in result.output
    assert "flashace learn --resume run" in result.output
    assert flashace("learn", "--resume", "run").exit_code == 3  # nothing yet
    asked = sorted(Path("calc").glob("round-0-*"))
    for place in asked[:3]:
        write(place / "emt.extxyz", labelled(read(place / "structure.extxyz"), EMT()))
    result = flashace("learn", "--resume", "run")
    assert result.exit_code == 3, result.output
    assert "1 of 4 frames have no label yet; it goes on without them" in result.output
    assert len(read("run/round-0/frames.extxyz", ":")) == 3
    assert sorted(Path("calc").glob("round-1-*"))


@pytest.mark.slow
def test_crystals_run_at_each_pressure_and_slabs_at_none(flashace, seeds):
    write("seeds.extxyz", [seeds[0], bulk("Cu", cubic=True)])
    pressures = ("--pressures", 0, "--pressures", 5.5)
    result = flashace("learn", "seeds.extxyz", "--teacher", "emt", "--stop", 1e-9, *RUN, "--rounds", 0, "--max-atoms", 8, *pressures)
    assert result.exit_code == 1, result.output
    assert sorted(frame.info["config_type"] for frame in read("run/round-0/own.extxyz", ":")) == [
        "md-300K",
        "md-300K-0GPa",
        "md-300K-5.5GPa",
    ]


def test_pressures_want_a_crystal_or_a_liquid(flashace, seeds):
    result = flashace("learn", "seeds.extxyz", "--teacher", "emt", *RUN, "--pressures", 1)
    assert result.exit_code == 1
    assert "--pressures: expected a crystal or a liquid among SEEDS, got slab; leave it out, or give such seeds" in " ".join(
        result.output.split()
    )
    assert not Path("run").exists()


def course():
    """What was bought, and why; numbers to the last digits would need a fit at the same place in memory."""
    chosen = [frame.info["origin"] for frame in read("run/round-1/chosen.extxyz", ":")]
    return chosen, [(row["labels"], row["stopped"]) for row in rounds()]


@pytest.mark.slow
def test_what_is_interrupted_anywhere_ends_as_if_nothing_had_happened(flashace, seeds, monkeypatch):
    asked = ("learn", "seeds.extxyz", "--teacher", "emt", "--stop", 1e-9, *RUN, "--rounds", 1)
    flashace(*asked)
    calm = course()
    Path("run").rename("calm")
    command = asked
    for stage in ("label", "learn", "_run", "_choose", "write_choice", "errors_of"):
        with monkeypatch.context() as patch:
            patch.setattr(learning, stage, lambda *arguments, **options: signal.raise_signal(signal.SIGINT))
            assert flashace(*command).exit_code == 130
        command = ("learn", "--resume", "run")
    assert flashace(*command).exit_code == 1
    assert course() == calm


def test_seeds_with_labels_are_not_asked_for(flashace, seeds, monkeypatch):
    write("labelled.extxyz", [labelled(atoms, EMT()) for atoms in seeds])
    monkeypatch.setattr(learning, "learn", lambda *arguments: None)  # as if Ctrl-C came there
    result = flashace("learn", "labelled.extxyz", "--teacher", "files:calc", *RUN)
    assert result.exit_code == 130, result.output
    assert "To go on:\n    flashace learn --resume run" in result.output
    assert len(read("run/round-0/frames.extxyz", ":")) == 4
    assert not Path("calc").exists()


def test_mistakes_are_told(flashace, seeds, one_line_error):
    asked = ("learn", "seeds.extxyz")
    one_line_error(flashace("learn"), "SEEDS: expected a file")
    one_line_error(flashace(*asked), "--teacher: expected an ASE calculator or files:DIR")
    one_line_error(flashace(*asked, "--teacher", "emt"), "--temperatures: expected at least one")
    one_line_error(flashace(*asked, "--teacher", "files:", "--temperatures", 300), "expected the name of a folder")
    one_line_error(flashace(*asked, "--teacher", "gold", "--temperatures", 300), "teacher: expected emt, tblite")
    one_line_error(flashace("learn", "--resume", "."), "found no learn.yaml")
    one_line_error(flashace("learn", "--resume", ".", "--teacher", "emt"), "expected nothing beside it")
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    one_line_error(flashace(*asked, "--teacher", "emt", *RUN), "expected an empty run folder")
