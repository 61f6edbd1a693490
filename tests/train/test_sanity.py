"""What a fit says at its end of structures that its data does not have."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from flashace.data.frames import Labelled
from flashace.potential.model_file import read_header
from flashace.train.sanity import in_a_sentence, sanity_of_fit
from flashace.verify.outside_data import Sanity


@pytest.fixture(scope="module")
def frames(make_frames):
    return [Labelled(atoms, atoms.get_potential_energy(), atoms.get_forces(), None, "", f"x#{n}") for n, atoms in enumerate(make_frames(3))]


def test_a_fit_tells_and_keeps_it(run_folder, flashace):
    kept = read_header(run_folder / "model.pt")["provenance"]["sanity"]
    found = Sanity(**kept)
    (line,) = [line for line in (run_folder / "output.txt").read_text().splitlines() if "outside the data: " in line]
    assert line == in_a_sentence(found)
    told = "".join(flashace("info", run_folder / "model.pt").output.replace("│", " ").split())
    assert "".join(found.in_words().split()) in told


def test_bars_come_from_the_labels(make_model, frames):
    model = make_model().requires_grad_(False)
    found = sanity_of_fit(model, frames)
    free = sum(model.e0.values())
    deepest = max((free - frame.energy) / 2 for frame in frames)
    largest = max(np.linalg.norm(frame.forces, axis=1).max() for frame in frames)
    assert found[1::3] == pytest.approx((max(2 * deepest, 8.0), max(3 * largest, 30.0)))
    assert found == sanity_of_fit(model, frames)
    loud = [replace(frame, forces=100 * frame.forces) for frame in frames]
    assert sanity_of_fit(model, loud).force_bar == pytest.approx(300 * largest)


def test_frames_without_labels_leave_the_least_bars(make_model, frames):
    bare = [Labelled(frame.atoms, None, None, None, "", frame.origin) for frame in frames]
    assert sanity_of_fit(make_model().requires_grad_(False), bare)[1::3] == (8.0, 30.0)


@pytest.mark.parametrize("factor", [1e6, np.nan])
def test_a_broken_model_is_told_plainly(make_model, frames, factor):
    model = copy.deepcopy(make_model()).requires_grad_(False)
    assert "NOT SANE" in in_a_sentence(Sanity(9.0, 8.0, "Si-Si at 2.00 Å", 1.0, 30.0, "a packing"))
    for readout in model.readouts:
        readout.linear.weight.mul_(factor)
    found = sanity_of_fit(model, frames)
    assert found.worst > 1
    assert in_a_sentence(found).startswith("NOT SANE outside the data: energies at most")
