"""Cuts of crystals."""

import numpy as np
import pytest

from flashace.structure.neighbors import find_pairs
from flashace.teach.sampling.slabs import CUTS, VACUUM, opened, slab_of, slabs


@pytest.mark.parametrize("cut", CUTS)
def test_a_slab_without_gap_is_the_crystal(alloy, rng, cut):
    slab = slab_of(alloy.atoms, cut, 32, rng)
    ratio = len(slab) / len(alloy.atoms)
    assert slab.get_volume() == pytest.approx(ratio * alloy.atoms.get_volume())
    distances, expected = (np.sort(np.linalg.norm(find_pairs(a, 4.0).edge_vec, axis=1)) for a in (slab, alloy.atoms))
    assert np.allclose(distances, np.repeat(expected, round(ratio)))


def test_a_gap_opens_one_face(copper, rng):
    slab = slab_of(copper.atoms, (1, 1, 1), 16, rng)
    wide = opened(slab, 4.0)
    area = np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
    assert wide.get_volume() - slab.get_volume() == pytest.approx(4.0 * area)
    assert len(find_pairs(wide, 3.0).i) < len(find_pairs(slab, 3.0).i)


def test_slabs_and_opened_crystals_in_turn(copper, rng, settings):
    tasks = slabs([copper], 6, rng, settings)
    assert [task.kind for task in tasks] == ["surface", "opened"] * 3
    assert all(len(task.atoms) <= settings.max_atoms for task in tasks)
    assert all(task.atoms.cell.lengths()[2] > 2 * VACUUM for task in tasks[::2])
