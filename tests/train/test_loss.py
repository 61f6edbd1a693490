"""The loss against sums written out; what a frame does not have counts nothing."""

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from flashace.data.frames import Labelled, read_labelled
from flashace.data.origin import Origin
from flashace.potential.derivatives import predict
from flashace.structure.neighbors import build_graph
from flashace.train.loss import collate, loss_terms, make_item

UNITS = {"energy": 0.1, "forces": 2.0, "stress": 0.05}


def labelled(atoms, energy=True, forces=True, stress=True):
    rng = np.random.default_rng(len(atoms))
    s = rng.normal(size=(3, 3))
    return Labelled(
        atoms,
        -3.0 * len(atoms) if energy else None,
        rng.normal(size=(len(atoms), 3)) if forces else None,
        0.1 * (s + s.T) if stress else None,
        "",
        Origin("x", 0),
    )


def terms_of(model, frames):
    batch = collate([make_item(build_graph(f.atoms, model.config.r_max), f, model.dtype) for f in frames])
    return loss_terms(predict(model, batch.graph, model.dtype, create_graph=True), batch, UNITS)


def test_terms_are_mean_squares_in_their_units(model, structure):
    frames = [labelled(structure(name)) for name in ("crystal", "sheared", "slab in vacuum")]
    energy, forces, stress = [], [], []
    for f in frames:
        p = predict(model, build_graph(f.atoms, model.config.r_max), torch.float64)
        energy.append((p.energy.item() - f.energy) / len(f.atoms) / UNITS["energy"])
        forces.append((p.forces.numpy() - f.forces).ravel() / UNITS["forces"])
        stress.append((p.stress[0].numpy() - f.stress).ravel() / UNITS["stress"])
    expected = [np.mean(np.square(np.concatenate([np.ravel(x) for x in parts]))) for parts in (energy, forces, stress)]
    np.testing.assert_allclose(terms_of(model, frames).detach(), expected, rtol=1e-10)


def test_what_is_missing_counts_nothing(model, structure):
    crystal, slab, molecule = structure("crystal"), structure("slab in vacuum"), structure("molecule")
    full = [labelled(crystal), labelled(slab)]
    energies, forces, stresses = (
        terms_of(model, [labelled(crystal, **{n: n == name for n in ("energy", "forces", "stress")}), *full[1:]])
        for name in ("energy", "forces", "stress")
    )
    whole, slab_alone = terms_of(model, full), terms_of(model, full[1:])
    torch.testing.assert_close(energies, torch.stack([whole[0], slab_alone[1], slab_alone[2]]))
    torch.testing.assert_close(forces, torch.stack([slab_alone[0], whole[1], slab_alone[2]]))
    torch.testing.assert_close(stresses, torch.stack([slab_alone[0], slab_alone[1], whole[2]]))
    nothing = terms_of(model, [labelled(molecule, False, False, False)])
    assert nothing.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("missing", ["energy", "forces", "stress"])
def test_a_missing_label_has_no_gradient(make_model, structure, missing):
    model = make_model(num_layers=1, radial_trainable=True)
    frame = labelled(structure("crystal"), **{missing: False})
    terms = terms_of(model, [frame])
    index = ["energy", "forces", "stress"].index(missing)
    gradients = torch.autograd.grad(terms[index], list(model.parameters()), allow_unused=True)
    assert all(g is None or (g == 0).all() for g in gradients)


@pytest.mark.parametrize("names", [["molecule"], ["crystal", "molecule", "wire", "atom"], ["atom"], ["slab without cell height"]], ids=str)
def test_structures_without_a_volume_do_not_spoil_the_gradient(make_model, structure, names):
    """Their stress is NaN. It has no label; it must not come back as 0 · NaN through the backward pass."""
    model = make_model(radial_trainable=True)
    frames = [labelled(structure(name), stress=name == "crystal") for name in names]
    terms = terms_of(model, frames)
    assert terms.isfinite().all()
    total = (terms * torch.tensor([1.0, 2.0, 3.0])).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    assert any((g != 0).any() for g in gradients) or names == ["atom"]


def test_a_batch_is_its_frames(model, structure):
    frames = [labelled(structure(name), stress=name != "wire") for name in ("crystal", "wire", "primitive")]
    items = [make_item(build_graph(f.atoms, 4.0), f, torch.float64) for f in frames]
    batch = collate(items)
    assert batch.labels["energy"].tolist() == [f.energy for f in frames]
    assert batch.num_atoms.tolist() == [8, 4, 2]
    np.testing.assert_array_equal(batch.labels["forces"], np.concatenate([f.forces for f in frames]))
    assert batch.has["stress"].tolist() == [1, 0, 1]
    assert batch.has["forces"].shape == (14,)
    assert batch.graph.num_structures == 3


def test_energies_stay_in_float64(structure):
    item = make_item(build_graph(structure("atom"), 4.0), labelled(structure("atom")), torch.float32)
    assert (item.labels["energy"].dtype, item.labels["forces"].dtype, item.graph.edge_vec.dtype) == (
        torch.float64,
        torch.float32,
        torch.float32,
    )


def test_masks_of_a_file_reach_the_loss(model, structure, tmp_path):
    one, other = structure("crystal"), structure("primitive")
    one.calc = SinglePointCalculator(one, energy=-1.0, forces=np.ones((8, 3)), stress=np.zeros(6))
    other.calc = SinglePointCalculator(other, energy=-2.0)
    write(tmp_path / "d.extxyz", [one, other])
    frames, _ = read_labelled(tmp_path / "d.extxyz")
    batch = collate([make_item(build_graph(f.atoms, 4.0), f, torch.float64) for f in frames])
    assert (batch.has["energy"].tolist(), batch.has["stress"].tolist()) == ([1, 1], [1, 0])
    assert batch.has["forces"].tolist() == [1] * 8 + [0] * 2


def test_huber_is_torchs_twice_over_and_mse_for_small_errors(model, structure):
    frames = [labelled(structure(name)) for name in ("crystal", "sheared")]
    batch = collate([make_item(build_graph(f.atoms, model.config.r_max), f, model.dtype) for f in frames])
    prediction = predict(model, batch.graph, model.dtype)
    delta = 0.3
    energy = (prediction.energy - batch.labels["energy"]) / batch.num_atoms / UNITS["energy"]
    pairs = (
        energy,
        (prediction.forces - batch.labels["forces"]) / UNITS["forces"],
        (prediction.stress - batch.labels["stress"]) / UNITS["stress"],
    )
    expected = torch.stack([2 * torch.nn.functional.huber_loss(x, torch.zeros_like(x), delta=delta) for x in pairs])
    assert all((x.abs() > delta).any() for x in pairs)
    torch.testing.assert_close(loss_terms(prediction, batch, UNITS, delta), expected)
    torch.testing.assert_close(loss_terms(prediction, batch, UNITS, 1e9), loss_terms(prediction, batch, UNITS))
