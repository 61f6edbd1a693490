import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from flashace.data.frames import Labelled, content_hash, read_labelled
from flashace.data.origin import Origin
from flashace.data.split import random_split, split, split_of
from flashace.errors import FlashACEError


@pytest.fixture
def ten():
    return [Labelled(bulk("Si", a=5.43), float(i), np.ones((2, 3)), None, "", Origin("data.traj", i)) for i in range(10)]


def test_split_is_a_partition_that_the_seed_decides(ten):
    train, valid = split(ten, 0.3, seed=1)
    assert (len(train), len(valid)) == (7, 3)
    assert sorted(frame.energy for frame in train + valid) == [frame.energy for frame in ten]
    assert split(ten, 0.3, seed=1) == (train, valid)
    assert any(split(ten, 0.3, seed=seed)[1] != valid for seed in range(2, 6))
    assert [len(part) for part in split(ten, 0.001, seed=0)] == [9, 1]
    assert [len(part) for part in split(ten, 0.999, seed=0)] == [1, 9]


def kinds_of(frames):
    return Counter(frame.config_type for frame in frames)


def test_no_kind_of_frames_is_held_out_whole(ten):
    """The one frame of a surface taught nothing when it was the one to be held out."""
    sizes = {"AIMD": 20, "vacancy": 14, "elastic": 5, "surface": 1}
    frames = [replace(ten[0], config_type=kind) for kind, size in sizes.items() for _ in range(size)]
    for seed in range(50):
        train, valid = split(frames, 0.1, seed)
        assert kinds_of(valid) == {"AIMD": 2, "vacancy": 1, "elastic": 1}
        assert kinds_of(train).keys() == sizes.keys()
    assert any("surface" in kinds_of(random_split(frames, 0.1, seed)[1]) for seed in range(50))


def test_a_fit_of_an_earlier_version_finds_its_frames_again(data_file):
    frames, held_out = read_labelled(data_file)[0], set()
    for seed, drawn in itertools.product(range(4), (split, random_split)):
        train, valid = drawn(frames, 0.4, seed)
        found = split_of(frames, 0.4, seed, content_hash(train))
        assert [[f.origin for f in part] for part in found] == [[f.origin for f in part] for part in (train, valid)]
        held_out.add((seed, tuple(f.origin for f in valid)))
    assert len(held_out) > 4  # the two differ


def test_no_element_is_held_out_whole(ten):
    odd = replace(ten[0], atoms=Atoms("Ge2"))
    assert not any(frame is odd for seed in range(30) for frame in split([*ten, odd], 0.3, seed)[1])


def test_where_each_frame_is_of_its_own_kind_kinds_do_not_count(ten):
    named = [replace(frame, config_type=str(i)) for i, frame in enumerate(ten)]
    assert [len(part) for part in split(named, 0.3, 0)] == [7, 3]
    pairs = [replace(frame, config_type=str(i // 2)) for i, frame in enumerate(ten)]
    assert [len(part) for part in split(pairs, 0.8, 0)] == [2, 8]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_fraction_that_is_none(ten, fraction):
    with pytest.raises(FlashACEError, match=f"valid_fraction: expected a number between 0 and 1, got {re.escape(str(fraction))}"):
        split(ten, fraction, 0)


def test_split_needs_two_frames(ten):
    with pytest.raises(FlashACEError, match=r"expected at least 2 frames to split.*got 1; add frames or name validation data with --valid"):
        split(ten[:1], 0.1, 0)
