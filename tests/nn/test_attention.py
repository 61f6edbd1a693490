"""Attention weights and the attended basis against formulas written out, and their limits."""

import pytest
import torch

from flashace.nn.attention import NeighbourAttention, attention_weights
from flashace.nn.edge_functions import EdgeFeatures
from flashace.nn.radial import polynomial_envelope

EXACT = 1e-12
N, M, H, K, F, D, L_MAX = 3, 5, 4, 8, 12, 2, 2  # atoms, neighbours, heads, channels, scalars, key width
LM = (L_MAX + 1) ** 2


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def envelope(n=N, m=M):
    return torch.rand(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


# Weights


def test_weights_are_the_formula():
    score, f = 3 * random(N, M, H), envelope()
    top = f[..., None] * score.exp()
    torch.testing.assert_close(attention_weights(score, f), top / (1 + top.sum(1, keepdim=True)), atol=EXACT, rtol=0)


def test_equal_scores_give_envelope_weights():
    """Attention switched off: what is left is plain ACE with the 1 of the atom itself."""
    f = envelope()
    weight = attention_weights(torch.zeros(N, M, H, dtype=torch.float64), f)
    torch.testing.assert_close(weight, (f / (1 + f.sum(1, keepdim=True)))[..., None].expand(N, M, H), atol=EXACT, rtol=0)


def test_weights_and_the_atom_itself_make_one():
    weight = attention_weights(5 * random(N, M, H), envelope())
    assert (weight >= 0).all()
    assert (weight.sum(1) < 1).all()


@pytest.mark.parametrize("score", [0.0, 3.0, 30.0])
def test_the_weight_of_a_lone_neighbour_vanishes_at_the_cutoff(score):
    r = torch.tensor(4.0, dtype=torch.float64) - torch.tensor([1e-2, 1e-4, 1e-6, 0.0], dtype=torch.float64)
    f = polynomial_envelope(r, 4.0, 6)[:, None]
    weight = attention_weights(torch.full((4, 1, 1), score, dtype=torch.float64), f)[:, 0, 0]
    assert weight[-1] == 0
    assert weight[-2] <= 2 * f[-2, 0] * torch.tensor(score).exp()
    assert (weight.diff() <= 0).all()


def test_an_arriving_neighbour_changes_nothing():
    score, f = random(N, M, H), envelope()
    f[:, 2] = 0.0
    rest = [0, 1, 3, 4]
    weight = attention_weights(score, f)
    assert (weight[:, 2] == 0).all()
    torch.testing.assert_close(weight[:, rest], attention_weights(score[:, rest], f[:, rest]), atol=EXACT, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_huge_scores_do_not_overflow(dtype, size):
    score, f = size * random(N, M, H).to(dtype), envelope().to(dtype)
    score.requires_grad_(), f.requires_grad_()
    weight = attention_weights(score, f)
    assert weight.isfinite().all()
    assert (weight.sum(1) <= 1 + 1e-6).all()
    for gradient in torch.autograd.grad(weight.square().sum(), (score, f)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("f", [0.0, 1e-30], ids=["outside", "just inside"])
@pytest.mark.parametrize("size", [89.0, 100.0, 1000.0])
def test_a_huge_score_at_the_cutoff_does_not_overflow(dtype, f, size):
    """Empty slots stand at the cutoff and have a score like any pair: 0 times infinity must not come out."""
    score = torch.tensor([1.0, size], dtype=dtype).reshape(1, 2, 1).requires_grad_()
    at = torch.tensor([[0.5, f]], dtype=dtype, requires_grad=True)
    weight = attention_weights(score, at)
    assert weight.isfinite().all()
    if f == 0.0:
        expected = 0.5 * torch.tensor(1.0, dtype=dtype).exp()
        torch.testing.assert_close(weight.flatten(), torch.stack([expected / (1 + expected), expected * 0]))
    (gradient,) = torch.autograd.grad(weight[0, 0, 0], score)
    assert gradient.isfinite().all()


def test_the_derivative_of_the_weights():
    score, f = random(2, 3, 2).requires_grad_(), envelope(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(attention_weights, (score, f))
    assert torch.autograd.gradgradcheck(attention_weights, (score, f))


# The attended and the plain basis


def edges():
    return EdgeFeatures(random(N, M, D), random(N, M, L_MAX, H), random(N, M, F), random(N, M, L_MAX + 1, K))


def attention(has_tensors=True, num_heads=H):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = NeighbourAttention(F, K, num_heads, D, L_MAX, 7.0, has_tensors, own_weight=3.0).double()
        torch.nn.init.normal_(module.query.bias)
    return module


@pytest.mark.parametrize("has_tensors", [True, False])
def test_attention_is_the_formula(has_tensors):
    """Steps 2 to 4 of DESIGN section 2, with loops over atoms, neighbours, heads and channels."""
    module, edge, f, Y = attention(has_tensors), edges(), envelope(), random(N, M, LM)
    s, t = random(N, F), random(N, LM - 1, K) if has_tensors else None
    q = module.query(s).reshape(N, H, D)
    Q = module.direction_query(t) if has_tensors else None
    score = torch.zeros(N, M, H, dtype=torch.float64)
    for i in range(N):
        for j in range(M):
            for h in range(H):
                score[i, j, h] = q[i, h] @ edge.keys[i, j] / D**0.5
                for l in range(1, L_MAX + 1 if has_tensors else 0):
                    look = Q[i, l**2 - 1 : (l + 1) ** 2 - 1, h] @ Y[i, j, l**2 : (l + 1) ** 2]
                    score[i, j, h] += edge.direction_keys[i, j, l - 1, h] * look / (2 * l + 1) ** 0.5
    alpha = torch.zeros_like(score)
    for i in range(N):
        for h in range(H):
            total = 3.0 + sum(f[i, k] * score[i, k, h].exp() for k in range(M))
            for j in range(M):
                alpha[i, j, h] = f[i, j] * score[i, j, h].exp() / total
    values, attended, plain = module(s, t, edge, f, Y)
    expected_values, expected_attended, expected_plain = (torch.zeros_like(x) for x in (values, attended, plain))
    for i in range(N):
        for j in range(M):
            for c in range(F):
                expected_values[i, c] += alpha[i, j, c // (F // H)] * edge.values[i, j, c]
            for l in range(L_MAX + 1):
                for m in range(l**2, (l + 1) ** 2):
                    for k in range(K):
                        RY = edge.radial[i, j, l, k] * Y[i, j, m]
                        expected_attended[i, m, k] += alpha[i, j, k // (K // H)] * RY
                        expected_plain[i, m, k] += f[i, j] * RY / 7.0**0.5
    torch.testing.assert_close(values, expected_values, atol=EXACT, rtol=0)
    torch.testing.assert_close(attended, expected_attended, atol=EXACT, rtol=0)
    torch.testing.assert_close(plain, expected_plain, atol=EXACT, rtol=0)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_each_head_attends_for_its_own_group_of_channels(num_heads):
    """Changing the query of one head changes the channels and values of that head alone."""
    module = attention(has_tensors=False, num_heads=num_heads)
    edge = edges()._replace(direction_keys=random(N, M, L_MAX, num_heads))
    inputs = random(N, F), None, edge, envelope(), random(N, M, LM)
    values, attended, plain = module(*inputs)
    module.query.bias.data.view(num_heads, D)[0] += 1.0
    new_values, new_attended, new_plain = module(*inputs)
    changed = (new_attended != attended).any(1).any(0)
    assert changed.tolist() == [k < K // num_heads for k in range(K)]
    assert (new_values != values).any(0).tolist() == [c < F // num_heads for c in range(F)]
    assert (new_plain == plain).all()


def test_order_of_neighbours_does_not_matter():
    module, edge, f, Y = attention(), edges(), envelope(), random(N, M, LM)
    s, t = random(N, F), random(N, LM - 1, K)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = EdgeFeatures(*(part[:, order] for part in edge))
    for one, other in zip(module(s, t, edge, f, Y), module(s, t, shuffled, f[:, order], Y[:, order]), strict=True):
        torch.testing.assert_close(one, other, atol=EXACT, rtol=0)
