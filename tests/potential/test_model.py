"""The laws of the energies: what an atom sees, what it does not, and that nothing else changes."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from pydantic import ValidationError

from flashace.errors import FlashACEError
from flashace.nn.bounds import saturated
from flashace.potential.derivatives import predict
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.structure.graph import batch_graphs
from flashace.structure.neighbors import build_graph

SAME = 1e-11  # eV; sums of the same numbers in another order


def energies(model, atoms):
    return model(build_graph(atoms, model.config.r_max)).detach()


def close(one, other, atol=SAME):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def rotation(seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_the_test_model_has_visible_effects(model, structure):
    """Otherwise nothing below would mean much: energies differ between atoms, and each part of the model is felt."""
    e = energies(model, structure("crystal")) - model.atomic_energies[model.element_index[structure("crystal").numbers]]
    assert e.std() > 0.05
    for name in ("attention.query", "attention.direction_query", "product", "feed_forward", "values_out", "mix_tensors"):
        parameters = [p for n, p in model.named_parameters() if f"layers.1.{name}" in n]
        saved = [p.clone() for p in parameters]
        for p in parameters:
            p.data.mul_(0.0)
        change = (
            energies(model, structure("crystal")) - e - model.atomic_energies[model.element_index[structure("crystal").numbers]]
        ).abs()
        for p, value in zip(parameters, saved, strict=True):
            p.data.copy_(value)
        assert parameters, name
        assert change.max() > 1e-3, name


# Symmetries


@pytest.mark.parametrize("options", [{}, {"l_max": 3, "num_layers": 3}, {"correlation": 1, "num_heads": 1}], ids=str)
def test_rotation_reflection_and_translation(make_model, each_structure, options):
    model = make_model(**options)
    before = energies(model, each_structure)
    for matrix in (rotation(), -np.eye(3), rotation(1) @ np.diag([1.0, 1.0, -1.0])):
        atoms = each_structure.copy()
        atoms.set_cell(atoms.cell.array @ matrix)
        atoms.positions = atoms.positions @ matrix + (0.3, -11.0, 4.0)
        close(energies(model, atoms), before, atol=1e-10)


def test_permutation(model, each_structure):
    order = np.random.default_rng(0).permutation(len(each_structure))
    close(energies(model, each_structure[order]), energies(model, each_structure)[order])


@pytest.mark.parametrize("name", ["crystal", "sheared", "wire", "slab in vacuum"])
def test_a_supercell_has_n_times_the_energy(model, structure, name):
    atoms = structure(name)
    repeat = [2 if periodic else 1 for periodic in atoms.pbc]
    copies = int(np.prod(repeat))
    close(energies(model, atoms.repeat(repeat)), energies(model, atoms).repeat(copies))


def test_batch_is_single(model, structure):
    all_atoms = [structure(name) for name in ("crystal", "atom", "wire", "molecule", "one atom per cell", "slab in vacuum")]
    graphs = [build_graph(atoms, model.config.r_max) for atoms in all_atoms]
    close(model(batch_graphs(graphs)), torch.cat([model(graph) for graph in graphs]))


# Locality


@pytest.mark.parametrize("num_layers", [1, 3])
def test_an_atom_beyond_the_cutoff_changes_nothing(make_model, structure, num_layers):
    """Also not by way of a third atom in between: layers deepen what is read and never widen it."""
    model = make_model(num_layers=num_layers)
    chain = Atoms("SiCSiC", [(0, 0, 0), (2.5, 0.3, 0), (5.0, 0, 0.4), (7.5, 0, 0)])
    moved = chain.copy()
    moved.positions[3] += (0.5, 0.7, -0.2)
    moved.numbers[3] = 14
    before, after = energies(model, chain), energies(model, moved)
    torch.testing.assert_close(after[:2], before[:2], rtol=1e-13, atol=SAME)  # energies may be of any size here
    assert (after[2] - before[2]).abs() > 1e-3  # it sees the last atom, the first two do not


def test_far_apart_parts_add_up(model, structure):
    parts = [structure("molecule"), structure("atom"), structure("wire")]
    for part in parts:
        part.pbc, part.cell = False, None
    together = parts[0] + parts[1] + parts[2]
    together.positions[len(parts[0]) :] += (30.0, 0, 0)
    together.positions[len(parts[0]) + 1 :] += (0, 30.0, 0)
    close(energies(model, together), torch.cat([energies(model, part) for part in parts]))


def test_energy_is_smooth_when_a_lone_neighbour_arrives(make_model):
    """The energy leaves E0 as the cube of the distance to the cutoff, so its first two derivatives are continuous there."""
    model = make_model()
    distances = model.config.r_max - np.array([1e-1, 1e-2, 1e-3])
    differences = [abs((energies(model, Atoms("SiC", [(0, 0, 0), (d, 0, 0)])).sum() - sum(model.e0.values())).item()) for d in distances]
    assert differences[0] > 1e-9
    assert differences[1] < 2e-3 * differences[0]
    assert differences[2] < 2e-3 * differences[1] + 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_isolated_atom_has_exactly_its_reference_energy(make_model, structure, dtype):
    """Exactly, whatever is computed beside it: it anchors dissociation."""
    model = make_model(dtype=dtype)
    graph_of = {symbol: build_graph(Atoms(symbol), model.config.r_max) for symbol in model.symbols}
    for symbol, graph in graph_of.items():
        assert model(in_precision(graph, dtype)).item() == model.e0[symbol]
    crystal = build_graph(structure("crystal"), model.config.r_max)
    for count in range(1, 40):
        batch = in_precision(batch_graphs([graph_of["Si"]] * count + [crystal] * (count % 3) + [graph_of["C"]] * (count % 5)), dtype)
        alone = torch.bincount(batch.edge_index[0], minlength=len(batch.numbers)) == 0
        expected = model.atomic_energies[model.element_index[batch.numbers]]
        assert (model(batch)[alone] == expected[alone]).all(), count


def in_precision(graph, dtype):
    return graph.with_edge_vec(graph.edge_vec.to(dtype))


def test_float32_follows_float64(make_model, each_structure):
    exact = energies(make_model(), each_structure)
    graph = build_graph(each_structure, 4.0)
    rounded = make_model(dtype=torch.float32)(in_precision(graph, torch.float32))
    assert rounded.dtype == torch.float64
    close(rounded.detach(), exact, atol=2e-4)


def test_total_energies_of_millions_of_ev_keep_their_digits():
    energies0 = {"Si": -7.89e6 + 1e-6}
    model = AttentionACE(ModelConfig(hidden_dim=8, num_channels=2), energies0, dtype=torch.float32)
    assert model(in_precision(build_graph(Atoms("Si"), 5.0), torch.float32)).item() == energies0["Si"]


# Elements and configuration


def test_unknown_elements_are_named(model):
    with pytest.raises(FlashACEError, match=r"knows C, Si; the structure also has Au, O\. Use a model"):
        model.check_elements(torch.tensor([14, 8, 6, 79, 8]))
    model.check_elements(torch.tensor([14, 6]))


def test_an_unknown_element_never_passes_for_another(model):
    """Who calls the network without `check_elements` must not get the energy of some other element."""
    with pytest.raises((FlashACEError, IndexError)):
        model(build_graph(Atoms("Au2", [(0, 0, 0), (2, 0, 0)]), 4.0))


def test_elements_stand_in_the_order_of_the_table(make_model, structure):
    config = ModelConfig(hidden_dim=8, num_channels=2)
    assert AttentionACE(config, {"Si": 1.0, "H": 2.0, "C": 3.0}).symbols == ["H", "C", "Si"]


def test_the_default_dtype_of_torch_does_not_matter(make_model, structure):
    before = energies(make_model(), structure("crystal"))
    torch.set_default_dtype(torch.float64)
    try:
        model = AttentionACE(ModelConfig(hidden_dim=8, num_channels=2), {"Si": 1.0, "C": 1.0}, dtype=torch.float32)
        again = make_model()
        again.load_state_dict(make_model_weights(make_model))
        after = energies(again, structure("crystal"))
        in_float32 = model(in_precision(build_graph(structure("crystal"), 5.0), torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    close(after, before)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert in_float32.dtype == torch.float64


def make_model_weights(make_model):
    torch.set_default_dtype(torch.float32)
    weights = make_model().state_dict()
    torch.set_default_dtype(torch.float64)
    return weights


def test_evaluation_leaves_random_state_and_weights_alone(model, structure):
    state, weights = torch.random.get_rng_state(), {n: p.clone() for n, p in model.named_parameters()}
    one = energies(model, structure("crystal"))
    assert (torch.random.get_rng_state() == state).all()
    assert all((p == weights[n]).all() for n, p in model.named_parameters())
    assert (energies(model, structure("crystal")) == one).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 6, "num_heads": 4}, "num_channels=6 must be a multiple of num_heads=4"),
        ({"hidden_dim": 10, "num_channels": 4}, "hidden_dim=10 must be a multiple of num_heads=4"),
        ({"r_max": 1e-308}, "greater than or equal to 0.1"),
        ({"r_max": float("nan")}, "r_max"),
        ({"r_max": float("inf")}, "r_max"),
        ({"l_max": 0}, "greater than or equal to 1"),
        ({"correlation": 0}, "greater than or equal to 1"),
        ({"num_layers": 0}, "greater than or equal to 1"),
        ({"radial_basis_type": "fourier"}, "'bessel' or 'gaussian'"),
        ({"gaussian_width": -1.0}, "greater than 0"),
        ({"rmax": 5.0}, "rmax"),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_built_says_why(options, message):
    with pytest.raises((ValidationError, FlashACEError), match=message):
        ModelConfig(**options)


DIFFERENT = {
    "r_max": 3.9, "l_max": 1, "num_radial": 4, "hidden_dim": 8, "num_channels": 8, "num_heads": 2, "key_dim": 3, "num_layers": 1,
    "correlation": 2, "edge_hidden_dim": 8, "radial_basis_type": "gaussian", "radial_trainable": True, "gaussian_width": 0.3,
    "envelope_exponent": 5, "zbl": False, "bounded": False,
}  # fmt: skip


def test_every_option_of_the_model_is_felt(make_model, structure):
    """An option that no test can feel is removed."""
    assert set(DIFFERENT) == set(ModelConfig.__dataclass_fields__)
    for name, value in DIFFERENT.items():
        base = {"radial_basis_type": "gaussian"} if name == "gaussian_width" else {}
        one, other = make_model(**base), make_model(**base, **{name: value})
        if name == "radial_trainable":
            assert sum(p.requires_grad for p in other.parameters()) > sum(p.requires_grad for p in one.parameters())
        else:
            assert (energies(one, structure("crystal")) - energies(other, structure("crystal"))).abs().max() > 1e-6, name


def test_the_repulsion_is_added_to_the_rest(make_model, each_structure):
    """½ Σ_j ZBL per atom, and nothing else: an atom alone has its reference energy to the last bit."""
    graph = build_graph(each_structure, 4.0)
    with_zbl, without = make_model(zbl=True), make_model(zbl=False)
    species, (centre, neighbour) = with_zbl.element_index[graph.numbers], graph.edge_index
    added = with_zbl.repulsion.of_edges(graph.edge_vec, species[centre], species[neighbour])
    close(
        with_zbl(graph).detach() - without(graph).detach(), torch.zeros(len(graph.numbers), dtype=torch.float64).index_add(0, centre, added)
    )
    assert without.repulsion is None
    assert (with_zbl.e0["C"] == energies(with_zbl, Atoms("C"))).all()


def packings():
    """From a pair to a hundred times the density of a crystal, at random."""
    rng = np.random.default_rng(0)
    for num_atoms, side in ((2, 1.0), (3, 2.0), (12, 12.0), (40, 7.0), (60, 4.0), (60, 2.0)):
        yield Atoms(rng.choice(["Si", "C"], num_atoms), rng.uniform(0, side, (num_atoms, 3)), cell=[side] * 3, pbc=side > 4)


def test_the_network_gives_an_atom_no_more_than_its_bound(make_model):
    model = make_model(zbl=False)
    graphs = [build_graph(atoms, model.config.r_max) for atoms in packings()]
    free = [model(g).detach() - model.atomic_energies[model.element_index[g.numbers]] for g in graphs]
    model.energy_bound = 3.0
    for graph, energies_free in zip(graphs, free, strict=True):
        beyond = model(graph).detach() - model.atomic_energies[model.element_index[graph.numbers]]
        assert (beyond.abs() <= 3.0).all()
        close(beyond, saturated(energies_free, 3.0))
    assert max(e.abs().max() for e in free) > 5.0  # or nothing was bounded


def test_what_the_layers_compute_is_bounded(make_model):
    """Products, gates and layers multiply: without bounds the energy is a polynomial of high degree."""

    def largest(bounded):
        model = make_model(num_layers=3, zbl=False, bounded=bounded)
        for layer in model.layers:
            layer.edge_functions.requires_grad_(False)
            layer.mix_basis.weights[0].data.mul_(10.0)
        return max(energies(model, atoms).abs().max().item() for atoms in packings())

    assert largest(True) < 1e4
    assert largest(False) > 1e6


SHORTEST = {"C-Si": 1.8, "Si-Si": 2.4}  # Å; no two C within the cutoff


def dimer_curve(model, a, b, distances):
    return np.array([energies(model, Atoms([a, b], [(0, 0, 0), (r, 0, 0)])).sum().item() for r in distances])


@pytest.mark.parametrize(("a", "b", "least"), [("Si", "C", 1.8), ("Si", "Si", 2.4), ("C", "C", 4.0)])
def test_below_the_distances_of_the_data_zbl_goes_on_alone(make_model, a, b, least):
    """The network, whose weights are exaggerated here, would reach 1e12 eV; what it adds is the same from a certain distance down."""
    model = make_model(zbl=True, shortest_distances=SHORTEST)
    r = np.linspace(0.02, 0.8 * least, 60)
    curve = dimer_curve(model, a, b, r)
    species = [model.symbols.index(s) for s in (a, b)]
    vec = torch.nn.functional.pad(torch.from_numpy(r)[:, None], (0, 2))
    repulsion = 2 * model.repulsion.of_edges(vec, *(torch.full((60,), s) for s in species)).numpy()
    np.testing.assert_allclose(curve - repulsion - (curve - repulsion)[0], 0, atol=1e-12 * curve[0])
    assert (np.diff(curve) <= 1e-12 * curve[0]).all()
    assert curve[0] > 1e3


@pytest.mark.parametrize(
    ("shortest", "a", "b", "end"),
    [
        (SHORTEST, "Si", "C", 0.9 * 1.8),
        (SHORTEST, "Si", "Si", 0.9 * 2.4),
        (SHORTEST, "C", "C", 0.76 + 0.76),  # covalent radii of Cordero et al.
        (None, "Si", "Si", 1.11 + 1.11),
        ({"Si-Si": 1.2}, "Si", "Si", 0.9 * 1.2),
    ],
)
def test_zbl_begins_below_the_data_or_the_covalent_radii(make_model, shortest, a, b, end):
    """Within the range of the data there is no ZBL to be unlearned."""
    repulsion = make_model(zbl=True, shortest_distances=shortest).repulsion
    vec = torch.tensor([[end, 0, 0], [0.98 * end, 0, 0]], dtype=torch.float64)
    beyond, within = repulsion.of_edges(vec, *(torch.full((2,), ["C", "Si"].index(x)) for x in (a, b)))
    assert beyond == 0 < within


def test_zbl_never_reaches_beyond_the_cutoff(make_model):
    assert make_model(zbl=True, r_max=1.0).repulsion.end.max() == 1.0


def test_within_the_data_zbl_changes_nothing(make_model, structure):
    atoms = structure("crystal")
    without = energies(make_model(zbl=False), atoms)
    shortest = dict.fromkeys(("C-C", "C-Si", "Si-Si"), 1.5)
    assert torch.equal(energies(make_model(zbl=True, shortest_distances=shortest), atoms), without)
    assert not torch.equal(energies(make_model(zbl=True, shortest_distances=dict.fromkeys(shortest, 3.0)), atoms), without)
    assert torch.equal(energies(make_model(zbl=False, shortest_distances=dict.fromkeys(shortest, 3.0)), atoms), without)


@pytest.mark.parametrize("scale", [0.6, 0.8, 0.85, 0.9, 1.0])
def test_forces_are_the_slope_of_the_energy_where_the_network_lets_go(make_model, structure, scale):
    model = make_model(zbl=True, shortest_distances={"C-C": 2.5, "C-Si": 1.9, "Si-Si": 2.5}).requires_grad_(False)
    atoms = structure("crystal")
    atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
    forces = predict(model, build_graph(atoms, 4.0), torch.float64).forces.numpy()
    direction, h = np.random.default_rng(0).normal(size=forces.shape), 1e-4
    values = []
    for n in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions += n * h * direction
        values.append(energies(model, moved).sum().item())
    slope = np.dot(values, [1, -8, 8, -1]) / (12 * h)
    assert -(forces * direction).sum() == pytest.approx(slope, abs=1e-7 * np.abs(forces).max())


def test_float32_weights_leave_the_repulsion_in_float64(make_model):
    model = AttentionACE(make_model().config, {"C": 0.0, "Si": 0.0}, dtype=torch.float32)
    assert model.repulsion.strength.dtype == torch.float64


def test_a_crystal_of_one_atom_sees_its_own_images(model):
    """bulk silicon in its primitive and cubic cell: the same energy per atom."""
    one, eight = bulk("Si", a=5.43), bulk("Si", a=5.43, cubic=True)
    close(energies(model, one).mean(), energies(model, eight).mean())


def test_energies_stay_in_float64_whatever_the_weights_are_turned_into(make_model):
    """Thousands of eV have to be resolved to µeV, and ZBL to more than float32 has."""
    model = make_model()
    model.atomic_energies += 1e-9  # float32 would lose it
    for turned in (copy.deepcopy(model).float(), copy.deepcopy(model).to(torch.float32), copy.deepcopy(model).half().double()):
        assert torch.equal(turned.atomic_energies, model.atomic_energies)
        assert torch.equal(turned.repulsion.length, model.repulsion.length)
    assert copy.deepcopy(model).float().dtype == torch.float32
    assert {buffer.device.type for buffer in model.to("meta").buffers()} == {"meta"}
