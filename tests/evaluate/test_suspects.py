"""Frames whose labels a fit contradicts: one planted wrong label is found and described, and none where nothing stands out."""

import re

import numpy as np
import pytest
from ase import Atoms
from ase.io import read

from flashace.data.frames import Labelled
from flashace.data.origin import Origin
from flashace.evaluate.suspects import MOST, in_words, suspects, write_suspects


def labelled(number, seed=0, config_type="hot", atoms=8, spread=0.0):
    """Frames and predictions with normal errors of 2 meV/atom, 50 meV/Å and 1 meV/Å³; `spread` of their size between frames."""
    rng = np.random.default_rng(seed)
    frames, predictions = [], []
    for n in range(number):
        structure = Atoms(["Si"] * atoms, rng.uniform(0, 9, (atoms, 3)), cell=[9, 9, 9], pbc=True)
        known = {"energy": -5.0 * atoms + rng.normal(), "forces": rng.normal(size=(atoms, 3)), "stress": symmetric(rng.normal(size=(3, 3)))}
        size = np.exp(spread * rng.normal())
        off = {"energy": 0.002 * atoms * rng.normal(), "forces": 0.05 * rng.normal(size=(atoms, 3))}
        off["stress"] = 0.001 * symmetric(rng.normal(size=(3, 3)))
        frames.append(Labelled.of(structure, known, config_type, Origin("a.xyz", n)))
        predictions.append({name: known[name] + size * off[name] for name in known})
    return frames, predictions


def symmetric(a):
    return (a + a.T) / 2


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("number", [12, 100, 1000])
def test_nothing_stands_out_of_ordinary_errors(number, spread):
    for seed in range(3):
        assert suspects({"train": labelled(number, seed, atoms=4, spread=spread)}) == []


def planted(name, change):
    frames, predictions = labelled(40)
    frame = frames[17]
    frames[17] = Labelled.of(
        frame.atoms, {**{n: frame.label(n) for n in ("energy", "forces", "stress")}, name: change(frame)}, "hot", frame.origin
    )
    return {"train": (frames, predictions)}


def one_atom(frame):
    forces = frame.forces.copy()
    forces[3] += (2.0, 0, 0)
    return forces


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("energy", lambda frame: frame.energy + 0.8, r"energy \d+ meV/atom above the fit; two thirds of 40 frames are within"),
        ("energy", lambda frame: frame.energy - 0.8, r"below the fit"),
        ("forces", lambda frame: -frame.forces, r"off the fit, as if multiplied by -1"),
        ("forces", lambda frame: 51.4 * frame.forces, r"as if multiplied by 51"),
        ("forces", one_atom, r"forces of atom 3 \(Si\) \d+ meV/Å off the fit; two"),
        ("stress", lambda frame: -frame.stress, r"stress [\d.]+ meV/Å³ off the fit, as if multiplied by -1"),
    ],
)
def test_a_planted_wrong_label_is_named_with_its_reason(tmp_path, name, change, said):
    (found,) = suspects(planted(name, change))
    assert found.frame.origin == Origin("a.xyz", 17)
    assert found.times > 1
    assert re.search(said, found.reason), found.reason
    path = tmp_path / "suspects.extxyz"
    assert f"1 frame with labels that the fit contradicts, in {path}; most of all a.xyz#17: " in in_words([found], path)
    write_suspects(path, [found])
    (frame,) = read(path, ":")
    assert frame.info["reason"] == found.reason
    assert frame.info["part"] == "train"
    assert frame.info["origin"] == "a.xyz#17"
    assert "flashace_energy" in frame.info
    write_suspects(path, [])
    assert not path.exists()


def test_a_kind_is_judged_by_its_own_errors():
    cold, hot = labelled(30, config_type="cold"), labelled(30, seed=1)
    for prediction, frame in zip(hot[1], hot[0], strict=True):
        prediction["forces"] = frame.forces + 30 * (prediction["forces"] - frame.forces)
    cold[1][4]["forces"] = cold[0][4].forces + 25 * (cold[1][4]["forces"] - cold[0][4].forces)
    (found,) = suspects({"train": (cold[0] + hot[0], cold[1] + hot[1])})
    assert found.frame is cold[0][4]


def test_too_few_frames_tell_nothing_and_too_many_suspects_are_a_handful():
    frames, predictions = labelled(9)
    predictions[0]["energy"] += 100
    assert suspects({"train": (frames, predictions)}) == []
    frames, predictions = labelled(200)
    for n in range(30):
        predictions[n]["energy"] += 10.0 + n
    found = suspects({"validation": (frames, predictions)})
    assert [suspect.frame.origin.index for suspect in found] == list(range(29, 29 - MOST, -1))
    assert "suspects: none" in in_words([], "x")
