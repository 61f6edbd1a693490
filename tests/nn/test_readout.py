"""The readout is its formula, one number per atom."""

import torch

from flashace.nn.readout import Readout


def test_readout_is_the_formula():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        readout, s = Readout(6, width=4).double(), torch.randn(5, 6).double()
        torch.nn.init.normal_(readout.hidden.bias)
    x = readout.hidden(s)
    expected = readout.linear(s) + readout.out(x * torch.sigmoid(x))
    torch.testing.assert_close(readout(s), expected[:, 0], atol=1e-14, rtol=0)
    torch.testing.assert_close(readout(s[2:3]), expected[2:3, 0], atol=1e-14, rtol=0)
