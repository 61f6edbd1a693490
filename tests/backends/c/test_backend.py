"""Compiled C against the plain model that it repeats."""

import copy
import multiprocessing
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed

from flashace import FlashACE, FlashACEError, batched, verify
from flashace.backends import choice, compiler, splines
from flashace.backends.c import backend as cpu
from flashace.backends.c.backend import CpuKernel
from flashace.backends.splines import splines_of
from flashace.potential.derivatives import assemble, predict
from flashace.structure.neighbors import build_graph

OPTIONS = [
    {},
    {"num_layers": 1, "correlation": 1, "l_max": 1},
    {"num_layers": 3, "correlation": 4, "l_max": 3},
    {"num_channels": 8, "hidden_dim": 24, "num_heads": 4, "key_dim": 3},
    {"num_channels": 1, "hidden_dim": 1, "key_dim": 1, "num_layers": 1},
    {"zbl": False, "radial_basis_type": "gaussian", "envelope_exponent": 4},
    {"num_radial": 24, "num_layers": 1},
    {"radial_basis_type": "gaussian", "gaussian_width": 0.1, "num_layers": 1},
    {"bounded": False},
]


def evaluated(model, graph, dtype=torch.float64):
    """Energies, slopes and features of the plain path."""
    edge_vec = graph.edge_vec.to(dtype).requires_grad_()
    energies, features = model.with_features(graph.with_edge_vec(edge_vec))
    return energies.detach(), torch.autograd.grad(energies.sum(), edge_vec)[0].double(), features


def as_float32(model):
    """The same weights, which float32 holds exactly when the test model was made for it."""
    return copy.deepcopy(model).float()


def largest(x):
    return float(x.abs().max())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernel_is_the_plain_model(make_model, structure, options):
    """In float64 up to the splines; in float32 not much farther from float64 than the plain path is."""
    model = make_model(**options)
    for parameter in model.parameters():
        parameter.data = parameter.data.float().double()
    graph = build_graph(structure("crystal"), model.config.r_max)
    energies, slopes, features = evaluated(model, graph)
    found = CpuKernel(model)(graph, features=True)
    assert largest(found.energies - energies) < 1e-6 * largest(energies - model.atomic_energies.mean())
    assert largest(found.slopes - slopes) < 1e-5 * largest(slopes)
    assert largest(found.features - features) < 1e-6 * largest(features)

    single = as_float32(model)
    plain, fast = evaluated(single, graph, torch.float32), CpuKernel(single)(graph, features=True)
    assert largest(fast.energies - energies) < 4 * largest(plain[0] - energies) + 1e-6 * largest(slopes)
    assert largest(fast.slopes - slopes) < 4 * largest(plain[1] - slopes) + 1e-5 * largest(slopes)


def test_every_periodicity(model, each_structure):
    graph = build_graph(each_structure, model.config.r_max)
    energies, slopes, _ = evaluated(model, graph)
    kernel = CpuKernel(model)
    found = kernel(graph)
    assert largest(found.energies - energies) < 1e-6
    if len(slopes):
        assert largest(found.slopes - slopes) < 1e-5 * largest(slopes) + 1e-9
    assert found.features is None
    sums, expected = kernel.evaluate(graph), assemble(graph, found)
    for name in ("energies", "energy", "forces", "stress", "stresses"):
        torch.testing.assert_close(getattr(sums, name), getattr(expected, name), rtol=0, atol=1e-12, equal_nan=True)


def test_slopes_are_those_of_its_own_energy(model, structure):
    """Not only of the plain path: the splines have slopes of their own."""
    graph, kernel, h = build_graph(structure("molecule"), model.config.r_max), CpuKernel(model), 1e-4
    slopes = kernel(graph).slopes

    def energy(edge, axis, shift):
        edge_vec = graph.edge_vec.clone()
        edge_vec[edge, axis] += shift
        return float(kernel(graph.with_edge_vec(edge_vec)).energies.sum())

    for edge in range(0, len(slopes), 7):
        for axis in range(3):
            numeric = (energy(edge, axis, h) - energy(edge, axis, -h)) / (2 * h)
            assert float(slopes[edge, axis]) == pytest.approx(numeric, abs=1e-6 * largest(slopes))


def test_close_pairs_repel_as_in_the_plain_model(model):
    """The range of ZBL, and of distances that the network does not look at."""
    kernel = CpuKernel(model)
    for r in np.linspace(0.2, model.config.r_max + 0.1, 40):
        graph = build_graph(Atoms("SiC", [[0, 0, 0], [0.6 * r, 0, 0.8 * r]]), model.config.r_max)
        if len(graph.edge_vec):
            energies, slopes, _ = evaluated(model, graph)
            found = kernel(graph)
            assert largest(found.energies - energies) < 1e-6 * max(largest(energies), 1), r
            assert largest(found.slopes - slopes) < 1e-5 * max(largest(slopes), 1e-3), r


def test_an_atom_alone_has_its_reference_energy_exactly(model):
    found = CpuKernel(model)(build_graph(Atoms("SiC", [[0, 0, 0], [0, 0, 50]]), model.config.r_max), features=True)
    element = model.element_index[torch.tensor([14, 6])]
    assert torch.equal(found.energies, model.atomic_energies[element])
    assert not found.features.any()


def test_threads_change_nothing(model):
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * (3, 3, 3)
    atoms.rattle(0.1, seed=2)
    graph, kernel = build_graph(atoms, model.config.r_max), CpuKernel(model)
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = kernel(graph, features=True)
        torch.set_num_threads(3)
        three = kernel(graph, features=True)
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(lambda _: kernel(graph), range(8)):
            assert torch.equal(again.slopes, one.slopes)


def test_threads_stay_with_their_memory(model):
    """New pages at every call are what a small structure would wait for."""
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * (3, 3, 3)
    graph, kernel, usual, seen = build_graph(atoms, model.config.r_max), CpuKernel(model), torch.get_num_threads(), []
    try:
        torch.set_num_threads(3)
        for _ in range(3):
            kernel(graph)
            seen.append({thread.ident for thread in cpu._pool()._threads})
    finally:
        torch.set_num_threads(usual)
    assert seen[0] <= seen[1] == seen[2]
    assert 1 <= len(seen[2]) <= os.cpu_count()


@pytest.mark.parametrize("kernel", ["compiled", "plain"])
def test_a_fork_of_a_process_with_threads_evaluates(model_file, kernel):
    """It has none of these threads, and would wait for them for ever."""
    atoms, usual = bulk("SiC", "zincblende", a=4.36, cubic=True) * (3, 3, 3), torch.get_num_threads()
    atoms.rattle(0.1, seed=2)
    atoms.calc = FlashACE(model_file, device="cpu", kernel=kernel)
    theirs, ours = multiprocessing.Pipe()
    try:
        torch.set_num_threads(2)
        energy = atoms.get_potential_energy()
        child = multiprocessing.get_context("fork").Process(target=_evaluate_anew, args=(atoms, ours))
        child.start()
    finally:
        torch.set_num_threads(usual)
    assert theirs.poll(60)
    assert theirs.recv() == pytest.approx(energy, abs=1e-3)
    child.join()


def _evaluate_anew(atoms, pipe):
    atoms.calc.reset()
    pipe.send(atoms.get_potential_energy())


# Through the calculator


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_auto_is_compiled(model_file, structure, dtype, monkeypatch):
    used, evaluate = [], CpuKernel.evaluate
    monkeypatch.setattr(CpuKernel, "evaluate", lambda self, graph, features=False: used.append(1) or evaluate(self, graph, features))
    held = FlashACE(model_file, device="cpu", dtype=dtype)
    held.get_property("energy", structure("crystal"))  # a kernel is tried when it is made
    for kernel, times in {"auto": 1, "compiled": 1, "plain": 0}.items():
        used.clear()
        FlashACE(model_file, device="cpu", dtype=dtype, kernel=kernel).get_property("energy", structure("crystal"))
        assert len(used) == times, kernel


def test_results_are_those_of_the_plain_path(model, model_file, each_structure):
    expected = predict(model, build_graph(each_structure, model.config.r_max), torch.float64)
    each_structure.calc = FlashACE(model_file, device="cpu", dtype="float64", kernel="compiled")
    assert each_structure.get_potential_energy() == pytest.approx(expected.energy.item(), abs=1e-6)
    np.testing.assert_allclose(each_structure.get_forces(), expected.forces, rtol=0, atol=1e-5 * max(largest(expected.forces), 1e-2))
    if each_structure.cell.rank == 3:
        np.testing.assert_allclose(each_structure.get_stresses().sum(0), each_structure.get_stress(), atol=1e-12)


def test_the_laws_hold(model_file, structure, monkeypatch):
    results = verify.verify(
        lambda dtype: FlashACE(model_file, device="cpu", dtype=dtype, kernel="compiled"), structure("crystal"), precisions=["float32"]
    )
    learned = {"pair repulsion", "pair tortuosity"}  # of an untrained model
    assert {result.law for result in results if result.passed is False} <= learned


@pytest.mark.filterwarnings("ignore:Si-C|C-Si")
@pytest.mark.parametrize("gap", [0.0, 1e-200])
def test_what_is_not_finite_is_named(model_file, gap):
    with pytest.raises(CalculationFailed, match="expected finite numbers"):
        FlashACE(model_file, device="cpu").get_property("energy", Atoms("SiC", [[0, 0, 0], [0, 0, gap]]))


def test_without_a_compiler_it_says_so_and_goes_on(model_file, structure, monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(cpu, "_kernels", {})
    monkeypatch.setattr(choice, "_refused", set())
    atoms = structure("crystal")
    atoms.calc = FlashACE(model_file, device="cpu")
    with pytest.warns(UserWarning, match="kernel: expected a C compiler .*, found none; .*The plain path is taken"):
        found = atoms.get_forces()
    plain = atoms.copy()
    plain.calc = FlashACE(model_file, device="cpu", kernel="plain")
    np.testing.assert_array_equal(found, plain.get_forces())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        atoms.rattle(0.01)
        atoms.get_forces()
    assert atoms.calc.parameters["kernel"] == "auto"  # what was asked for, and what files keep
    other = structure("crystal")
    other.calc = FlashACE(model_file, device="cpu")
    with batched([atoms, other]):  # one has found it out, the other has not
        atoms.get_forces(), other.get_forces()
    with pytest.raises(FlashACEError, match="kernel: expected a C compiler"):
        FlashACE(model_file, device="cpu", kernel="compiled").get_property("energy", structure("crystal"))


def test_a_compiler_that_fails_is_named(model_file, structure, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu, "_kernels", {})
    with pytest.raises(FlashACEError, match=r"kernel: `.*false .*evaluate\.c .*` could not compile"):
        FlashACE(model_file, device="cpu", kernel="compiled").get_property("energy", structure("crystal"))
    assert list((tmp_path / "flashace").iterdir()) == []


def test_what_is_no_compiler_is_named(model, monkeypatch, tmp_path):
    (tmp_path / "cc").write_text("not a program")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(FlashACEError, match=r"kernel: expected a compiler and a folder.*set CC"):
        CpuKernel(model)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("product.h", "rho[c] = 1 / root(1 + per * sum)", "rho[c] = 1 / root(1 + 2 * per * sum)"),
        ("attention.h", "g_query[d * H + h] += key", "g_query[d * H + h] -= key"),
    ],
)
def test_what_is_compiled_wrongly_is_not_used(model_file, structure, file, right, wrong, monkeypatch, tmp_path):
    """As a compiler or a library may do it on some machine: energies, or slopes alone."""
    for source in cpu.sources():
        shutil.copy(source, tmp_path)
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    monkeypatch.setattr(cpu, "SOURCE", tmp_path / "evaluate.c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu, "_kernels", {})
    monkeypatch.setattr(choice, "_refused", set())
    atoms = structure("crystal")
    with pytest.raises(FlashACEError, match=r"kernel: expected the (energies|forces) of the plain path on cpu, got some that differ by"):
        FlashACE(model_file, device="cpu", kernel="compiled").get_property("energy", atoms)
    with pytest.warns(UserWarning, match="expected the .*The plain path is taken"):
        found = FlashACE(model_file, device="cpu").get_property("forces", atoms)
    np.testing.assert_array_equal(found, FlashACE(model_file, device="cpu", kernel="plain").get_property("forces", atoms))


def test_a_user_without_a_home_is_told_so(model, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiler.Path, "home", no_home)
    with pytest.raises(FlashACEError, match=r"kernel: Could not determine home directory\. Set XDG_CACHE_HOME"):
        CpuKernel(model)


def test_a_cache_that_cannot_be_written_is_named(model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        FlashACEError, match=r"kernel: expected .* a folder to write to and to run from, got .*file/flashace: .*XDG_CACHE_HOME"
    ):
        CpuKernel(model)


def test_many_elements_do_not_fill_the_memory(model, monkeypatch):
    held = sum(tensor.numel() * tensor.element_size() for tensor in CpuKernel(model)._held)
    monkeypatch.setattr(splines, "MOST_MEMORY", held / 2)  # nearly all of it are tables
    with pytest.raises(FlashACEError, match=r"kernel: the splines of 4 pairs of elements with .* would take .* use the plain path"):
        CpuKernel(model)


def test_curves_that_splines_cannot_follow_are_left_to_the_plain_path(make_model, structure):
    model = make_model(num_radial=200, num_layers=1)
    with pytest.raises(
        FlashACEError, match=r"kernel: expected edge functions that splines can follow, got some that 1024 intervals miss by"
    ):
        CpuKernel(model)


def test_splines_of_nothing(make_model):
    """All edge functions zero, as in a damaged file."""
    model = make_model()
    for layer in model.layers:
        for parameter in layer.edge_functions.out.parameters():
            parameter.data.zero_()
    assert splines_of(model).error == 0.0


def test_it_is_compiled_once(model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ages = []
    for _ in range(2):
        CpuKernel(model)
        (library,) = (tmp_path / "flashace").iterdir()
        ages.append(library.stat().st_mtime_ns)
    assert ages[0] == ages[1]


@pytest.mark.parametrize("kernel", ["fast", "", None, 1])
def test_other_kernels_are_refused(model_file, kernel):
    with pytest.raises(FlashACEError, match="kernel: expected auto, compiled or plain, got "):
        FlashACE(model_file, kernel=kernel)


def test_forces_do_not_jump_between_the_pieces_of_the_splines(model):
    """Energy and slope at both sides of each knot, in float64: equal to rounding."""
    kernel, r_max = CpuKernel(model), model.config.r_max
    graph = build_graph(Atoms("SiC", [[0, 0, 0], [0, 0, 2.0]]), r_max)
    intervals = splines_of(model).intervals
    knots = np.linspace(0, r_max, intervals + 1)[intervals // 3 : intervals // 2]
    for knot in knots:
        sides = [kernel(graph.with_edge_vec(torch.sign(graph.edge_vec) * (knot + shift))) for shift in (-1e-12, 1e-12)]
        for below, above in pairwise(sides):
            assert largest(above.energies - below.energies) < 1e-10
            assert largest(above.slopes - below.slopes) < 1e-8
