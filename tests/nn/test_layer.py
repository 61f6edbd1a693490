"""A layer turns with its input, does what it says without neighbours, and starts calm at any depth."""

import pytest
import torch

from flashace.nn.layer import FeedForward, Layer
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.structure.neighbors import build_graph

EXACT = 1e-10
N, M = 3, 6


def state(layer_model, seed=0):
    """Random scalars and tensors, and a random neighbourhood."""
    c, some = layer_model.config, torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=some)

    vec = 1.2 * draw(N, M, 3)
    r = vec.norm(dim=-1).clamp(max=c.r_max)
    envelope = (1 - r / c.r_max) ** 3
    basis = layer_model.radial_basis(r) * envelope[..., None]
    s, t = draw(N, c.hidden_dim), draw(N, (c.l_max + 1) ** 2 - 1, c.num_channels)
    return s, t, basis, envelope, vec, torch.arange(N)[:, None] % 2, torch.arange(N * M).reshape(N, M) % 2


@pytest.mark.parametrize("l_max", [1, 2, 3])
@pytest.mark.parametrize("first", [True, False], ids=["first layer", "later layer"])
def test_scalars_stay_and_tensors_turn(make_model, turns, l_max, first):
    model = make_model(l_max=l_max)
    layer: Layer = model.layers[0 if first else 1]
    s, t, basis, envelope, vec, centre, neighbour = state(model)
    for matrix, full in turns(l_max):
        D, results = full[1:, 1:], []
        for v, t_in in ((vec, t), (vec @ matrix.T, torch.einsum("ml,nlk->nmk", D, t))):
            Y = model.harmonics(v / v.norm(dim=-1, keepdim=True))
            results.append(layer(s, None if first else t_in, basis, envelope, Y, centre, neighbour))
        (s_one, t_one), (s_two, t_two) = results
        torch.testing.assert_close(s_two, s_one, atol=EXACT, rtol=EXACT)
        torch.testing.assert_close(t_two, torch.einsum("ml,nlk->nmk", D, t_one), atol=EXACT, rtol=EXACT)
        assert t_one.abs().max() > 1e-3


def test_a_layer_reads_its_tensors(make_model):
    """Directions already known change what is attended to and what comes out."""
    model = make_model()
    s, t, basis, envelope, vec, centre, neighbour = state(model)
    Y = model.harmonics(vec / vec.norm(dim=-1, keepdim=True))
    one, _ = model.layers[1](s, t, basis, envelope, Y, centre, neighbour)
    other, _ = model.layers[1](s, -t, basis, envelope, Y, centre, neighbour)
    assert (one - other).abs().max() > 1e-3


def test_layer_scale_zero_is_the_identity(make_model):
    model = make_model()
    s, t, basis, envelope, vec, centre, neighbour = state(model)
    Y = model.harmonics(vec / vec.norm(dim=-1, keepdim=True))
    layer = model.layers[1]
    layer.scale_scalars.data.zero_()
    layer.scale_tensors.data.zero_()
    s_new, t_new = layer(s, t, basis, envelope, Y, centre, neighbour)
    assert torch.equal(s_new, s)
    assert torch.equal(t_new, t)


def test_the_feed_forward_reads_invariants_only(turns):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = FeedForward(6, 4, 2).double()
        s, t = torch.randn(N, 6).double(), torch.randn(N, 8, 4).double()
    ds, factor = module(s, t)
    D = turns(2)[1][1][1:, 1:]
    ds_turned, factor_turned = module(s, torch.einsum("ml,nlk->nmk", D, t))
    torch.testing.assert_close(ds, ds_turned, atol=EXACT, rtol=0)
    torch.testing.assert_close(factor, factor_turned, atol=EXACT, rtol=0)
    assert (factor[:, :3] == factor[:, :1]).all()  # one factor for all components of a degree
    assert (factor[:, 3:] == factor[:, 3:4]).all()
    assert (factor[:, 0] != factor[:, 3]).any()


def test_the_state_keeps_its_size_at_any_depth(structure):
    """As initialised, so not the loud model of the other tests: depth 6 starts as calmly as depth 1."""
    sizes = {depth: rms_of_the_state(depth, structure("molecule")) for depth in (1, 2, 6)}
    for s, t in sizes.values():
        assert 0.5 < s < 2
        assert 0.2 < t / sizes[1][1] < 5


def rms_of_the_state(depth, atoms):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AttentionACE(ModelConfig(num_layers=depth), {"Si": 0.0, "C": 0.0}, avg_num_neighbors=7.0, dtype=torch.float64)
    states = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: states.append(output))
    model(build_graph(atoms, 5.0))
    return [float(x.detach().square().mean() ** 0.5) for x in states[-1]]
