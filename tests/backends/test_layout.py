"""Sizes, structs and packing: what C and Triton read lies where torch has put it."""

import re

import pytest
import torch

from flashace.backends.layout import LAYER, MODEL, c_header, couplings_of, pack, sizes_of, split_columns, structures
from flashace.backends.splines import splines_of


@pytest.fixture(scope="module")
def awkward(make_model):
    """Several channels and values a head."""
    sizes = {"num_channels": 6, "hidden_dim": 9, "num_heads": 3, "key_dim": 5, "l_max": 2, "correlation": 3, "num_layers": 2}
    return make_model(**sizes).requires_grad_(False)


def test_c_and_ctypes_have_the_same_fields_in_the_same_order(awkward):
    structs = re.findall(r"typedef struct {(.*?)} (\w+);", c_header(awkward), re.DOTALL)
    for (text, name), struct in zip(structs, structures(2), strict=True):
        assert name == struct.__name__
        assert re.findall(r"(\w+)(?:\[P\])?;(?: /\*|$)", text, re.MULTILINE) == [field for field, *_ in struct._fields_]


def test_the_columns_of_the_table(awkward):
    functions, sizes = awkward.layers[1].edge_functions, sizes_of(awkward)
    table = splines_of(awkward).tables[1]
    assert table.shape[-1] == sizes["W"]
    keys, direction_keys, values, radial = split_columns(table, sizes)
    assert [tuple(part.shape[3:]) for part in (keys, direction_keys, radial)] == [functions.shapes[i] for i in (0, 1, 3)]
    assert tuple(values.shape[3:]) == (3, 3)  # of a head, heads
    starts = [sizes[f"AT_{name}"] for name in ("KEYS", "DIRECTION_KEYS", "VALUES", "RADIAL")]
    for start, part in zip(starts, (keys, direction_keys, values, radial), strict=True):
        assert torch.equal(table[..., start], part.flatten(3)[..., 0])


def test_weights_are_packed_with_the_axes_of_their_rows(awkward):
    """Against an index for each axis, where torch has them in another order."""
    held = {}

    def hold(tensor, dtype):
        held[len(held) + 1] = tensor.to(dtype)
        return len(held)

    packed = pack(awkward, splines_of(awkward), hold)
    first, second = packed.layers
    attention, feed_forward = awkward.layers[1].attention, awkward.layers[1].feed_forward
    s = torch.arange(9, dtype=torch.float64)
    query = torch.einsum("f,fdh->hd", s, held[second.query]) + held[second.query_bias].T
    torch.testing.assert_close(query.flatten(), attention.query(s))
    x = torch.linspace(-1, 1, sizes_of(awkward)["X"], dtype=torch.float64)
    found = torch.einsum("x,xgf->gf", x, held[second.gate_and_value]) + held[second.gate_and_value_bias]
    torch.testing.assert_close(found.flatten(), feed_forward.gate_and_value(x))
    values = torch.einsum("vh,vhf->f", s.unflatten(0, (3, 3)).T, held[second.values_out])
    torch.testing.assert_close(values, awkward.layers[1].values_out(s))
    of_elements = awkward.layers[0].attention.query(awkward.embedding).unflatten(-1, (3, 5)).mT
    torch.testing.assert_close(held[packed.element_query], of_elements)
    absent = {row.name for row in LAYER if getattr(first, row.name) is None}
    assert absent == {row.name for row in LAYER if row.later}
    assert not [row.name for row in MODEL if getattr(packed, row.name) is None and not row.name.startswith("zbl")]


def test_couplings_are_the_products(awkward):
    order = awkward.layers[0].product.contractions[1]
    a, b = torch.randn(2, 4, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    path, i, j, m, coefficient = couplings_of(order)
    terms = coefficient[:, None] * order.weight[path] * a[:, i] * b[:, j]
    torch.testing.assert_close(torch.zeros_like(a).index_add(1, m, terms), order(a, b))
