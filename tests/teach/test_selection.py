"""Frames that are worth a label: what is chosen and expected against the formula, and never the same twice."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read

from flashace import FlashACE
from flashace.data.origin import Origin
from flashace.errors import FlashACEError
from flashace.potential.model import AttentionACE
from flashace.potential.uncertainty import Rigidity, Uncertainty
from flashace.structure.neighbors import build_graph
from flashace.teach import selection
from flashace.teach.selection import Selector, write_choice


def rattled(seed, width=0.05, repeat=(1, 1, 1)):
    atoms = bulk("SiC", "zincblende", a=4.4, cubic=True).repeat(repeat)
    atoms.positions += np.random.default_rng(seed).normal(scale=width, size=atoms.positions.shape)
    return atoms


def features(model, frames):
    graphs = [build_graph(atoms, model.config.r_max) for atoms in frames]
    with torch.no_grad():
        return [model.with_features(graph)[1] for graph in graphs]


@pytest.fixture(scope="module")
def trained():
    return [rattled(seed) for seed in range(10)]


@pytest.fixture(scope="module")
def model(make_model, trained) -> AttentionACE:
    """The random model, as if fitted to `trained`."""
    model = make_model()
    rows = torch.cat(features(model, trained))
    F = rows.T @ rows
    rigidity = Rigidity(F, 1e-3 * float(F.diagonal().mean()), 0.05)
    model.uncertainty = Uncertainty(rigidity, rigidity, frames=10, largest=0.1)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def selector(model):
    return Selector(FlashACE(model, kernel="plain", dtype="float64"), max_force=1000.0)


def numbered(frames):
    return [(atoms, Origin("pool.xyz", n)) for n, atoms in enumerate(frames)]


def places(choice):
    return [candidate.place for candidate in choice.chosen]


def test_what_is_expected_is_what_the_covariance_gives_once_the_frames_are_in_it(selector, model):
    frames = [rattled(seed, 0.1 + 0.02 * seed) for seed in range(12)]
    pool = selector.look(numbered(frames))
    choice = selector.choose(pool, 4)
    X = [x.numpy() for x in features(model, frames)]
    F, ridge, alpha = model.uncertainty.atoms.covariance.numpy(), model.uncertainty.atoms.ridge, model.uncertainty.atoms.alpha
    everything = np.concatenate(X)

    def rms(chosen):
        A = F + ridge * np.eye(len(F)) + sum((X[i].T @ X[i] for i in chosen), np.zeros_like(F))
        return alpha * np.sqrt(np.mean(np.einsum("ij,ji->i", everything, np.linalg.solve(A, everything.T))))

    assert choice.before == pytest.approx(rms([]), rel=1e-6)
    assert choice.after[-1] == pytest.approx(rms(places(choice)), rel=1e-3)  # rows are float32
    first = next(candidate.place for candidate in choice.chosen if candidate.atoms.info["chosen"] == 1)
    assert rms([first]) == pytest.approx(min(rms([i]) for i in range(12)), rel=1e-4)
    assert choice.before > choice.after[0] > choice.after[-1]
    assert choice.after[-1] < choice.random


def test_rows_more_than_features_or_fewer_are_worth_the_same():
    rng = np.random.default_rng(0)
    C = np.linalg.inv(np.eye(6) + rng.normal(size=(6, 6)) @ np.diag([1, 0, 0, 0, 0, 0]) @ np.eye(6))
    C = (C @ C.T).astype(float)
    gram = rng.normal(size=(9, 6))
    gram = gram.T @ gram
    for number in (2, 20):
        rows = rng.normal(size=(number, 6))
        fall = selection._trace(gram, C) - selection._trace(gram, selection._after(C, rows))
        assert selection._gain(rows, C, C @ gram @ C) == pytest.approx(fall, rel=1e-9)


def test_what_training_had_and_copies_are_not_chosen(selector, trained):
    strange = [rattled(seed, 0.3) for seed in range(20, 24)]
    copy, turned = strange[0].copy(), strange[1].copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    frames = [*trained, *strange, copy, turned]
    pool = selector.look(numbered(frames))
    assert places(selector.choose(pool, 4)) == [10, 11, 12, 13]
    choice = selector.choose(selector.look(numbered([*strange, copy, turned])), 10)
    assert (places(choice), choice.alike) == ([0, 1, 2, 3], 2)


def test_what_is_known_or_on_order_is_not_chosen_again(selector):
    strange = [rattled(seed, 0.3) for seed in range(20, 25)]
    known = selector.look(numbered(strange[:3]), keep=False)
    assert known.candidates == []
    choice = selector.choose(selector.look(numbered(strange)), 5, known, strange[:3])
    assert places(choice) == [3, 4]
    assert choice.before < selector.choose(selector.look(numbered(strange)), 1).before


def test_what_is_written_has_no_labels_of_the_pool(selector, make_frames, tmp_path):
    frames = make_frames(4)
    frames[1].info["charge"] = 1
    choice = selector.choose(selector.look(numbered(frames)), 3)
    write_choice(tmp_path / "next.extxyz", choice)
    written = read(tmp_path / "next.extxyz", ":")
    assert [frame.info["origin"] for frame in written] == [f"pool.xyz#{place}" for place in places(choice)]
    assert sorted(frame.info["chosen"] for frame in written) == [1, 2, 3]
    for frame in written:
        assert frame.calc is None
        assert frame.info["config_type"] in ("cold", "warm")
        assert frame.arrays.keys() == {"numbers", "positions", "energies_uncertainty"}


def test_an_explosion_is_left_out_and_counted(model):
    selector = Selector(FlashACE(model, kernel="plain"), max_force=20.0)
    exploded = rattled(0)
    exploded.positions[1] = exploded.positions[0] + 0.3
    pool = selector.look(numbered([exploded, rattled(1)]))
    assert pool.frames == 1
    assert [candidate.place for candidate in pool.candidates] == [1]
    assert sum(pool.left_out.values()) == 1


def test_of_a_pool_too_large_the_most_uncertain_frames_stay(selector, monkeypatch):
    monkeypatch.setattr(selection, "MOST_ATOMS", 40)
    frames = [rattled(seed, 0.05 if seed % 3 else 0.3) for seed in range(12)]
    pool = selector.look(numbered(frames))
    assert pool.frames == 12
    assert pool.not_kept == 12 - len(pool.candidates)
    assert {0, 9} <= {candidate.place for candidate in pool.candidates}


def test_surroundings_are_carved_out_of_large_frames(model):
    atoms = rattled(0, 0.08, (4, 4, 4))
    atoms.positions[200] += (0.5, 0.3, 0.2)
    selector = Selector(FlashACE(model, kernel="plain"), max_force=1000.0, cut=5.0)
    (candidate,) = selector.choose(selector.look(numbered([atoms])), 1).chosen
    piece = candidate.atoms
    assert len(piece) < len(atoms) / 2
    assert piece.arrays["intact"][piece.info["centre"]]
    assert candidate.centre in (200, *np.flatnonzero(atoms.get_distances(200, range(len(atoms)), mic=True) < 4))


def test_what_cannot_choose_says_so(make_model, model, selector):
    with pytest.raises(FlashACEError, match="a committee"):
        Selector(FlashACE([model, model], kernel="plain"), 100.0)
    with pytest.raises(FlashACEError, match="flashace calibrate"):
        Selector(FlashACE(make_model(), kernel="plain"), 100.0)
    with pytest.raises(FlashACEError, match=r"pool\.xyz#0: .*this model knows C, Si"):
        selector.look(numbered([bulk("Cu")]))
