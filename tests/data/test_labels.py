"""Two rows that the table does not have, a dipole and charges: a row alone brings a label from a file to its error and its loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from flashace.data.frames import LabelKeys, Labelled, content_hash, read_labelled
from flashace.data.labels import EVER, LABELS, Label
from flashace.data.origin import Origin
from flashace.data.shards import Shards, convert
from flashace.data.statistics import loss_units
from flashace.errors import FlashACEError
from flashace.evaluate.metrics import ErrorTable
from flashace.evaluate.report import error_table, label_table, parity, write_predictions
from flashace.structure.neighbors import build_graph
from flashace.train.augment import random_rotation, rotate
from flashace.train.loss import collate, loss_terms, make_item

DIPOLE = Label("dipole", rank=1, per_atom=False, unit="e Å", named=("REF_dipole",), found=("calculator dipole",), least=1e-2)
CHARGES = Label("charges", rank=0, per_atom=True, unit="e", named=("REF_charges",), found=("calculator charges",), least=1e-2)


@pytest.fixture
def more_labels(monkeypatch):
    for label in (DIPOLE, CHARGES):
        monkeypatch.setitem(LABELS, label.name, label)


def water(shift, dipole=True):
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, shift]])
    more = {"dipole": np.array([0.1, 0.4, shift]), "charges": np.array([-0.8, 0.4, 0.4 + shift])} if dipole else {}
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0 + shift, forces=np.full((3, 3), shift), **more)
    return atoms


@pytest.fixture
def file(tmp_path):
    write(tmp_path / "water.traj", [water(0.1), water(0.2, dipole=False)])
    return tmp_path / "water.traj"


@pytest.mark.usefixtures("more_labels")
def test_files_have_them_under_their_names(file, tmp_path):
    (first, second), summary = read_labelled(file)
    np.testing.assert_array_equal(first.label("dipole"), [0.1, 0.4, 0.1])
    np.testing.assert_array_equal(first.label("charges"), [-0.8, 0.4, 0.5])
    assert second.label("dipole") is second.label("charges") is None
    assert summary.counts["dipole"].used == {"calculator dipole": 1}
    assert label_table(summary).row_count == 5
    named = water(0.3, dipole=False)
    named.info |= {"REF_dipole": [1.0, 2.0, 3.0], "mine": [4.0, 5.0, 6.0]}
    write(tmp_path / "named.traj", named)
    np.testing.assert_array_equal(read_labelled(tmp_path / "named.traj")[0][0].label("dipole"), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(read_labelled(tmp_path / "named.traj", LabelKeys(dipole="mine"))[0][0].label("dipole"), [4.0, 5.0, 6.0])
    named.info["REF_dipole"] = 1.0
    write(tmp_path / "named.traj", named)
    with pytest.raises(FlashACEError, match=r"#0: REF_dipole: expected shape \(3,\), got shape \(\); correct it or .*--dipole-key"):
        read_labelled(tmp_path / "named.traj")


def test_shards_keep_them_and_earlier_ones_go_on(file, tmp_path, monkeypatch):
    convert([file], tmp_path / "before")
    before = content_hash(read_labelled(file)[0])
    for label in (DIPOLE, CHARGES):
        monkeypatch.setitem(LABELS, label.name, label)
    frames = read_labelled(file)[0]
    shards = convert([file], tmp_path / "after")
    for one, other in zip(shards, frames, strict=True):
        for name in LABELS:
            np.testing.assert_array_equal(one.label(name), other.label(name))
    assert content_hash(shards) == content_hash(frames) != before
    assert content_hash(frame.without("dipole").without("charges") for frame in frames) == before  # of data without them, as ever
    old = Shards(tmp_path / "before")
    assert [frame.label("dipole") for frame in old] == [None, None]
    assert (content_hash(old), old.summary().counts["dipole"].used) == (before, {})
    old.check(LabelKeys(), ("energy",))
    with pytest.raises(FlashACEError, match="expected dipole in at least one of 2 frames, found none"):
        old.check(LabelKeys(), ("dipole",))


@pytest.mark.usefixtures("more_labels")
def test_loss_and_rotation_follow_from_the_row(file):
    frames = read_labelled(file)[0]
    items = [make_item(build_graph(frame.atoms, 4.0), frame, torch.float64) for frame in frames]
    batch = collate(items)
    assert {name: tuple(x.shape) for name, x in batch.has.items()} == {
        **{"energy": (2,), "forces": (6,), "stress": (2,)},
        **{"dipole": (2,), "charges": (6,)},
    }
    assert batch.counts.tolist() == [2, 6, 0, 1, 3]
    units = loss_units(frames)
    assert units["dipole"] == pytest.approx(np.sqrt(np.mean(np.square([0.1, 0.4, 0.1]))))
    prediction = SimpleNamespace(**{name: label + 0.3 for name, label in batch.labels.items()})
    terms = dict(zip(LABELS, loss_terms(prediction, batch, units).tolist(), strict=True))
    assert terms["dipole"] == pytest.approx((0.3 / units["dipole"]) ** 2)
    assert terms["charges"] == pytest.approx((0.3 / units["charges"]) ** 2)
    assert terms["stress"] == 0.0
    turn = random_rotation(0, 0, 0)
    turned = rotate(items[0], turn)
    torch.testing.assert_close(turned.labels["dipole"][0], turn @ items[0].labels["dipole"][0])
    assert torch.equal(turned.labels["charges"], items[0].labels["charges"])


@pytest.mark.usefixtures("more_labels")
def test_errors_tables_and_pictures_follow_from_the_row(file, tmp_path):
    frames = read_labelled(file)[0]
    predictions = [{name: frame.label(name) for name in LABELS} for frame in frames]
    predictions[0]["dipole"] = frames[0].label("dipole") + 0.1
    table = ErrorTable()
    for frame, predicted in zip(frames, predictions, strict=True):
        table.add(frame, predicted)
    (row,) = table.rows()
    assert row["dipole_mae"] == pytest.approx(100) == row["dipole_rmse"]
    assert row["charges_rmse"] == 0.0
    assert [column.header for column in error_table({"data": [row]}).columns][-1] == "charges\nme"
    parity({"data": (frames, predictions)}, tmp_path / "parity.png")
    write_predictions(tmp_path / "out.extxyz", frames, predictions)
    text = (tmp_path / "out.extxyz").read_text().splitlines()
    assert "flashace_dipole=" in text[1]
    assert "flashace_charges:R:1" in text[1]
    assert "flashace_dipole=" not in text[6]
    with pytest.raises(FlashACEError, match=r"water.traj#0: dipole: expected a prediction of shape \(3,\), got no prediction"):
        ErrorTable().add(frames[0], {name: frames[0].label(name) for name in EVER})


def test_a_key_of_no_label_is_refused():
    with pytest.raises(FlashACEError, match="expected some of energy, forces, stress, got dipole; correct them"):
        LabelKeys(dipole="mu")


def test_a_frame_without_one_of_its_labels_keeps_the_others():
    frame = Labelled.of(Atoms("H"), {"energy": 1.0, "forces": np.zeros((1, 3)), "dipole": np.ones(3)}, "", Origin("a.xyz", 3))
    assert frame.stress is None
    assert frame.without("energy").label("energy") is None
    np.testing.assert_array_equal(frame.without("energy").label("dipole"), np.ones(3))
    assert frame.without("dipole").others == {}
    assert frame.without("dipole").energy == 1.0


def test_what_is_compared_are_the_components():
    tensor = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(LABELS["stress"].components(tensor + tensor.T, 7), [0, 8, 16, 12, 8, 4])
    assert LABELS["energy"].components(14.0, 7) == 2.0
    assert [label.error_unit for label in LABELS.values()] == ["meV/atom", "meV/Å", "meV/Å³"]
