"""Triton's programs against the plain model that they repeat: on a GPU where there is one, else in Triton's interpreter."""

import copy
import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from flashace import FlashACE, FlashACEError
from flashace.structure.neighbors import build_graph

pytest.importorskip("triton")
from flashace.backends import choice
from flashace.backends.splines import splines_of
from flashace.backends.triton import backend as cuda
from flashace.backends.triton.backend import CudaKernel, Edges, FusedAttention
from flashace.nn.product import Contraction

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = [
    {"correlation": 2, "key_dim": 2, "hidden_dim": 4},
    {"num_layers": 1, "correlation": 1, "l_max": 1, "zbl": False},
    {"num_layers": 3, "correlation": 3, "l_max": 1, "num_channels": 6, "hidden_dim": 9, "num_heads": 3, "key_dim": 2},
    {"num_layers": 2, "correlation": 1, "l_max": 3, "num_channels": 2, "hidden_dim": 3, "num_heads": 1, "key_dim": 1},
]


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    """Four channels and two neighbours at a time: an atom with three has to go on to a second block, which is not full."""
    monkeypatch.setattr(cuda, "TILE", 8)


@pytest.fixture(scope="module")
def graph():
    """Atoms of both elements with three, two and no neighbours; one pair so close that ZBL acts."""
    positions = [[0, 0, 0], [0.9, 0.3, -0.2], [-1.5, 2.0, 1.1], [0.5, -3.3, 1.2], [30, 0, 0]]
    graph = build_graph(Atoms("SiCSiCSi", positions), 4.0)
    assert torch.bincount(graph.edge_index[0], minlength=5).tolist() == [3, 3, 2, 2, 0]
    return graph.to(DEVICE)


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE)


def exact(model, dtype=torch.float64):
    """The same weights in another precision, and numbers that float32 holds."""
    for parameter in model.parameters():
        parameter.data = parameter.data.float().double()
    other = copy.deepcopy(model).to(dtype)
    other.atomic_energies, other.terms = model.atomic_energies, model.terms
    return other.to(DEVICE)


def evaluated(model, graph, dtype, kernel=None):
    """Energies, slopes and features."""
    edge_vec = graph.edge_vec.to(dtype).requires_grad_()
    energies, features = model.with_features(graph.with_edge_vec(edge_vec), interaction=kernel)
    return energies.detach(), torch.autograd.grad(energies.sum(), edge_vec)[0].double(), features.double()


def largest(x):
    return float(x.abs().max())


@pytest.fixture
def untried(monkeypatch):
    """The interpreter has nothing to compile, and would take its time for the pair of atoms."""
    monkeypatch.setattr(CudaKernel, "_try", lambda self, model: None)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernel_is_the_plain_model(make_model, graph, options):
    """In float64 up to the splines; in float32 not farther from the same in float64 than twice what the plain path is."""
    model = make_model(shortest_distances={"C-Si": 1.4, "Si-Si": 2.0}, **options)
    double, single = exact(model), exact(model, torch.float32)
    plain = evaluated(double, graph, torch.float64)
    fused = evaluated(double, graph, torch.float64, CudaKernel(double))
    for a, b in zip(plain, fused, strict=True):
        assert largest(a - b) < 1e-5 * largest(a - a[-1])  # the last atom is alone
    rough = evaluated(single, graph, torch.float32)
    found = evaluated(single, graph, torch.float32, CudaKernel(single))
    for a, b, c, d in zip(plain, rough, fused, found, strict=True):
        assert largest(d - c) < 2 * largest(b - a) + 1e-6 * largest(a - a[-1])


@pytest.mark.usefixtures("untried")
def test_an_atom_alone_has_its_reference_energy_exactly(make_model):
    model = make_model(num_layers=1).to(DEVICE)
    alone = build_graph(Atoms("SiC", [[0, 0, 0], [0, 0, 50]]), 4.0).to(DEVICE)
    energies, slopes, features = evaluated(model, alone, torch.float64, CudaKernel(model))
    assert torch.equal(energies, model.atomic_energies[model.element_index[alone.numbers]])
    assert slopes.shape == (0, 3)
    assert not features.any()


# One layer's attention


@pytest.fixture
def attention(make_model):
    """The attention of a second layer, and it fused."""
    model = make_model(num_heads=2, l_max=2, num_channels=4, hidden_dim=6, key_dim=2).to(DEVICE).requires_grad_(False)
    return model, model.layers[1], FusedAttention(model, model.layers[1], splines_of(model).tables[1])


def edges_of(model, random, first, r):
    unit = torch.nn.functional.normalize(random(len(r), 3), dim=1)
    vec = unit * torch.tensor(r, dtype=torch.float64, device=DEVICE)[:, None]
    r, Y, envelope = model.geometry(vec, None)
    pair = torch.arange(len(r), dtype=torch.int32, device=DEVICE) % 4
    return Edges(torch.tensor(first, device=DEVICE), pair, r, envelope, Y)


def plain_attention(model, layer, edges, s, t):
    """Of atoms one by one."""
    basis = model.radial_basis(edges.r) * edges.envelope[:, None]
    found = []
    for i, (start, end) in enumerate(zip(edges.first[:-1].tolist(), edges.first[1:].tolist(), strict=True)):
        _, pair, _, f, Y = (x[None, start:end] for x in edges)
        pairs = [pair[:, k : k + 1].long() for k in range(end - start)]
        features = [layer.edge_functions(basis[None, start + k : start + k + 1], x // 2, x % 2) for k, x in enumerate(pairs)]
        edge = type(features[0])(*(torch.cat(x, dim=1) for x in zip(*features, strict=True)))
        found.append(layer.attention(s[i : i + 1], t[i : i + 1], edge, f, Y))
    return [torch.cat(x) for x in zip(*found, strict=True)]


def test_neighbours_at_the_cutoff_and_beyond_count_for_nothing(attention, random):
    model, layer, fused = attention
    s, t = random(2, 6), random(2, 8, 4)
    edges = edges_of(model, random, [0, 4, 5], [2.0, 4.0, 3.0, 4.5, 4.0])
    found = fused(s, t, edges)
    for a, b in zip(found, plain_attention(model, layer, edges, s, t), strict=True):
        assert largest(a - b) < 1e-6
    assert not any(x[1].any() for x in found)
    inside = torch.tensor([0, 2], device=DEVICE)
    alone = fused(s, t, Edges(torch.tensor([0, 2, 2], device=DEVICE), *(x[inside] for x in edges[1:])))
    for a, b in zip(found, alone, strict=True):
        assert largest(a - b) < 1e-12


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_large_scores_do_not_overflow(attention, random, size):
    model, layer, fused = attention
    s, t = size * random(3, 6), size * random(3, 8, 4)
    edges = edges_of(model, random, [0, 3, 5, 7], [2.0, 3.9999, 2.5, 2.1, 4.0, 3.0, 3.0])
    for a, b in zip(fused(s, t, edges), plain_attention(model, layer, edges, s, t), strict=True):
        assert largest(a - b) < 1e-6 * size


def test_slopes_of_the_attention(attention, random):
    """Along queries, looks, distances, envelope and harmonics, in float64, against differences of what it gives."""
    model, _, fused = attention
    edges = edges_of(model, random, [0, 3, 3, 5], [2.0, 3.5, 2.5, 2.2, 3.0])
    inputs = [random(3, 2, 4), random(3, 8, 4), *(x.clone() for x in edges[2:])]

    def outputs(query, look, r, envelope, Y):
        return cuda._Attend.apply(query, look, r, envelope, Y, edges, fused._table, fused._attention.own_weight, fused._sizes)

    for x in inputs:
        x.requires_grad_()
    torch.autograd.gradcheck(outputs, inputs, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)
    torch.autograd.gradcheck(lambda *x: outputs(inputs[0].detach(), None, *x), inputs[2:], eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


# The products


@pytest.mark.parametrize(("l_max", "symmetric"), [(1, True), (2, False), (3, True)])
def test_products_and_their_slopes(random, l_max, symmetric):
    contraction = Contraction(3, l_max, symmetric).double().to(DEVICE).requires_grad_(False)
    a, b, g = (random(3, (l_max + 1) ** 2, 3) for _ in range(3))
    a.requires_grad_()
    b.requires_grad_()
    plain = contraction(a, b)
    fused = cuda._Contract.apply(a, b, contraction.weight, cuda.terms_of(contraction))
    assert largest(fused - plain) < 1e-13 * largest(plain)
    for x, y in zip(torch.autograd.grad(fused, (a, b), g), torch.autograd.grad(plain, (a, b), g), strict=True):
        assert largest(x - y) < 1e-13 * largest(y)


# Through the calculator


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Calculators take the path that they take on a GPU; `.used` has an entry for each evaluation."""
    used, call = [], CudaKernel.__call__
    monkeypatch.setattr(CudaKernel, "__call__", lambda self, *inputs: used.append(1) or call(self, *inputs))
    monkeypatch.setattr(cuda, "_kernels", {})
    monkeypatch.setattr(choice, "_compiled", cuda.kernel_of)
    monkeypatch.setattr(choice, "_refused", set())
    return used


@pytest.fixture
def small_file(make_model, tmp_path):
    from flashace.potential.model_file import save_model

    save_model(tmp_path / "model.pt", make_model(num_layers=1, correlation=2, l_max=1), {})
    return tmp_path / "model.pt"


@pytest.mark.filterwarnings("ignore:Si-C|C-Si")
def test_auto_is_compiled(small_file, on_a_gpu):
    atoms = Atoms("SiCC", [[0, 0, 0], [0, 0, 1.9], [1.7, 0, 0.2]], cell=[9, 9, 9], pbc=True)
    forces, stress = {}, {}
    for kernel in ("auto", "plain", "compiled"):
        for dtype in ("float32", "float64"):
            on_a_gpu.clear()
            atoms.calc = FlashACE(small_file, device=DEVICE, dtype=dtype, kernel=kernel)
            forces[kernel, dtype], stress[kernel, dtype] = atoms.get_forces(), atoms.get_stress()
            assert bool(on_a_gpu) == (kernel != "plain")
    for found in (forces, stress):
        np.testing.assert_allclose(found["compiled", "float64"], found["plain", "float64"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["auto", "float32"], found["plain", "float32"], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Si-C|C-Si")
def test_a_kernel_that_does_not_compile_is_named_and_auto_goes_on(small_file, on_a_gpu, monkeypatch):
    def fails(*inputs):
        raise RuntimeError("ptxas went wrong")

    monkeypatch.setattr(CudaKernel, "__call__", fails)
    atoms = Atoms("SiC", [[0, 0, 0], [0, 0, 1.9]])
    atoms.calc = FlashACE(small_file, device=DEVICE)
    with pytest.warns(UserWarning, match=r"kernel: Triton .* could not compile .*ptxas went wrong; .*The plain path is taken"):
        found = atoms.get_forces()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        atoms.rattle(0.01)
        atoms.get_forces()
    plain = Atoms("SiC", [[0, 0, 0], [0, 0, 1.9]], calculator=FlashACE(small_file, device=DEVICE, kernel="plain"))
    np.testing.assert_array_equal(found, plain.get_forces())
    with pytest.raises(FlashACEError, match=r"kernel: Triton .* could not compile"):
        FlashACE(small_file, device=DEVICE, kernel="compiled").get_property("energy", plain)


def test_a_gpu_without_triton_is_told_what_to_install(monkeypatch):
    model = torch.nn.Module()
    model.embedding = torch.empty(0, device="meta")  # not a CPU
    monkeypatch.setitem(sys.modules, "flashace.backends.triton.backend", None)
    with pytest.raises(FlashACEError, match=r"kernel: expected Triton, .*pip install triton"):
        choice.backend_of(model, "compiled")


def test_a_cpu_is_refused_outside_the_interpreter(make_model, monkeypatch):
    monkeypatch.setattr(cuda.triton.knobs.runtime, "interpret", False)
    with pytest.raises(FlashACEError, match="kernel: expected a model on a CUDA device, got one on cpu"):
        CudaKernel(make_model())


@pytest.mark.usefixtures("untried")
def test_models_are_let_go(make_model):
    model = make_model(num_layers=1).to(DEVICE)
    before = len(cuda._kernels)
    assert cuda.kernel_of(model) is cuda.kernel_of(model)
    assert len(cuda._kernels) == before + 1
    del model
    gc.collect()
    assert len(cuda._kernels) == before


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from flashace.backends.triton import backend, programs

of_tiles = dict(COEFFICIENTS=13, INTERVALS=8, R_MAX=4.0, PLAIN_SCALE=0.3, LANES=4, ROWS=16)
sizes = backend.program_sizes(num_channels=3, values=2, key_dim=2, l_max=1) | of_tiles
integers = {"pair": "*i32", "first": "*i64", "factors": "*i32", "num_atoms": "i32"}
for program, constants in [
    (programs.attend, dict(LOOKS=True, OWN_WEIGHT=4.0, **sizes)),
    (programs.attend_back, dict(LOOKS=True, QUERIES=True, **sizes)),
    (programs.attend_back, dict(LOOKS=False, QUERIES=False, **sizes)),
    (programs.contract, dict(L=4, K=3, LANES=4, ROWS=16)),
]:
    types = {name: "constexpr" if name in constants else integers.get(name, "*fp32") for name in program.arg_names}
    triton.compile(ASTSource(program, types, constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["cubin"]
print("compiled")
"""


def test_programs_compile_for_an_h100(tmp_path):
    """Without one: the interpreter takes what the compiler does not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(cuda.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr[-2000:]
