"""Forces and stress against derivatives of the energy taken in other ways."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from flashace.errors import FlashACEError
from flashace.potential.derivatives import EdgeBudget, predict, predict_in_parts
from flashace.structure.graph import batch_graphs, build_graph

STEP = 1e-3  # Å or strain, of the four-point differences
DIFFERENCES = 1e-6  # relative error of the differences
EXACT = 1e-10  # relative; two analytic ways to the same number
ROUNDING = 1e-12  # relative; the same sums in another order
PERIODIC = ["crystal", "primitive", "sheared", "left-handed", "slab in vacuum", "molecule in a box", "atoms outside", "one atom per cell"]
VOIGT = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]


def evaluate(model, atoms):
    return predict(model, build_graph(atoms, model.config.r_max), torch.float64)


def energy(model, atoms):
    return float(model(build_graph(atoms, model.config.r_max)).sum())


def slope(function):
    """f'(0) by central differences of fourth order."""
    return (8 * (function(STEP) - function(-STEP)) - (function(2 * STEP) - function(-2 * STEP))) / (12 * STEP)


def same(one, other, relative):
    one, other = np.asarray(one), np.asarray(other)
    assert np.abs(one - other).max() <= relative * max(1.0, np.abs(one).max())


# Forces


def test_forces_are_central_differences(model, each_structure):
    atoms = each_structure
    forces = evaluate(model, atoms).forces.numpy()
    rng = np.random.default_rng(0)
    directions = [np.eye(3 * len(atoms))[k].reshape(-1, 3) for k in rng.permutation(3 * len(atoms))[:4]]
    together = rng.normal(size=(len(atoms), 3))
    directions.append(together / np.linalg.norm(together))

    def moved(by):
        copy = atoms.copy()
        copy.positions += by
        return copy

    differences = [-slope(lambda h, d=d: energy(model, moved(h * d))) for d in directions]
    same([(forces * d).sum() for d in directions], differences, DIFFERENCES)


def test_no_net_force_and_no_torque(model, each_structure):
    forces = evaluate(model, each_structure).forces.numpy()
    same(forces.sum(0), np.zeros(3), EXACT)
    if not each_structure.pbc.any():
        same(np.cross(each_structure.positions, forces).sum(0), np.zeros(3), EXACT)


# Stress


@pytest.mark.parametrize("name", PERIODIC)
def test_stress_is_central_differences(model, structure, name):
    atoms = structure(name)
    stress = evaluate(model, atoms).stress[0].numpy()

    def strained(strain):
        copy = atoms.copy()
        copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=False)
        copy.positions = atoms.positions @ (np.eye(3) + strain)
        return copy

    differences = []
    for a, b in VOIGT:
        strain = np.zeros((3, 3))
        strain[a, b] = strain[b, a] = 1.0
        components = 1 if a == b else 2
        differences.append(slope(lambda h, e=strain: energy(model, strained(h * e))) / atoms.get_volume() / components)
    same([stress[a, b] for a, b in VOIGT], differences, DIFFERENCES)


@pytest.mark.parametrize("name", PERIODIC)
def test_stress_is_the_derivative_along_symmetric_strains(model, structure, name):
    """The definition, at a finite deformation: six strain components by autograd, divided by the volume of the deformed cell."""
    atoms = structure(name)
    deformation = np.array([[1.03, 0.02, -0.01], [0.0, 0.96, 0.05], [0.02, 0.0, 1.01]])
    atoms.set_cell(atoms.cell.array @ deformation)
    atoms.positions = atoms.positions @ deformation
    graph = build_graph(atoms, model.config.r_max)
    voigt = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    strain = torch.zeros(3, 3, dtype=torch.float64)
    for k, (a, b) in enumerate(VOIGT):
        unit = torch.zeros(3, 3, dtype=torch.float64)
        unit[a, b] = unit[b, a] = 1.0 if a == b else 0.5
        strain = strain + voigt[k] * unit
    strained = graph.with_edge_vec(graph.edge_vec @ (torch.eye(3, dtype=torch.float64) + strain))
    (derivative,) = torch.autograd.grad(model(strained).sum(), voigt)
    stress = predict(model, graph, torch.float64).stress[0]
    expected = derivative / atoms.get_volume()
    found = torch.stack([stress[a, b] for a, b in VOIGT])
    assert (found - expected).abs().max() <= EXACT * expected.abs().max()


def test_stresses_sum_to_the_stress(model, structure):
    batch = batch_graphs([build_graph(structure(name), 4.0) for name in PERIODIC])
    result = predict(model, batch, torch.float64)
    for b in range(batch.num_structures):
        torch.testing.assert_close(result.stresses[batch.structure == b].sum(0), result.stress[b], atol=1e-14, rtol=EXACT)
    torch.testing.assert_close(result.stress, result.stress.mT, atol=0, rtol=0)


def test_stress_rotates_with_the_crystal(model, structure):
    atoms = structure("sheared")
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ q)
    turned.positions = atoms.positions @ q
    one, other = evaluate(model, atoms), evaluate(model, turned)
    same(other.stress[0], q.T @ one.stress[0].numpy() @ q, EXACT)
    same(other.forces, one.forces.numpy() @ q, EXACT)


def test_stress_of_a_supercell_is_that_of_the_cell(model, structure):
    atoms = structure("primitive")
    same(evaluate(model, atoms.repeat((2, 1, 3))).stress, evaluate(model, atoms).stress, EXACT)


@pytest.mark.parametrize("name", ["molecule", "wire", "slab without cell height"])
def test_without_a_volume_there_is_no_stress(model, structure, name):
    result = evaluate(model, structure(name))
    assert result.stress.isnan().all()
    assert result.forces.isfinite().all()


# The result as a whole


def test_energy_is_the_sum_of_energies_and_batch_is_single(model, structure):
    graphs = [build_graph(structure(name), 4.0) for name in ("atom", "wire", "crystal", "molecule in a box")]
    whole = predict(model, batch_graphs(graphs), torch.float64)
    parts = [predict(model, graph, torch.float64) for graph in graphs]
    for name in ("energies", "energy", "forces", "stress", "stresses"):
        expected = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(getattr(whole, name), expected, atol=1e-11, rtol=0, equal_nan=True)
    for part in parts:
        torch.testing.assert_close(part.energy, part.energies.sum(0, keepdim=True))


def test_any_function_of_a_graph_will_do(structure):
    """Springs of known force and virial instead of a network."""
    graph = build_graph(structure("crystal"), 2.5)

    def springs(graph):
        half = 0.5 * (graph.edge_vec.norm(dim=-1) - 1.9) ** 2
        return half.new_zeros(len(graph.numbers)).index_add(0, graph.edge_index[0], half)

    result = predict(springs, graph, torch.float64)
    r = graph.edge_vec.norm(dim=-1, keepdim=True)
    pull = (r - 1.9) * graph.edge_vec / r
    forces = torch.zeros_like(graph.positions).index_add(0, graph.edge_index[0], 2 * pull)
    torch.testing.assert_close(result.forces, forces)
    virial = torch.einsum("ea,eb->ab", graph.edge_vec, pull) / graph.cell[0].det().abs()
    torch.testing.assert_close(result.stress[0], virial)


def test_nothing_is_left_behind(make_model, structure):
    """No graph of autograd in the results, no gradients in the weights, nothing changed in the graph, also under no_grad."""
    model, graph = make_model(), build_graph(structure("crystal"), 4.0)
    with torch.no_grad():
        result, plain = (predict(evaluate, graph, torch.float64) for evaluate in (model.with_features, model))
    assert not any(tensor.requires_grad for tensor in result if tensor is not None)
    assert plain.features is None
    assert all(torch.equal(getattr(result, name), getattr(plain, name)) for name in ("energies", "energy", "forces", "stress", "stresses"))
    assert all(p.grad is None for p in model.parameters())
    assert not graph.edge_vec.requires_grad
    assert (graph.edge_vec == build_graph(structure("crystal"), 4.0).edge_vec).all()


def test_float32_results_come_in_float64(make_model, structure):
    graph = build_graph(structure("crystal"), 4.0)
    rounded, exact = predict(make_model(dtype=torch.float32), graph, torch.float32), predict(make_model(), graph, torch.float64)
    assert all(tensor.dtype == torch.float64 for tensor in rounded if tensor is not None)
    torch.testing.assert_close(rounded.forces, exact.forces, atol=1e-3, rtol=0)
    torch.testing.assert_close(rounded.stress, exact.stress, atol=1e-4, rtol=0)


# In parts


def assert_same(found, expected):
    assert (found.features is None) == (expected.features is None)
    for one, other in zip(found, expected, strict=True):
        if other is None:
            continue
        atol = ROUNDING * max(1.0, float(other.nan_to_num().abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)


@pytest.fixture
def watched(model):
    """The model, a list of the sizes [C, M] of what it is given, and the number of slots from which on it runs out of memory."""
    sizes, limit = [], [10**9]

    def energies(graph):
        sizes.append(tuple(graph.slots.shape))
        if graph.slots.numel() > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return model(graph)

    return energies, sizes, limit


@pytest.mark.parametrize("max_edges", [1, 100, 400])
def test_parts_give_what_the_whole_gives(watched, model, each_structure, max_edges):
    energies, sizes, _ = watched
    graph = build_graph(each_structure, 4.0)
    assert_same(predict_in_parts(energies, graph, torch.float64, EdgeBudget(max_edges)), predict(model, graph, torch.float64))
    assert all(c * m <= max_edges or c == 1 for c, m in sizes)
    assert sum(c for c, _ in sizes) == len(each_structure)
    assert (len(sizes) == 1) == (graph.slots.numel() <= max_edges or len(each_structure) == 1)


def test_features_of_parts_are_those_of_the_whole(model, structure):
    graph = build_graph(structure("crystal"), 4.0)
    assert_same(
        predict_in_parts(model.with_features, graph, torch.float64, EdgeBudget(100)), predict(model.with_features, graph, torch.float64)
    )


def test_parts_of_a_batch(watched, model, structure):
    energies, sizes, _ = watched
    batch = batch_graphs([build_graph(structure(name), 4.0) for name in ("molecule", "atom", "crystal", "wire", "atom", "primitive")])
    assert_same(predict_in_parts(energies, batch, torch.float64, EdgeBudget(100)), predict(model, batch, torch.float64))
    assert len(sizes) > 2
    assert len({m for _, m in sizes}) > 1  # a part has room for its own neighbours, not for those of the densest structure


def test_where_memory_runs_out_parts_are_halved_for_good(watched, model, structure):
    energies, sizes, limit = watched
    graph, budget = build_graph(structure("crystal"), 4.0), EdgeBudget(10**6)
    limit[0] = graph.slots.numel() // 3
    for first_time in (True, False):
        sizes.clear()
        assert_same(predict_in_parts(energies, graph, torch.float64, budget), predict(model, graph, torch.float64))
        assert any(c * m > limit[0] for c, m in sizes) == first_time
    assert limit[0] / 2 < budget.max_edges <= limit[0]


def test_one_atom_that_does_not_fit_is_an_error(watched, structure):
    energies, _, limit = watched
    limit[0] = 5
    with pytest.raises(FlashACEError, match=r"an atom with [0-9]+ neighbours does not fit into the memory of cpu"):
        predict_in_parts(energies, build_graph(structure("crystal"), 4.0), torch.float64, EdgeBudget(10**6))


def test_other_errors_are_not_taken_for_a_lack_of_memory(structure):
    def broken(graph):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict_in_parts(broken, build_graph(structure("crystal"), 4.0), torch.float64, EdgeBudget(10**6))


# What training needs


@pytest.mark.parametrize("label", ["forces", "stress", "energy"])
def test_the_derivative_of_the_derivative(make_model, structure, label):
    """Gradients of forces and stress with respect to weights, against differences (torch's gradcheck)."""
    model = make_model(hidden_dim=4, num_channels=2, key_dim=2, edge_hidden_dim=3, num_radial=3, l_max=1, correlation=2)
    graph = build_graph(structure("primitive"), 4.0)
    chosen = ["embedding", "layers.0.edge_functions.basis_in.weight", "layers.0.product.contractions.0.weight"]
    chosen += ["layers.1.attention.query.weight", "layers.1.attention.direction_query.weights.0", "layers.1.scale_tensors"]
    parameters = dict(model.named_parameters())
    assert set(chosen) <= set(parameters)
    direction = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def function(*values):
        weights = {**parameters, **dict(zip(chosen, values, strict=True))}
        result = predict(lambda g: functional_call(model, weights, (g,)), graph, torch.float64, create_graph=True)
        return {"forces": (result.forces * direction).sum(), "stress": result.stress.sum(), "energy": result.energy.sum()}[label]

    assert gradcheck(function, [parameters[name].detach().requires_grad_() for name in chosen], eps=1e-5, atol=1e-7, rtol=1e-5)
