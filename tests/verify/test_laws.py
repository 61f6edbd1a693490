"""The laws hold for an untrained model on every kind of structure, and each law catches a calculator that was broken on purpose."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

import flashace.nn.attention
import flashace.potential.model
import flashace.structure.verlet
from flashace import verify
from flashace.calculator import FlashACE
from flashace.nn.layer import Layer
from flashace.nn.radial import polynomial_envelope
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.potential.model_file import save_model
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph
from flashace.structure.verlet import VerletList
from flashace.verify import LawResult, runner

R_MAX = 4.0
REFERENCE = {"H": -13.1, "C": -150.3, "Si": -100.7}


def write_model(path: str) -> None:
    """An untrained model whose forces are of the size of real ones."""
    torch.manual_seed(0)
    config = ModelConfig(r_max=R_MAX, hidden_dim=16, num_channels=4, num_heads=4, key_dim=4, num_layers=2)
    network = AttentionACE(config, REFERENCE, avg_num_neighbors=20.0, dtype=torch.float64)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight *= 10.0 if "readout" in name else 1.1
    save_model(path, network, {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("model") / "model.pt")
    write_model(path)
    return path


def crystal() -> Atoms:
    """8 atoms in a cell smaller than the cutoff."""
    return bulk("SiC", "zincblende", a=3.9, cubic=True)


def with_vacuum(*axes: int) -> Atoms:
    atoms = crystal()
    atoms.pbc[list(axes)] = False
    atoms.center(vacuum=3.0, axis=axes)
    return atoms


STRUCTURES = {
    "crystal": crystal,
    "skewed cell of two atoms": lambda: bulk("SiC", "zincblende", a=3.9),
    "slab": lambda: with_vacuum(1),
    "wire": lambda: with_vacuum(0, 2),
    "molecule": lambda: molecule("C2H6"),
    "atom": lambda: Atoms("C"),
}
SILENT = {
    "molecule": {"wrapping", "lattice vectors", "supercell", "stress"},
    "atom": {"chunked equals whole", "wrapping", "lattice vectors", "supercell", "stress", "permutation", "hessian symmetry"},
}
OF_PAIRS = (verify.atoms_in_a_line, verify.cutoff_with_a_lone_neighbour, verify.force_jumps_of_a_pair)  # ask for the elements alone
LEARNED = (verify.pair_repulsion, verify.pair_tortuosity, verify.sanity)  # what data teaches, and an untrained model does not know


def named(*laws: Callable[..., LawResult]) -> list[str]:
    return [law.__name__.replace("_", " ") for law in laws]


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_law_holds(model: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = LEARNED if name == "crystal" else (*LEARNED, *OF_PAIRS)
    monkeypatch.setattr(runner, "LAWS", [law for law in verify.LAWS if law not in left_out])
    results = verify.verify(lambda dtype: FlashACE(model, device="cpu", dtype=dtype), STRUCTURES[name]())
    assert [r.law for r in results] == [law for law in ALL_LAWS if law not in named(*left_out)]
    assert [r for r in results if r.passed is False] == []
    silent = {r.law for r in results if r.passed is None}
    assert silent == SILENT.get(name, set())
    assert all(r.detail for r in results if r.passed is None)


def test_every_law_holds_in_float32_alone(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LAWS", [law for law in verify.LAWS if law not in LEARNED])
    structure = bulk("SiC", "zincblende", a=4.36, cubic=True)  # at its usual density: ZBL is too stiff for differences in float32
    results = verify.verify(lambda dtype: FlashACE(model, device="cpu", dtype=dtype), structure, precisions=["float32"])
    assert [r for r in results if r.passed is False] == []
    assert [r.law for r in results if r.passed is None] == ["float32 noise"]


# --- broken on purpose: each one keeps as many other laws as it can ---


def with_graphs_of(build: Callable[[Atoms, float], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerletList, "__call__", lambda self, atoms: build(atoms, self.r_max))


def no_periodic_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(atoms: Atoms, r_max: float) -> Graph:
        alone = atoms.copy()
        alone.pbc = False
        return build_graph(alone, r_max)

    with_graphs_of(without, monkeypatch)


def no_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashace.potential.model, "polynomial_envelope", lambda r, r_max, exponent: (r < r_max).to(r.dtype))


def rough_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes to zero with its slope, but the second derivative jumps."""
    monkeypatch.setattr(flashace.potential.model, "polynomial_envelope", lambda r, r_max, exponent: (1 - r / r_max).clamp(min=0) ** 2)


def neighbour_list_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    with_graphs_of(lambda atoms, r_max: build_graph(atoms, r_max - 0.3), monkeypatch)


def softmax_without_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(score: Tensor, envelope: Tensor, own_weight: float) -> Tensor:
        weight = envelope.unsqueeze(-1) * torch.exp(score)
        return weight / (1e-200 + weight.sum(1, keepdim=True))

    monkeypatch.setattr(flashace.nn.attention, "attention_weights", weights)


def norm_over_components(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Layer.forward

    def forward(self: Layer, *args: Any) -> tuple[Tensor, Tensor]:
        s, t = original(self, *args)
        return s, (t - t.mean(1, keepdim=True)) / (1 + t.var(1, keepdim=True)).sqrt()

    monkeypatch.setattr(Layer, "forward", forward)


def energies(change: Callable[[AttentionACE, Graph, Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """A model that adds `change(model, graph, interaction energies [N])` to its energies, with exact derivatives."""
    original = AttentionACE.forward

    def forward(self: AttentionACE, graph: Graph) -> Tensor:
        energy = original(self, graph)
        interaction = energy - self.atomic_energies[self.element_index[graph.numbers[: graph.num_centres]]]
        return energy + change(self, graph, interaction)

    return lambda monkeypatch: monkeypatch.setattr(AttentionACE, "forward", forward)


def attention_over_all_atoms(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    return (interaction.softmax(0) * interaction).sum().expand_as(interaction)


def order_of_the_atoms(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    return 1e-6 * torch.arange(len(interaction)) * interaction


def place_in_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph does not tell where atoms are, so the calculator has to do it."""
    original = FlashACE.calculate

    def calculate(self: FlashACE, *args: Any) -> None:
        original(self, *args)
        alone = [self.model.e0[symbol] for symbol in self.atoms.symbols]
        change = 1e-6 * float(self.atoms.positions[:, 0] @ (self.results["energies"] - alone))
        self.results["energy"], self.results["free_energy"] = self.results["energy"] + change, self.results["energy"] + change

    monkeypatch.setattr(FlashACE, "calculate", calculate)


def energy_of_nothing(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    return torch.full_like(interaction, 1e-6)


def handedness(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    """The triple product of three vectors that an atom sees: it turns with the structure but knows left from right."""
    vec = graph.edge_vec.double()
    f = (1 - vec.norm(dim=-1) / model.config.r_max).clamp(min=0).unsqueeze(-1)
    sums = [vec.new_zeros(len(interaction), 3).index_add(0, graph.edge_index[0], f**n * vec) for n in (4, 5, 6)]
    return 10 * torch.linalg.det(torch.stack(sums, dim=1))


def message_passing(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    """What an atom feels it tells its neighbours."""
    (i, j), r = graph.edge_index, graph.edge_vec.double().norm(dim=-1)
    weight = (1 - r / model.config.r_max).clamp(min=0) ** 4
    return 0.1 * torch.zeros_like(interaction).index_add(0, i, weight * torch.tanh(interaction)[j])


def _steps(model: AttentionACE, graph: Graph, f: Tensor) -> Tensor:
    return torch.zeros(graph.num_centres, dtype=torch.float64).index_add(0, graph.edge_index[0], f)


def inner_cutoff(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    """A term that ends with a slope, well inside."""
    r = graph.edge_vec.double().norm(dim=-1)
    return _steps(model, graph, 0.1 * (2.0 - r).clamp(min=0))


def angles(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    """acos has a kink at 180°; the code knows that it is infinitely steep there, and takes 0."""
    i, vec = graph.edge_index[0], graph.edge_vec.double()
    f = (1 - vec.norm(dim=-1) / model.config.r_max).clamp(min=0) ** 4
    unit = vec / vec.norm(dim=-1, keepdim=True)
    a, b = torch.nonzero((i[:, None] == i[None, :]) & ~torch.eye(len(i), dtype=torch.bool), as_tuple=True)
    angle = torch.acos((unit[a] * unit[b]).sum(-1).clamp(-1 + 1e-12, 1 - 1e-12))
    return 0.1 * torch.zeros_like(interaction).index_add(0, i[a], f[a] * f[b] * angle)


def the_cell_itself(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    """Knows the lengths of the lattice vectors: rotations leave them alone."""
    return 1e-6 * graph.cell.norm(dim=-1).sum() * interaction


def attraction(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    r = graph.edge_vec.double().norm(dim=-1)
    return -interaction + _steps(model, graph, -10 * (1 - r / model.config.r_max).clamp(min=0) ** 4)


def many_minima(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    r = graph.edge_vec.double().norm(dim=-1)
    return -interaction + _steps(model, graph, torch.cos(12 * r) * (1 - r / model.config.r_max).clamp(min=0) ** 3)


def polynomial(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    """Small where atoms have many neighbours, and large where they have few: nothing cancels there."""
    number = _steps(model, graph, polynomial_envelope(graph.edge_vec.double().norm(dim=-1), model.config.r_max, 6))
    return 300 * number / (1 + number) ** 3


def rough_single_precision(model: AttentionACE, graph: Graph, interaction: Tensor) -> Tensor:
    return 1e-3 * interaction if model.dtype == torch.float32 else 0 * interaction


def results(change: Callable[[FlashACE], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """A calculator whose results are changed after all."""
    original = FlashACE.calculate

    def calculate(self: FlashACE, *args: Any) -> None:
        original(self, *args)
        change(self)

    return lambda monkeypatch: monkeypatch.setattr(FlashACE, "calculate", calculate)


def wrong_stress_sign(calculator: FlashACE) -> None:
    if "stress" in calculator.results:
        calculator.results["stress"] *= -1


def forces_of_no_energy(calculator: FlashACE) -> None:
    """A push on each atom that its neighbours do not return."""
    graph = build_graph(calculator.atoms, R_MAX)
    vec = graph.edge_vec.numpy()
    push = (1 - np.linalg.norm(vec, axis=1, keepdims=True) / R_MAX) ** 4 * vec
    np.add.at(calculator.results["forces"], graph.edge_index[0], 0.1 * calculator.atoms.numbers[graph.edge_index[0]][:, None] * push)


def stress_per_other_volume(calculator: FlashACE) -> None:
    """The volume of the cell as it was when the calculator was written, say."""
    if "stress" in calculator.results:
        calculator.results["stress"] /= 1.01


def energies_without_reference(calculator: FlashACE) -> None:
    calculator.results["energy"] -= sum(REFERENCE[symbol] for symbol in calculator.atoms.symbols)


def noise(calculator: FlashACE) -> None:
    calculator.results["energy"] += 1e-6 * np.random.default_rng().normal()


def not_a_number(calculator: FlashACE) -> None:
    if calculator.atoms.cell.volume < crystal().cell.volume:
        calculator.results["forces"][0] = np.nan


def every_direction_periodic(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(atoms: Atoms, r_max: float) -> Graph:
        other = atoms.copy()
        other.pbc = other.cell.lengths() > 0
        return build_graph(other, r_max)

    with_graphs_of(closed, monkeypatch)


def stale_neighbour_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is whose neighbour is decided once, as long as the number of atoms stays."""
    monkeypatch.setattr(flashace.structure.verlet._Candidates, "hold_for", lambda self, atoms, r_max: len(atoms) == len(self.before))


Break = Callable[[pytest.MonkeyPatch], None]
# what is broken: how, the laws that must catch it, laws that must not
BROKEN: dict[str, tuple[Break, set[str], set[str]]] = {
    "no periodic images": (no_periodic_images, {"wrapping", "supercell"}, {"rotation", "forces", "stress"}),
    "no envelope": (no_envelope, {"cutoff with a lone neighbour", "cutoff in the structure"}, {"rotation", "forces"}),
    "rough envelope": (rough_envelope, {"cutoff with a lone neighbour", "cutoff in the structure"}, {"forces"}),
    "neighbour list too short": (neighbour_list_too_short, {"cutoff with a lone neighbour"}, {"forces", "supercell"}),
    "softmax without the 1": (softmax_without_the_one, {"cutoff with a lone neighbour"}, {"cutoff in the structure", "forces"}),
    "norm over components": (norm_over_components, {"rotation", "reflection"}, {"forces", "translation"}),
    "global attention": (
        energies(attention_over_all_atoms),
        {"additivity", "chunked equals whole"},
        {"forces", "supercell", "permutation"},
    ),
    "order of the atoms": (energies(order_of_the_atoms), {"permutation"}, {"forces", "rotation", "isolated atom"}),
    "place in space": (place_in_space, {"translation"}, {"permutation", "isolated atom"}),
    "energy of nothing": (energies(energy_of_nothing), {"isolated atom"}, {"forces", "supercell", "additivity"}),
    "message passing": (energies(message_passing), {"locality"}, {"additivity", "forces", "supercell", "cutoff in the structure"}),
    "inner cutoff": (
        energies(inner_cutoff),
        {"force jumps of a pair", "force jumps in the structure"},
        {"forces", "cutoff in the structure", "rotation"},
    ),
    "angles": (energies(angles), {"atoms in a line"}, {"isolated atom"}),  # an atom between its own images may notice too
    "the cell itself": (energies(the_cell_itself), {"lattice vectors", "supercell", "open directions"}, {"rotation", "forces"}),
    "attraction": (energies(attraction), {"pair repulsion"}, {"pair tortuosity", "forces"}),
    "many minima": (energies(many_minima), {"pair tortuosity"}, {"forces", "rotation"}),
    "polynomial": (energies(polynomial), {"sanity"}, {"forces", "rotation", "isolated atom", "cutoff with a lone neighbour"}),
    "every direction periodic": (every_direction_periodic, {"open directions"}, {"wrapping", "supercell", "forces"}),
    "missing E0": (results(energies_without_reference), {"isolated atom", "sums over atoms"}, {"forces", "additivity"}),
    "stress per other volume": (results(stress_per_other_volume), {"stress", "sums over atoms"}, {"forces", "rotation"}),
    "handedness": (energies(handedness), {"reflection"}, {"rotation", "forces", "stress", "hessian symmetry"}),
    "rough single precision": (energies(rough_single_precision), {"float32 noise"}, {"forces"}),
    "wrong stress sign": (results(wrong_stress_sign), {"stress"}, {"rotation", "supercell", "forces"}),
    "forces of no energy": (
        results(forces_of_no_energy),
        {"forces", "hessian symmetry", "energy conservation"},
        {"rotation", "cutoff in the structure", "supercell"},
    ),
    "noise": (results(noise), {"repeatability"}, {"finite results"}),
    "not a number": (results(not_a_number), {"finite results"}, {"repeatability", "rotation"}),
    "stale neighbour list": (stale_neighbour_list, {"history"}, {"rotation", "repeatability"}),
}
ALL_LAWS = named(*verify.LAWS, *verify.LAWS_BETWEEN_CALCULATORS)


def check(law: str, model: str, atoms: Atoms) -> LawResult:
    def make(dtype: str) -> FlashACE:
        return FlashACE(model, device="cpu", dtype=dtype, kernel="plain")  # what is broken on purpose is in it

    found = getattr(verify, law.replace(" ", "_"))
    return found(make if found in verify.LAWS_BETWEEN_CALCULATORS else make("float64"), atoms)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_calculator_is_caught_by_the_law_it_breaks(model: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it, caught_by, not_by = BROKEN[name]
    break_it(monkeypatch)
    found = {law: check(law, model, verify.shaken(crystal())) for law in sorted(caught_by | not_by)}
    assert {law: r.passed for law, r in found.items()} == {law: law in not_by for law in found}, found


def test_every_law_bites() -> None:
    assert {law for _, caught_by, _ in BROKEN.values() for law in caught_by} == set(ALL_LAWS)
