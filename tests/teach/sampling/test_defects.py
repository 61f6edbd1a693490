"""Vacancies, interstitial and exchanged atoms."""

from collections import Counter

import numpy as np

from flashace.structure.neighbors import find_pairs
from flashace.teach.sampling import moves
from flashace.teach.sampling.defects import defects, with_exchanged, with_interstitial, with_vacancies


def test_each_changes_what_its_name_says(alloy, copper, rng):
    crystal = moves.supercell(alloy.atoms, 32)
    assert len(crystal) - len(with_vacancies(crystal, rng)) in (1, 2)
    assert len(with_vacancies(copper.atoms, rng)) == 1
    more = with_interstitial(crystal, rng)
    assert len(more) == len(crystal) + 1
    assert np.linalg.norm(find_pairs(more, 6.0).edge_vec, axis=1).min() > 1.5  # in a hole
    exchanged = with_exchanged(crystal, rng)
    moved = np.flatnonzero((exchanged.positions != crystal.positions).any(axis=1))
    assert len(moved) == 2
    assert exchanged.numbers[moved[0]] != exchanged.numbers[moved[1]]


def test_frames_add_up_and_elements_alone_have_no_antisites(alloy, copper, rng, settings):
    for seed, kinds in ((alloy, {"vacancy", "interstitial", "antisite"}), (copper, {"vacancy", "interstitial"})):
        tasks = defects([seed], 40, rng, settings)
        found = Counter()
        for task in tasks:
            found[task.kind] += getattr(task, "num_frames", 1)
        assert set(found) == kinds
        assert sum(found.values()) == 40
        assert found["vacancy"] > 10
