"""How many neighbours an atom has, and what a calculator says where training had no such atom."""

import re
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import CalculationFailed
from ase.io import write

from flashace import CoordinationWarning, FlashACE, FlashACEError, evaluate_many
from flashace.data.frames import Labelled
from flashace.data.statistics import neighbour_statistics
from flashace.evaluate.calibrate import estimate_uncertainty
from flashace.nn.radial import polynomial_envelope
from flashace.potential.model_file import load_model, read_header, save_model
from flashace.structure.coordination import MADE_UP, SPARE, SPARE_SHARE, Coordination, count_neighbours
from flashace.structure.neighbors import build_graph

R_MAX, EXPONENT = 4.0, 6  # of the models of these tests


def counted(atoms, symbols=("C", "Si"), exponent=EXPONENT):
    graph = build_graph(atoms, R_MAX)
    i, j = graph.edge_index.numpy()
    species = np.array([symbols.index(symbol) for symbol in atoms.symbols])
    return count_neighbours(i, species[j], graph.edge_vec.square().sum(1).numpy(), len(atoms), len(symbols), R_MAX, exponent)


def ranges(frames, symbols=("C", "Si"), before=None):
    return neighbour_statistics([build_graph(atoms, R_MAX) for atoms in frames], symbols, R_MAX, EXPONENT, {}, before or {}).coordination


# The number


@pytest.mark.parametrize("exponent", [2, 3, 5, 6, 9])
def test_the_number_is_the_sum_of_the_envelope(each_structure, exponent):
    graph = build_graph(each_structure, R_MAX)
    f = polynomial_envelope(graph.edge_vec.norm(dim=1), R_MAX, exponent)
    for b, symbol in enumerate(("C", "Si")):
        neighbour_is_b = torch.from_numpy(each_structure.symbols == symbol)[graph.edge_index[1]]
        expected = torch.zeros(len(each_structure), dtype=torch.float64).index_add(0, graph.edge_index[0], f * neighbour_is_b)
        np.testing.assert_allclose(counted(each_structure, exponent=exponent)[:, b], expected, atol=1e-12)


def test_the_range_is_that_of_all_atoms_and_of_what_was_before(structure):
    frames = [structure("crystal"), structure("molecule"), Atoms("SiC", [(0, 0, 0), (1.9, 0, 0)])]
    numbers = np.concatenate([counted(atoms) for atoms in frames])
    symbols = np.concatenate([list(atoms.symbols) for atoms in frames])
    found = ranges(frames)
    for a in "C", "Si":
        for b, name in enumerate(("C", "Si")):
            of_these = numbers[symbols == a, b]
            assert found[f"{a}-{name}"] == pytest.approx((of_these.min(), of_these.max()), abs=1e-12)
    wider = ranges(frames, before={**found, "C-Si": (0.0, 99.0)})
    assert wider == {**found, "C-Si": (0.0, 99.0)}


def test_an_atom_without_neighbours_is_in_no_range(structure):
    crystal, far = structure("crystal"), Atoms("SiCSi", [(0, 0, 0), (50, 0, 0), (1.9, 50, 0)])
    assert ranges([crystal, far, Atoms("C")]) == ranges([crystal])
    assert ranges([Atoms("SiC", [(0, 0, 0), (9, 0, 0)])]) == dict.fromkeys(("C-C", "C-Si", "Si-C", "Si-Si"), (0.0, 0.0))


# What is far


def test_far_is_more_than_a_fifth_of_a_neighbour_and_five_percent():
    known = Coordination({"C-C": (0.0, 0.0), "C-Si": (2.0, 3.0), "Si-C": (8.0, 20.0), "Si-Si": (1.0, 1.0)}, ["C", "Si"])
    assert (SPARE, SPARE_SHARE) == (0.2, 0.05)

    def far(species, *numbers):
        return known.far_outside(np.array([numbers]), np.array([species])).tolist()

    for species, inside, outside in (
        (0, (0.0, 1.81), (0.0, 1.79)),
        (0, (0.19, 3.19), (0.21, 3.0)),
        (0, (0.0, 3.19), (0.0, 3.21)),
        (1, (7.61, 1.0), (7.59, 1.0)),
        (1, (20.9, 1.0), (21.1, 1.0)),
    ):
        assert (far(species, *inside), far(species, *outside)) == ([], [0])
    assert far(0, 0.0, 0.0) == []  # alone
    many = np.array([[0.0, 1.5], [0.0, 2.5], [0.0, 0.4]])
    assert known.far_outside(many, np.zeros(3, dtype=int)).tolist() == [2, 0]
    assert known.farthest(2, many[2], 0) == (2, 1, 0.4, 2.0, 3.0)


def test_what_other_neighbours_make_up_for_may_leave_the_range_by_its_width():
    known = Coordination({"C-C": (4.0, 6.0), "C-Si": (5.0, 7.0), "Si-C": (0.0, 9.0), "Si-Si": (0.0, 9.0)}, ["C", "Si"])
    assert MADE_UP == 0.5
    for numbers, is_far in (
        ((7.9, 4.1), False),  # three of silicon are carbon now
        ((8.1, 3.9), True),  # by more than the width
        ((7.9, 4.9), True),  # one and a half more than the middle of all: more than half of what carbon has
        ((7.9, 4.5), False),
        ((3.1, 4.1), True),  # fewer of both
        ((6.4, 7.2), True),
    ):
        assert known.far_outside(np.array([numbers]), np.array([0])).tolist() == [0] * is_far, numbers


def an_alloy(seed, rattle=0.05):
    atoms = bulk("C", "fcc", a=3.4, cubic=True).repeat(2)
    atoms.symbols = np.random.default_rng(seed).permutation(["C"] * 16 + ["Si"] * 16)
    atoms.rattle(rattle, seed=seed)
    return atoms


def test_a_new_order_is_no_news_and_its_surface_is():
    frames = [an_alloy(seed % 5, 0.03 + 0.005 * seed) for seed in range(10)]
    known = Coordination(ranges(frames), ("C", "Si"))

    def far(atoms):
        return len(known.far_outside(counted(atoms), atoms.numbers // 10))

    orders = [an_alloy(seed) for seed in range(100, 300)]
    assert not any(far(atoms) for atoms in orders)
    assert any(((counted(a) < known.least[a.numbers // 10] - 0.5) | (counted(a) > known.most[a.numbers // 10] + 0.5)).any() for a in orders)
    for atoms in orders[:20]:
        atoms.cell[2, 2] += 10.0
        assert far(atoms)


WRONG = {
    "a pair missing": lambda c: c.pop("C-Si"),
    "a pair too many": lambda c: c.update({"C-H": [0.0, 1.0]}),
    "one number": lambda c: c.update({"C-Si": [1.0]}),
    "three numbers": lambda c: c.update({"C-Si": [1.0, 2.0, 3.0]}),
    "the most before the least": lambda c: c.update({"C-Si": [2.0, 1.0]}),
    "fewer than none": lambda c: c.update({"C-Si": [-1.0, 1.0]}),
    "text": lambda c: c.update({"C-Si": ["few", "many"]}),
    "no list": lambda c: c.update({"C-Si": 1.0}),
}


@pytest.mark.parametrize("case", WRONG)
def test_ranges_that_do_not_fit_are_refused(make_model, tmp_path, monkeypatch, case):
    model = make_model()
    model.coordination = Coordination(dict.fromkeys(("C-C", "C-Si", "Si-C", "Si-Si"), (0.0, 2.0)), model.symbols)
    WRONG[case](model.coordination.of_pairs)
    save_model(tmp_path / "wrong.pt", model, {})
    with pytest.raises(FlashACEError, match="header and weights of this model file do not fit together"):
        load_model(tmp_path / "wrong.pt")


# What a calculator says


def rattled(seed):
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True)
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.fixture
def trained_file(make_model, tmp_path):
    """A model of crystals of SiC."""
    model = make_model()
    model.coordination = Coordination(ranges([rattled(seed) for seed in range(20)]), model.symbols)
    save_model(tmp_path / "m.pt", model, {})
    return tmp_path / "m.pt"


@pytest.fixture
def calculator(trained_file):
    return FlashACE(trained_file, device="cpu", dtype="float64")


def warnings_of(atoms, calculator):
    atoms.calc = calculator
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        atoms.get_forces()
    return [str(w.message) for w in caught if w.category is CoordinationWarning]


def test_the_range_comes_back_from_the_file(trained_file):
    expected = {pair: list(ends) for pair, ends in ranges([rattled(seed) for seed in range(20)]).items()}
    assert load_model(trained_file).coordination.of_pairs == expected
    assert read_header(trained_file)["coordination"] == expected


def test_what_training_had_is_no_news(calculator):
    assert not any(warnings_of(rattled(seed), calculator) for seed in range(20, 60))
    assert not warnings_of(rattled(1).repeat((2, 1, 1)), calculator)


def slab():
    atoms = rattled(1).repeat((1, 1, 2))
    atoms.center(vacuum=8.0, axis=2)
    return atoms


def leaving_the_surface():
    atoms = slab()
    atoms.positions[atoms.positions[:, 2].argmax(), 2] += 1.5
    return atoms


def with_a_hole():
    atoms = rattled(1).repeat(2)
    del atoms[20]
    return atoms


def squeezed():
    atoms = rattled(1)
    atoms.set_cell(0.85 * atoms.cell.array, scale_atoms=True)
    return atoms


UNLIKE = {
    "a slab": slab,
    "an atom leaves a surface": leaving_the_surface,
    "a vacancy": with_a_hole,
    "a squeezed crystal": squeezed,
    "a molecule": lambda: Atoms("SiC", [(0, 0, 0), (1.8, 0, 0)]),
    "a chain": lambda: Atoms("SiC", [(0, 0, 0), (1.9, 0, 0)], cell=[3.8, 0, 0], pbc=(True, False, False)),
    "another order": lambda: bulk("SiC", "rocksalt", a=4.0, cubic=True),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_training_did_not_have_is_told_once(calculator, name):
    (message,) = warnings_of(UNLIKE[name](), calculator)
    told = r"most of all atom (\d+) \((\w+)\): ([\d.]+) neighbours (\w+), counted by the envelope, and ([\d.]+) to ([\d.]+) in training"
    atom, centre, number, neighbour, least, most = re.search(told, message).groups()
    atoms, b = UNLIKE[name](), ["C", "Si"].index(neighbour)
    assert atoms.symbols[int(atom)] == centre
    assert counted(atoms)[int(atom), b] == pytest.approx(float(number), abs=0.006)
    assert not float(least) - SPARE < float(number) < float(most) + SPARE
    assert not warnings_of(slab(), calculator)


def test_an_atom_alone_has_its_energy_and_is_no_news(calculator):
    assert not warnings_of(Atoms("Si"), calculator)
    assert not warnings_of(Atoms("SiC", [(0, 0, 0), (50, 0, 0)]), calculator)


def test_many_structures_are_looked_through_as_well(calculator):
    with pytest.warns(CoordinationWarning, match=r"of 16 atoms"):
        evaluate_many([rattled(0), slab()], calculator)


def test_files_that_do_not_tell_are_not_guarded(model_file):
    assert not warnings_of(slab(), FlashACE(model_file))


def test_stop_uncertainty_stops_however_certain_the_energies_seem(make_model, tmp_path):
    model = make_model().requires_grad_(False)
    frames = [rattled(seed) for seed in range(12)]
    graphs = [build_graph(atoms, R_MAX) for atoms in frames]
    labelled = [Labelled(atoms, model(graph).sum().item() + 0.1, None, None, "", "") for atoms, graph in zip(frames, graphs, strict=True)]
    model.uncertainty = estimate_uncertainty(model, (labelled, graphs), (labelled, graphs))
    model.coordination = Coordination(ranges(frames), model.symbols)
    save_model(tmp_path / "m.pt", model, {})
    atoms = rattled(3)
    atoms.calc = FlashACE(tmp_path / "m.pt", dtype="float64", stop_uncertainty=1e6)
    atoms.get_forces()
    for _ in range(2):
        outside = slab()
        outside.calc = atoms.calc
        with pytest.raises(CalculationFailed, match=r"stop_uncertainty: \d+ of 16 atoms have far fewer or far more neighbours"):
            outside.get_forces()
    assert atoms.calc.results == {}
    atoms.calc.set(stop_uncertainty=None)
    with pytest.warns(CoordinationWarning):
        assert np.isfinite(outside.get_potential_energy())


def test_a_fit_knows_its_data(run_folder, make_frames):
    known = load_model(run_folder / "model.pt").coordination.of_pairs
    assert list(known) == ["C-C", "C-Si", "Si-C", "Si-Si"]
    calculator = FlashACE(run_folder / "model.pt")
    assert not any(warnings_of(Atoms(frame), calculator) for frame in make_frames(40, seed=5))
    assert warnings_of(fcc111("Si", (2, 2, 4), a=3.9, vacuum=6.0), calculator)


def test_a_fit_that_starts_from_a_model_knows_the_data_of_both(run_folder, trainer, make_frames, tmp_path):
    frames = make_frames(12)
    for atoms in frames:
        atoms.set_cell(1.2 * atoms.cell.array, scale_atoms=True)
    write(tmp_path / "wide.extxyz", frames)
    before = load_model(run_folder / "model.pt").coordination
    after = trainer(data=[str(tmp_path / "wide.extxyz")], resume_from=str(run_folder / "model.pt")).model.coordination
    assert (after.most == before.most).all()
    assert after.of_pairs["C-Si"][0] < before.of_pairs["C-Si"][0]
