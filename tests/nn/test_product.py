"""The product basis against explicit sums over e3nn's coupling coefficients, and its symmetry."""

import pytest
import torch
from e3nn import o3

from flashace.nn.bounds import bounded
from flashace.nn.product import Contraction, ProductBasis

EXACT = 1e-11
N, K = 3, 4


def basis(l_max, seed=0):
    return torch.randn(N, (l_max + 1) ** 2, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def product(l_max, correlation):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ProductBasis(K, l_max, correlation).double()


def even_paths(l_max, symmetric):
    return [
        (l1, l2, l)
        for l in range(l_max + 1)
        for l1 in range(l_max + 1)
        for l2 in range(l_max + 1)
        if abs(l1 - l2) <= l <= l1 + l2 and (l1 + l2 + l) % 2 == 0 and (l1 <= l2 or not symmetric)
    ]


def explicit(a, b, weight, l_max, symmetric):
    """Σ over paths and components, one coefficient at a time."""
    out = torch.zeros_like(a)
    for p, (l1, l2, l) in enumerate(even_paths(l_max, symmetric)):
        cg = o3.wigner_3j(l1, l2, l, dtype=torch.float64) * (2 * l + 1) ** 0.5
        for m1 in range(2 * l1 + 1):
            for m2 in range(2 * l2 + 1):
                for m in range(2 * l + 1):
                    out[:, l**2 + m] += weight[p] * cg[m1, m2, m] * a[:, l1**2 + m1] * b[:, l2**2 + m2]
    return out


@pytest.mark.parametrize(("l_max", "correlation"), [(1, 2), (1, 4), (2, 3), (3, 3)])
def test_the_product_is_the_explicit_sum(l_max, correlation):
    module, A = product(l_max, correlation), basis(l_max)
    orders = [A]
    for nu, contraction in enumerate(module.contractions, start=2):
        orders.append(explicit(orders[-1], A, contraction.weight, l_max, symmetric=nu == 2))
    torch.testing.assert_close(module(A), torch.cat(orders, dim=-1), atol=EXACT, rtol=1e-12)


def test_each_order_is_bounded_before_it_goes_on():
    module, A = product(2, 3), basis(2)
    module.limit = 0.7
    second = bounded(explicit(A, A, module.contractions[0].weight, 2, symmetric=True), 0.7)
    third = bounded(explicit(second, A, module.contractions[1].weight, 2, symmetric=False), 0.7)
    torch.testing.assert_close(module(A), torch.cat([A, second, third], dim=-1), atol=EXACT, rtol=1e-12)


@pytest.mark.parametrize(("l_max", "correlation"), [(1, 3), (2, 4), (3, 3), (4, 2)])
def test_the_product_rotates_and_reflects(turns, l_max, correlation):
    module, A = product(l_max, correlation), basis(l_max)
    for _, D in turns(l_max):
        rotated = torch.einsum("ml,nlk->nmk", D, A)
        expected = torch.einsum("ml,nlk->nmk", D, module(A))
        torch.testing.assert_close(module(rotated), expected, atol=1e-9, rtol=1e-10)


def test_order_one_is_the_basis_itself():
    A = basis(2)
    assert torch.equal(product(2, 1)(A), A)
    assert list(product(2, 1).parameters()) == []


@pytest.mark.parametrize("correlation", [1, 2, 3, 5])
def test_each_order_is_of_its_degree(correlation):
    """B^ν of 2 A is 2^ν B^ν."""
    module, A = product(2, correlation), basis(2)
    for nu, (one, two) in enumerate(zip(module(A).split(K, dim=-1), module(2 * A).split(K, dim=-1), strict=True), start=1):
        torch.testing.assert_close(two, 2**nu * one, atol=EXACT, rtol=1e-12)


def test_the_order_of_equal_factors_does_not_matter():
    """ν = 2 leaves out the paths with l1 > l2: with equal factors they say nothing new."""
    full, A = Contraction(K, 3, symmetric=False).double(), basis(3)
    short = Contraction(K, 3, symmetric=True).double()
    everything, kept = even_paths(3, symmetric=False), even_paths(3, symmetric=True)
    assert len(short.weight) == len(kept) < len(everything) == len(full.weight)
    with torch.no_grad():
        for p, (l1, l2, l) in enumerate(kept):
            w = full.weight[everything.index((l1, l2, l))].clone()
            if l1 < l2:
                sign = torch.sign((o3.wigner_3j(l1, l2, l) * o3.wigner_3j(l2, l1, l).transpose(0, 1)).sum())
                w += sign * full.weight[everything.index((l2, l1, l))]
            short.weight[p] = w
    torch.testing.assert_close(short(A, A), full(A, A), atol=EXACT, rtol=1e-12)


def test_channels_do_not_mix():
    module, A = product(2, 3), basis(2)
    changed = A.clone()
    changed[..., 1] += 1.0
    same = (module(A) == module(changed)).all(0).all(0).reshape(3, K)
    assert same.tolist() == [[True, False, True, True]] * 3


def test_unit_inputs_give_outputs_of_unit_scale():
    A = torch.randn(2000, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = ProductBasis(8, 2, 3).double()(A).split(8, dim=-1)
    assert all(0.3 < part.square().mean() ** 0.5 < 4 for part in parts)
