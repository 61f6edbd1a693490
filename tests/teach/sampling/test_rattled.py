"""Displaced atoms and strained cells, of every kind of seed."""

import numpy as np
from ase.build import fcc111

from flashace.teach.sampling.rattled import VOLUMES, rattled
from flashace.teach.sampling.seed import look_at


def test_molecules_have_several_sizes(ethanol, rng, settings):
    tasks = rattled([ethanol], 20, rng, settings)
    assert {task.kind for task in tasks} == {"rattled"}
    assert len({len(task.atoms) for task in tasks}) == 1


def test_crystals_are_strained_as_they_are_and_repeated(copper, rng, settings):
    tasks = rattled([copper], 20, rng, settings)
    assert {task.kind for task in tasks} == {"strained"}
    sizes = {len(task.atoms) for task in tasks}
    assert len(sizes) == 2
    assert max(sizes) <= settings.max_atoms
    volumes = [task.atoms.get_volume() / len(task.atoms) / copper.atoms.get_volume() for task in tasks]
    low, high = VOLUMES["crystal"]
    assert low <= min(volumes) < 0.95
    assert 1.05 < max(volumes) <= high


def test_slabs_are_strained_in_their_plane(rng, settings):
    slab = look_at(fcc111("Cu", (2, 2, 3), vacuum=8))
    (task,) = rattled([slab], 1, rng, settings)
    assert np.allclose(task.atoms.cell[2], slab.atoms.cell[2])
    assert not np.allclose(task.atoms.cell[0], slab.atoms.cell[0])


def test_liquids_keep_their_molecules(waters, rng, settings):
    (task,) = rattled([waters], 1, rng, settings)
    assert all(task.atoms.get_distance(a, b) < 1.2 for a, b in waters.bonds.edges)
