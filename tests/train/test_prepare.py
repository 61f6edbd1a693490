"""What a fit decides by itself, and where its model starts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from flashace.data.frames import Labelled
from flashace.data.graphs import build_graphs
from flashace.errors import FlashACEError
from flashace.structure.neighbors import build_graph
from flashace.train.config import make_config
from flashace.train.first_model import make_model, start_readouts
from flashace.train.prepare import prepare


@pytest.fixture
def prepared(tiny_fit, data_file):
    return lambda **options: prepare(make_config({**tiny_fit, "data": [str(data_file)], **options}))


def atom(symbol, energy):
    atoms = Atoms(symbol, info={"config_type": "IsolatedAtom"})
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    return atoms


def test_open_choices_are_filled_in(prepared, data_file):
    settled = prepared(batch_size=None, epochs=None).config.train
    assert settled.batch_size >= 1
    assert settled.epochs >= 1
    by_time = prepared(epochs=None, max_time=2.0).config.train
    assert (by_time.epochs, by_time.max_time) == (None, 2.0)


def test_the_fraction_for_validation_is_as_told(prepared):
    assert [len(prepared(valid_fraction=f).valid) for f in (0.1, 0.5)] == [1, 6]


def test_a_guess_of_the_epochs_counts_steps(prepared, monkeypatch):
    monkeypatch.setattr("flashace.train.prepare.TYPICAL_STEPS", 110)
    epochs = [prepared(epochs=None, grad_accum_steps=k).config.train.epochs for k in (1, 3)]
    assert epochs == [40, 120]


def test_every_decision_is_told(prepared):
    decisions = dict(prepared(max_time=3.0).decisions())
    assert decisions["elements"] == "C, Si"
    assert "11 training and 1 validation" in decisions["split"]
    assert decisions["model"] == "medium: num_layers 1, l_max 2, correlation 2, hidden_dim 16, num_channels 4"
    assert decisions["cutoff"] == "3 Å"
    assert decisions["batch size"] == "4 frames"
    assert decisions["length"] == "2 epochs, at most 3 minutes"
    assert "least squares" in decisions["reference energies"]
    assert "cpu, float64" in decisions["device, dtype"]


def test_few_validation_frames_are_told_to_choose_nothing(prepared):
    assert "too few to choose weights by" in dict(prepared().decisions())["split"]
    assert "12 training and 0 validation" in dict(prepared(valid_fraction=0).decisions())["split"]
    with pytest.raises(FlashACEError, match="valid_fraction: 0 leaves no frames for validation, by which early_stopping would decide"):
        prepared(valid_fraction=0, early_stopping=3)


def test_preparing_and_building_leave_random_state_alone(prepared):
    state = torch.random.get_rng_state()
    p = prepared()
    make_model(p, build_graphs(p.train, 3.0))
    assert (torch.random.get_rng_state() == state).all()


def test_the_seed_draws_the_weights_and_the_split(prepared):
    def weights(seed):
        p = prepared(seed=seed)
        return make_model(p, build_graphs(p.train, 3.0)).embedding, [f.origin for f in p.valid]

    one, again, other = weights(3), weights(3), weights(6)
    assert torch.equal(one[0], again[0])
    assert one[1] == again[1]
    assert not torch.equal(one[0], other[0])
    assert one[1] != other[1]


# Reference energies


def test_isolated_atoms_of_the_data_are_the_zero(prepared, data_file, tmp_path):
    write(tmp_path / "d.extxyz", [*read(data_file, ":"), atom("Si", -5.25), atom("C", -7.5)])
    p = prepared(data=[str(tmp_path / "d.extxyz")])
    assert p.references.values == {"C": -7.5, "Si": -5.25}
    assert p.references.origin == "from isolated atoms in the data"
    assert len(p.train) + len(p.valid) == 12
    assert make_model(p, build_graphs(p.train, 3.0)).e0 == {"C": -7.5, "Si": -5.25}


ALONE = {
    "none": ({}, False),
    "in a file": ({"isolated_atoms": "atoms.extxyz"}, True),
    "given": ({"atomic_energies": {"C": -7.5, "Si": -5.25}}, True),
    "one for all": ({"energy_shift_per_atom": -3.5}, False),
}


@pytest.mark.parametrize("case", ALONE)
def test_energies_without_isolated_atoms_are_told_to_mean_nothing_at_low_density(prepared, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    lone_atoms(tmp_path / "atoms.extxyz", -7.5)
    options, known = ALONE[case]
    p = prepared(**options)
    told = dict(p.decisions())["reference energies"]
    assert ("mean nothing: dissociation" in told) is ("--isolated-atoms FILE" in told) is not known
    assert make_model(p, build_graphs(p.train, 3.0)).free_atoms is known
    assert ("low density" in dict(p.decisions())) is known


def lone_atoms(path, carbon):
    lone = [atom("C", carbon), atom("Si", -5.25), Atoms("C2", [(0, 0, 0), (0, 0, 1.4)])]
    for atoms in lone[:2]:
        atoms.info.clear()
    write(path, lone)
    return str(path)


def test_isolated_atoms_of_a_file(prepared, tmp_path):
    file = lone_atoms(tmp_path / "atoms.extxyz", -7.5)
    p = prepared(isolated_atoms=file)
    assert p.references.values == {"C": -7.5, "Si": -5.25}
    assert p.references.origin == f"from {file}"


def test_one_number_for_all_elements(prepared):
    p = prepared(energy_shift_per_atom=-3.5)
    assert p.references.values == {"C": -3.5, "Si": -3.5}
    model = make_model(p, build_graphs(p.train, 3.0))
    assert model(build_graph(Atoms("Si"), 3.0)).item() == -3.5


def test_solving_can_be_forced(prepared, data_file, tmp_path):
    write(tmp_path / "d.extxyz", [*read(data_file, ":"), atom("Si", -5.25), atom("C", -7.5)])
    p = prepared(data=[str(tmp_path / "d.extxyz")], solve_atomic_energies=True)
    assert "least squares over 12 frames, rank 1 of 2; these compositions cannot tell apart C, Si, so the" in p.references.origin
    assert p.references.values == prepared().references.values


GIVEN = {"C": -7.5, "Si": -5.25}
TWO_WAYS = {
    "solved and given": ({"solve_atomic_energies": True, "atomic_energies": GIVEN}, "`atomic_energies` and `solve_atomic_energies`"),
    "solved and shift": ({"solve_atomic_energies": True, "energy_shift_per_atom": -1.0}, "`energy_shift_per_atom` and `solve_atomic"),
    "shift and given": ({"energy_shift_per_atom": -1.0, "atomic_energies": GIVEN}, "`energy_shift_per_atom` and `atomic_energies`"),
    "given and in the data": ({"atomic_energies": {"C": -7.0, "Si": -5.25}}, "`atomic_energies` and `isolated .*-7.0 and -7.5 eV for C"),
    "shift and in the data": ({"energy_shift_per_atom": -1.0}, "`energy_shift_per_atom` and `isolated atoms in the data`"),
}


@pytest.mark.parametrize("case", TWO_WAYS)
def test_two_ways_that_differ_contradict_each_other(prepared, data_file, tmp_path, case):
    write(tmp_path / "d.extxyz", [*read(data_file, ":"), atom("Si", -5.25), atom("C", -7.5)])
    options, message = TWO_WAYS[case]
    with pytest.raises(FlashACEError, match=message):
        prepared(data=[str(tmp_path / "d.extxyz")], **options)
    file = lone_atoms(tmp_path / "atoms.extxyz", -7.5)
    agreeing = prepared(data=[str(tmp_path / "d.extxyz")], isolated_atoms=file, atomic_energies=GIVEN)
    assert agreeing.references.values == GIVEN


def test_energies_of_the_options_are_taken(prepared):
    p = prepared(atomic_energies={"Si": -5.0, "C": -7.0})
    assert p.references.values == {"C": -7.0, "Si": -5.0}
    assert p.references.origin == "from atomic_energies"


def test_an_energy_that_nothing_reads_is_an_error(prepared):
    """A slip of the pen in a symbol must not go unnoticed."""
    with pytest.raises(FlashACEError, match="Sj"):
        prepared(atomic_energies={"Si": -5.0, "C": -7.0, "Sj": -3.0})


ERRORS = {
    "two ways": ({"atomic_energies": {"Si": 1.0, "C": 1.0}, "isolated_atoms": "a.extxyz"}, "contradict each other|no such file"),
    "half of the elements": ({"atomic_energies": {"Si": 1.0}}, r"atomic energies .*C missing"),
    "no data": ({"data": []}, "data: expected at least one file"),
    "missing file": ({"data": ["no.extxyz"]}, "no.extxyz: expected a file of structures, found no such file"),
    "key": ({"energy_key": "dft"}, "expected energy under the key 'dft', but no frame has it"),
    "device": ({"device": "gpu"}, "device: expected auto, cpu"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_fitted_says_why(prepared, case):
    options, message = ERRORS[case]
    with pytest.raises(FlashACEError, match=message):
        prepared(**options)


def test_elements_of_validation_alone_are_an_error(prepared, data_file, tmp_path):
    odd = read(data_file, 0)
    odd.numbers[0] = 32
    odd.calc = SinglePointCalculator(odd, energy=-1.0, forces=np.zeros((2, 3)))
    write(tmp_path / "v.extxyz", odd)
    with pytest.raises(FlashACEError, match="Ge"):
        prepared(valid=[str(tmp_path / "v.extxyz")])


# Where the model starts


def energy_errors(model, graphs, frames):
    return np.array([(model(g).sum().item() - f.energy) / len(f.atoms) for g, f in zip(graphs, frames, strict=True)])


def test_readouts_start_near_the_energies(prepared):
    p = prepared(atomic_energies={"Si": 0.0, "C": 0.0})
    graphs = build_graphs(p.train, 3.0)
    model = make_model(p, graphs)
    before = energy_errors(model, graphs, p.train)
    start_readouts(model, graphs, p.train)
    after = energy_errors(model, graphs, p.train)
    assert np.abs(before).mean() > 5
    assert np.abs(after).mean() < 0.5
    lone = model(build_graph(Atoms("Si"), 3.0))
    assert lone.item() == 0.0


def test_readouts_start_with_what_the_repulsion_leaves_over(make_model, make_frames):
    """Labels that are ZBL and nothing else: the network has nothing to add."""
    frames, graphs, weights = [], [], {}
    repulsion = make_model(zbl=True).repulsion
    for frame in make_frames(8):
        frame.set_cell(0.8 * frame.cell.array, scale_atoms=True)
        graphs.append(graph := build_graph(frame, 4.0))
        species = torch.where(graph.numbers == 6, 0, 1)[graph.edge_index]
        energy = repulsion.of_edges(graph.edge_vec, *species).sum().item() - 7.5 - 5.25
        frames.append(Labelled(frame, energy, np.zeros((2, 3)), None, "", "x#0"))
    for zbl in (True, False):
        model = make_model(zbl=zbl)
        for readout in model.readouts:
            readout.out.weight.data.zero_()
        start_readouts(model, graphs, frames)
        weights[zbl] = torch.cat([readout.linear.weight.flatten() for readout in model.readouts]).abs().max().item()
    assert weights[True] < 1e-10
    assert weights[False] > 1e-2


CASES = {"no energies": {"energy": None}, "no neighbours": {"symbols": "Si"}}


@pytest.mark.parametrize("case", CASES)
def test_readouts_start_where_there_is_nothing_to_start_from(make_model, case):
    """No energy in the training part, or nobody within the cutoff: the model stays usable, nothing crashes."""
    options = {"energy": -3.0, "symbols": "SiC", **CASES[case]}
    atoms = Atoms(options["symbols"], positions=2.0 * np.arange(len(Atoms(options["symbols"])))[:, None] * np.ones(3) / 3**0.5)
    frames = [Labelled(atoms, options["energy"], np.zeros((len(atoms), 3)), None, "", "x#0")] * 2
    model, graphs = make_model(), [build_graph(atoms, 4.0)] * 2
    start_readouts(model, graphs, frames)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("device", "options", "expected", "told"),
    [
        ("cpu", {}, None, "off: use_amp has no effect on cpu in float32"),
        ("cpu", {"use_amp": False}, None, "off"),
        ("cuda", {}, torch.bfloat16, "bfloat16 for linear maps"),
        ("cuda", {"amp_dtype": "float16"}, torch.float16, "float16 for linear maps"),
        ("cuda", {"use_amp": False, "amp_dtype": "float16"}, None, "off"),
        ("cuda", {"dtype": "float64"}, None, "off: use_amp has no effect on cuda in float64"),
    ],
    ids=str,
)
def test_mixed_precision_is_for_gpus_and_says_so(prepared, device, options, expected, told):
    p = replace(prepared(**{"dtype": "float32", **options}), device=torch.device(device))
    assert p.amp_dtype == expected
    assert dict(p.decisions())["mixed precision"] == told


def test_accumulated_batches_are_told_and_keep_the_number_of_steps(prepared):
    assert dict(prepared(grad_accum_steps=3).decisions())["batch size"] == "4 frames, 3 batches per step"
    one, three = (prepared(epochs=None, batch_size=2, grad_accum_steps=k).config.train.epochs for k in (1, 3))
    assert one <= three
