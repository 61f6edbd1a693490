"""Each step of the compiled C, forwards and backwards, against the part of nn/ that it repeats and its slopes by autograd."""

import copy
import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from flashace.backends.c.backend import LAYOUT, SOURCE, compile_command, sources
from flashace.backends.compiler import cached_library
from flashace.backends.layout import c_header, pack
from flashace.backends.splines import splines_of
from flashace.nn.bounds import bounded, saturated
from flashace.nn.radial import polynomial_envelope

LANES = 8  # atoms side by side in float64
ROUNDING, SPLINES = 1e-12, 1e-5  # of the largest number of a result; what is exact but for rounding, and what comes from splines


class Compiled(NamedTuple):
    """Steps of a model in C, and the model."""

    library: ctypes.CDLL
    packed: ctypes.Structure
    held: list[Tensor]  # what `packed` points to
    model: nn.Module

    def call(self, step: str, p: int, pair: Tensor, arrays: list[Tensor]) -> None:
        layer = ctypes.addressof(self.packed) + p * ctypes.sizeof(self.packed.layers[0])
        addresses = [ctypes.c_void_p(x.data_ptr()) for x in (pair, *arrays)]
        n = ctypes.c_int64(len(pair))
        getattr(self.library, f"step_{step}")(ctypes.byref(self.packed), ctypes.c_void_p(layer), n, *addresses)


@pytest.fixture(scope="module")
def compiled(make_model) -> Compiled:
    """Two layers, of awkward sizes: several channels and values a head, lanes that are not filled."""
    shortest = dict.fromkeys(("C-C", "C-Si", "Si-Si"), 1.5)
    sizes = {"num_channels": 6, "hidden_dim": 9, "num_heads": 3, "key_dim": 5, "l_max": 2, "correlation": 3, "num_layers": 2}
    model = make_model(torch.float64, shortest_distances=shortest, **sizes).requires_grad_(False)
    model.energy_bound, generator = 3.0, torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "bias" in name or "scale" in name:  # alike at the start, so that one could stand for another
            parameter.normal_(generator=generator)
    held: list[Tensor] = []

    def hold(tensor: Tensor, dtype: torch.dtype) -> int:
        held.append(tensor.to(dtype, copy=True, memory_format=torch.contiguous_format))
        return held[-1].data_ptr()

    packed = pack(model, splines_of(model), hold)
    steps = [Path(__file__).with_name("steps.c"), *sources()]
    command = [*compile_command(), f"-I{SOURCE.parent}"]
    return Compiled(ctypes.CDLL(str(cached_library(command, steps, "steps-{}.so", (), {LAYOUT: c_header(model)}))), packed, held, model)


def per_edge(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def in_lanes(x: Tensor) -> Tensor:
    """[atoms, ...] -> [..., atoms], and back where x is the other."""
    return x.movedim(0, -1).clone(memory_format=torch.contiguous_format)


# Each gives what goes in, random, and what nn/ makes of it, in the axes of C but for the atoms, which come first.


def geometry(model, p, pair, random):
    r = torch.linspace(1.0, 1.01 * model.config.r_max, len(pair), dtype=torch.float64)  # below the shortest, beyond the cutoff
    return [normalize(random(len(pair), 3)) * r[:, None]], lambda v: model.geometry(v, model.shortest.flatten()[pair])


def repulsion(model, p, pair, random):
    r = torch.linspace(0.3, 1.5, len(pair), dtype=torch.float64)
    return [normalize(random(len(pair), 3)) * r[:, None]], lambda v: (model.repulsion.of_edges(v, pair // 2, pair % 2),)


def curves_of(model, p, pair, r):
    """As EdgeFeatures, [1, M, ...]."""
    basis = model.radial_basis(r) * polynomial_envelope(r, model.config.r_max, model.config.envelope_exponent)[:, None]
    found = [model.layers[p].edge_functions(basis[None, e : e + 1], z[None, None] // 2, z[None, None] % 2) for e, z in enumerate(pair)]
    return type(found[0])(*(torch.cat(part, dim=1) for part in zip(*found, strict=True)))


def splines(model, p, pair, random):
    def plain(r):
        edge = curves_of(model, p, pair, r)
        values = edge.values.unflatten(-1, (model.config.heads, -1)).mT
        return (torch.cat([part.flatten(2) for part in (edge.keys, edge.direction_keys, values, edge.radial)], dim=-1)[0],)

    return [torch.linspace(1.5, 0.99 * model.config.r_max, len(pair), dtype=torch.float64)], plain


def attention(model, p, pair, random):
    c, found = model.config, copy.deepcopy(model.layers[p].attention)
    found.query, found.direction_query = nn.Identity(), nn.Identity() if p else None
    r = torch.linspace(1.5, c.r_max, len(pair), dtype=torch.float64)  # one at the cutoff
    _, Y, f = model.geometry(normalize(random(len(pair), 3)) * r[:, None], None)

    def plain(r, f, Y, query, look):
        inputs = query.mT.flatten()[None], look[None] if p else None, curves_of(model, p, pair, r), f[None], Y[None]
        values, attended, plain = (x[0] for x in found(*inputs))
        return values.unflatten(0, (c.heads, -1)).mT, attended, plain

    return [r, f, Y, random(c.key_dim, c.heads), random((c.l_max + 1) ** 2 - 1, c.heads)], plain


def state_of(model, random):
    c = model.config
    return 3 * random(LANES, c.hidden_dim), 3 * random(LANES, (c.l_max + 1) ** 2 - 1, c.num_channels)


def queries(model, p, pair, random):
    found = model.layers[p].attention
    return [*state_of(model, random)], lambda s, t: (found.query(s).unflatten(-1, (model.config.heads, -1)).mT, found.direction_query(t))


def mix(model, p, pair, random):
    c, layer = model.config, model.layers[p]

    def plain(basis, s, t):
        s = s if p else s.detach()  # in the first layer it is given
        A = layer.mix_basis(basis.flatten(2))
        A = A + nn.functional.pad(layer.mix_scalars(s)[:, None], (0, 0, 0, A.shape[1] - 1))
        return (A + nn.functional.pad(layer.mix_tensors(t), (0, 0, 1, 0)) if p else A,)

    return [random(LANES, (c.l_max + 1) ** 2, 2, c.num_channels), *state_of(model, random)], plain


def product(model, p, pair, random):
    c, layer = model.config, model.layers[p]

    def plain(A):
        return (layer.product(bounded(A, layer.limits.basis)).unflatten(-1, (c.correlation, -1)).movedim(2, 1),)

    return [3 * random(LANES, (c.l_max + 1) ** 2, c.num_channels)], plain


def state(model, p, pair, random):
    c, layer = model.config, model.layers[p]

    def plain(orders, values, s, t):
        B = orders.movedim(1, 2).flatten(2)
        s = s + layer.scale_scalars[0] * (layer.scalars_out(B[:, 0]) + layer.values_out(values.mT.flatten(1)))
        return s, (t if p else 0) + layer.scale_tensors[0] * layer.tensors_out(B[:, 1:])

    orders = random(LANES, c.correlation, (c.l_max + 1) ** 2, c.num_channels)
    return [orders, random(LANES, c.hidden_dim // c.heads, c.heads), *state_of(model, random)], plain


def feed_forward(model, p, pair, random):
    layer = model.layers[p]

    def plain(s, t):
        ds, gate = layer.feed_forward(s, t)
        return s + layer.scale_scalars[1] * ds, t + layer.scale_tensors[1] * gate * t

    s, t = state_of(model, random)
    return [10 * s, t], plain


def readout(model, p, pair, random):
    return [state_of(model, random)[0]], lambda s: (model.readouts[p](s),)


def energy(model, p, pair, random):
    return [10 * random(len(pair))], lambda x: (model.atomic_energies[pair] + saturated(model.scale * x, model.energy_bound),)


EDGES, ATOMS = (per_edge, per_edge), (in_lanes, lambda x: x.movedim(-1, 0))
STEPS: dict[str, tuple[Callable, tuple[Callable, Callable], float]] = {
    "geometry": (geometry, EDGES, ROUNDING),
    "repulsion": (repulsion, EDGES, ROUNDING),
    "splines": (splines, EDGES, SPLINES),
    "attention": (attention, EDGES, SPLINES),
    "queries": (queries, ATOMS, ROUNDING),
    "mix": (mix, ATOMS, ROUNDING),
    "product": (product, ATOMS, ROUNDING),
    "state": (state, ATOMS, ROUNDING),
    "feed_forward": (feed_forward, ATOMS, ROUNDING),
    "readout": (readout, ATOMS, ROUNDING),
    "saturated": (energy, EDGES, ROUNDING),
}


CASES = [(step, p) for step in STEPS for p in (0, 1) if (step, p) != ("queries", 0)]  # in the first layer there is one for each element


@pytest.mark.parametrize(("step", "p"), CASES)
def test_a_step_and_its_slopes_are_those_of_torch(compiled, step, p):
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    make, (into, out_of), tolerance = STEPS[step]
    pair = torch.arange(12) % (2 if step == "saturated" else 4)
    inputs, plain = make(compiled.model, p, pair, random)
    outputs = plain(*(x.requires_grad_() for x in inputs))
    slopes = [random(*x.shape) for x in outputs]
    expected = torch.autograd.grad(outputs, inputs, slopes, allow_unused=True, materialize_grads=True)

    arrays = [[into(x.detach()) for x in group] for group in (inputs, [torch.zeros_like(x) for x in outputs], slopes)]
    arrays.append([torch.zeros_like(x) for x in arrays[0]])
    compiled.call(step, p, pair, [x for group in arrays for x in group])
    for what, found, wanted in (("value", arrays[1], outputs), ("slope", arrays[3], expected)):
        for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
            error = float((out_of(x) - y.detach()).abs().max())
            assert error <= tolerance * max(float(y.detach().abs().max()), 1e-3), f"{what} {i}"


def test_no_step_is_left_out():
    found = {name for path in sources() for name in re.findall(r"(\w+)_backward\(", path.read_text())}
    parts = {"map", "map_tensors", "bounded", "scores", "weights", "basis"}  # of these steps
    assert found - parts - {"layer", "block"} == set(STEPS) - {"repulsion", "saturated"}  # two that give value and slope in one
