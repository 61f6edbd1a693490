"""Random rotations: uniform, repeatable, and one function that turns everything with a direction as e3nn's Wigner matrices do."""

import numpy as np
import pytest
import torch
from e3nn import o3

from flashace.data.frames import Labelled
from flashace.potential.derivatives import predict
from flashace.structure.neighbors import build_graph
from flashace.train.augment import random_rotation, rotate
from flashace.train.loss import make_item

EXACT = 1e-10


@pytest.fixture
def item(structure):
    atoms, rng = structure("sheared"), np.random.default_rng(0)
    s = rng.normal(size=(3, 3))
    frame = Labelled(atoms, -3.0, rng.normal(size=(len(atoms), 3)), s + s.T, "", "x#0")
    return make_item(build_graph(atoms, 4.0), frame, torch.float64)


def test_rotations_are_proper_uniform_and_repeatable():
    rotations = torch.stack([random_rotation(1, epoch, i) for epoch in range(40) for i in range(50)])
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(2000, 3, 3), rtol=0, atol=1e-12)
    assert (torch.linalg.det(rotations) > 0).all()
    assert len(rotations.unique(dim=0)) == 2000
    for l, dim in ((1, 3), (2, 5)):  # over the group, Wigner matrices average to zero and their squares to 1 / (2l + 1)
        D = o3.Irrep(l, 1).D_from_matrix(rotations.float())
        assert D.mean(0).abs().max() < 0.05
        assert (D.square().mean(0) - 1 / dim).abs().max() < 0.05
    assert torch.equal(random_rotation(1, 2, 3), random_rotation(1, 2, 3))
    assert not any(torch.equal(random_rotation(1, 2, 3), random_rotation(*other)) for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)))


def test_everything_turns_as_the_wigner_matrices_say(item, turns):
    """Vectors are 1o; a symmetric tensor is 0e + 2e, in the basis that e3nn gives it."""
    rotation, D = turns(2)[0]
    if torch.linalg.det(rotation) < 0:
        rotation, D = turns(2)[1]
    turned = rotate(item, rotation)
    harmonics = [o3.spherical_harmonics([0, 1, 2], b.graph.edge_vec, normalize=True) for b in (item, turned)]
    torch.testing.assert_close(harmonics[1], harmonics[0] @ D.T, rtol=0, atol=EXACT)
    D1, D2 = D[1:4, 1:4], torch.block_diag(torch.ones(1, 1, dtype=D.dtype), D[4:, 4:])
    for name in ("cell", "edge_vec"):
        before, after = (getattr(b.graph, name) for b in (item, turned))
        torch.testing.assert_close(after, before @ D1.T, rtol=0, atol=EXACT)
    torch.testing.assert_close(turned.labels["forces"], item.labels["forces"] @ D1.T, rtol=0, atol=EXACT)
    with torch.random.fork_rng():
        Q = o3.ReducedTensorProducts("ij=ji", i="1o").change_of_basis.double()
    spherical = [torch.einsum("aij,bij->ba", Q, b.labels["stress"]) for b in (item, turned)]
    torch.testing.assert_close(spherical[1], spherical[0] @ D2.T, rtol=0, atol=1e-5)  # e3nn makes this basis in float32


def test_a_turned_item_is_the_turned_structure(item, structure, model):
    """The same neighbours, and what the model says of it is turned too."""
    rotation = random_rotation(0, 0, 0)
    turned = rotate(item, rotation)
    atoms = structure("sheared")
    atoms.positions, atoms.cell = atoms.positions @ rotation.numpy().T, atoms.cell.array @ rotation.numpy().T
    fresh = build_graph(atoms, 4.0)
    ours, theirs = (sorted(map(tuple, g.edge_vec.round(decimals=8).tolist())) for g in (turned.graph, fresh))
    np.testing.assert_allclose(ours, theirs, atol=1e-7)
    assert all(getattr(turned.graph, name) is getattr(item.graph, name) for name in ("edge_index", "first", "slots", "numbers"))
    before, after = (predict(model, graph, torch.float64) for graph in (item.graph, turned.graph))
    as_labels = rotate(
        make_item(item.graph, Labelled(atoms, 0.0, before.forces.numpy(), before.stress[0].numpy(), "", ""), torch.float64), rotation
    )
    torch.testing.assert_close(after.energy, before.energy, rtol=0, atol=1e-9)
    torch.testing.assert_close(after.forces, as_labels.labels["forces"], rtol=0, atol=1e-9)
    torch.testing.assert_close(after.stress, as_labels.labels["stress"], rtol=0, atol=1e-9)
