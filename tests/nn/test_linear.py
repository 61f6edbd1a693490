"""Linear maps: the formula, the scale they keep, and what they do not mix."""

import pytest
import torch

from flashace.nn.linear import Linear, TensorLinear


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("blocks", [1, 4])
def test_linear_is_the_formula(blocks):
    """Blocks are matrices side by side: the outputs of each come one after another."""
    module, x = Linear(3, 8, bias=True, blocks=blocks).double(), torch.randn(5, 2, 3).double()
    torch.nn.init.normal_(module.bias)
    matrices = module.weight.reshape(blocks, 3, 8 // blocks)
    expected = torch.cat([x @ matrix for matrix in matrices], dim=-1) + module.bias
    torch.testing.assert_close(module(x), expected, atol=1e-14, rtol=0)
    assert Linear(3, 8).bias is None


@pytest.mark.parametrize("first", [0, 1])
def test_tensor_linear_mixes_channels_and_no_components(first):
    module, t = TensorLinear(3, 5, 2, first=first).double(), torch.randn(4, 9 - first, 3).double()
    start = 0
    for l, weight in zip(range(first, 3), module.weights, strict=True):
        rows = slice(start, start + 2 * l + 1)
        torch.testing.assert_close(module(t)[:, rows], torch.einsum("nmk,kc->nmc", t[:, rows], weight), atol=1e-14, rtol=0)
        start += 2 * l + 1
    assert start == t.shape[1]


def test_tensor_linear_turns_with_its_input(turns):
    module, t = TensorLinear(3, 5, 3).double(), torch.randn(4, 16, 3).double()
    for _, D in turns(3):
        turned = torch.einsum("ml,nlk->nmk", D, t)
        torch.testing.assert_close(module(turned), torch.einsum("ml,nlk->nmk", D, module(t)), atol=1e-10, rtol=0)


@pytest.mark.parametrize("blocks", [1, 5])
def test_outputs_have_the_scale_of_inputs(blocks):
    assert Linear(300, 400, blocks=blocks)(torch.randn(500, 300)).std().item() == pytest.approx(1.0, abs=0.05)
    assert TensorLinear(50, 80, 2)(torch.randn(100, 9, 50)).std().item() == pytest.approx(1.0, abs=0.05)
