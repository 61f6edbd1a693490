"""The calculator by ASE's rules."""

import copy
import gc
import json
import multiprocessing
import pickle
import re
import warnings
import weakref
from functools import partial
from multiprocessing.reduction import ForkingPickler
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError, all_properties
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import LinearCombinationCalculator, MixedCalculator, SumCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.filters import FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.io import read, write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from flashace import FlashACE, FlashACEError, FreeAtomsWarning, PrecisionWarning, ShortDistanceWarning, batched, evaluate_many
from flashace.potential import derivatives
from flashace.potential.derivatives import predict
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import load_model, save_model
from flashace.structure.neighbors import build_graph

SAME = 1e-11  # eV; the same sums at another place in memory
VOLUMELESS = ["molecule", "wire", "slab without cell height", "atom"]


@pytest.fixture
def calculator(model_file):
    return FlashACE(model_file, device="cpu", dtype="float64", kernel="plain")


@pytest.fixture
def counted(calculator, monkeypatch):
    """The calculator and a list that grows by one with each evaluation of the network."""
    calls = []
    calculator.model = copy.deepcopy(calculator.model)  # other calculators of the file share theirs
    forward = calculator.model.forward
    monkeypatch.setattr(calculator.model, "forward", lambda graph: calls.append(1) or forward(graph))
    return calculator, calls


# Results


def test_results_are_those_of_the_model(calculator, model, each_structure):
    atoms = each_structure
    atoms.calc = calculator
    expected = predict(model, build_graph(atoms, model.config.r_max), torch.float64)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy.item(), abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.energies, atol=1e-12)
    if atoms.cell.rank == 3:
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0], atol=1e-12)
        np.testing.assert_allclose(atoms.get_stresses(), full_3x3_to_voigt_6_stress(expected.stresses.numpy()), atol=1e-12)


def test_names_shapes_and_types_are_those_of_ase(calculator, structure):
    atoms = structure("crystal")
    atoms.calc = calculator
    atoms.get_stresses()
    shapes = {"energy": (), "free_energy": (), "energies": (8,), "forces": (8, 3), "stress": (6,), "stresses": (8, 6)}
    assert {name: np.shape(value) for name, value in calculator.results.items()} == shapes
    assert set(shapes) <= set(all_properties)
    assert sorted(FlashACE.implemented_properties) == sorted(shapes)
    assert calculator.implemented_properties is FlashACE.implemented_properties
    assert type(calculator.results["energy"]) is float
    assert all(value.dtype == np.float64 for value in calculator.results.values() if isinstance(value, np.ndarray))
    assert calculator.results["free_energy"] == calculator.results["energy"] == atoms.get_potential_energy(force_consistent=True)


def test_every_property_comes_from_one_evaluation(counted, structure):
    atoms, (calculator, calls) = structure("crystal"), counted
    atoms.calc = calculator
    for name in FlashACE.implemented_properties:
        assert calculator.get_property(name, atoms) is not None
    atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy(), atoms.get_stresses()
    assert len(calls) == 1


def test_relaxing_atoms_and_cell_takes_one_evaluation_a_step(counted, structure):
    atoms, (calculator, calls) = structure("primitive"), counted
    atoms.calc = calculator
    relaxation = BFGS(FrechetCellFilter(atoms), logfile=None)
    relaxation.run(fmax=1e-9, steps=5)
    assert len(calls) == 6


CHANGES = {
    "positions": lambda atoms: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 0.1),
    "numbers": lambda atoms: atoms.numbers.__setitem__(0, 14 if atoms.numbers[0] == 6 else 6),
    "pbc": lambda atoms: atoms.set_pbc((True, True, False)),
    "cell": lambda atoms: atoms.set_cell(1.02 * atoms.cell.array),
    "number of atoms": lambda atoms: atoms.pop(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_computed_again(counted, model_file, structure, change):
    atoms, (calculator, calls) = structure("crystal"), counted
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    CHANGES[change](atoms)
    after = atoms.get_potential_energy()
    fresh = atoms.copy()
    fresh.calc = FlashACE(model_file, device="cpu", dtype="float64", kernel="plain")
    assert len(calls) == 2
    assert abs(after - before) > 1e-6
    assert after == pytest.approx(fresh.get_potential_energy(), abs=SAME)
    assert len(atoms.get_forces()) == len(atoms)


def test_results_handed_out_are_not_ours_to_spoil(calculator, structure):
    atoms = structure("crystal")
    atoms.calc = calculator
    before = atoms.get_forces().copy()
    atoms.get_forces()[:] = 7.0
    atoms.get_stress()[:] = 7.0
    np.testing.assert_array_equal(atoms.get_forces(), before)


def test_the_users_atoms_are_not_changed(calculator, each_structure):
    before = each_structure.copy()
    each_structure.calc = calculator
    each_structure.get_forces()
    assert each_structure == before


# Stress


@pytest.mark.parametrize("name", VOLUMELESS)
def test_no_stress_without_three_cell_vectors(calculator, structure, name):
    atoms = structure(name)
    atoms.calc = calculator
    atoms.get_forces()
    assert set(calculator.results) == {"energy", "free_energy", "energies", "forces"}
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


@pytest.mark.parametrize("name", ["molecule in a box", "slab in vacuum", "mixed pbc", "left-handed"])
def test_three_cell_vectors_are_enough_for_a_stress(calculator, structure, name):
    """Divided by the volume of the user's cell, whatever is periodic."""
    atoms = structure(name)
    atoms.calc = calculator
    stress = atoms.get_stress()
    assert np.isfinite(stress).all()
    larger = atoms.copy()
    free = np.flatnonzero(~larger.pbc)
    if len(free):
        larger.cell[free[0]] *= 2
        larger.calc = calculator
        np.testing.assert_allclose(larger.get_stress(), stress / 2, rtol=1e-10)
    np.testing.assert_allclose(atoms.get_stresses().sum(0), stress, atol=1e-13)


# Files of ASE


def test_trajectory_and_database_keep_results_and_parameters(calculator, structure, tmp_path, model_file):
    atoms = structure("crystal")
    atoms.calc = calculator
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    write(tmp_path / "a.traj", atoms)
    write(tmp_path / "a.extxyz", atoms)
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
    for name in ("a.traj", "a.extxyz", "a.db"):
        again = read(tmp_path / name)
        assert again.get_potential_energy() == pytest.approx(energy, abs=1e-8), name
        np.testing.assert_allclose(again.get_forces(), forces, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(again.get_stress(), stress, atol=1e-7, err_msg=name)
    row = connect(tmp_path / "a.db").get(1)
    defaults = calculator.default_parameters  # ASE leaves them out
    given = {name: value for name, value in calculator.parameters.items() if name not in defaults or value != defaults[name]}
    assert (row.calculator, row.calculator_parameters) == ("flashace", given)
    assert FlashACE(**row.calculator_parameters).get_potential_energy(structure("crystal")) == pytest.approx(energy, abs=SAME)
    assert read(tmp_path / "a.traj").calc.name == "flashace"


def test_parameters_are_plain_and_complete(model_file):
    calculator = FlashACE(model_file, device="cpu")
    assert calculator.parameters == {**FlashACE.default_parameters, "model": str(model_file), "device": "cpu", "dtype": "float32"}
    assert json.loads(json.dumps(calculator.parameters)) == calculator.parameters
    assert json.loads(json.dumps(calculator.todict())).items() <= calculator.parameters.items()  # ASE leaves defaults out


def test_set_does_what_it_says_or_refuses(model_file):
    """ASE's `set` resets the results; an option that it took without effect would be a lie in every file written from then on."""
    calculator = FlashACE(model_file, device="cpu", dtype="float32")
    try:
        calculator.set(dtype="float64")
    except (FlashACEError, NotImplementedError):
        assert calculator.parameters["dtype"] == "float32"
    else:
        assert calculator.model.dtype == torch.float64


# Elements, precision, devices


def test_unknown_elements_are_named_when_the_calculator_is_attached(calculator):
    with pytest.raises(FlashACEError, match="this model knows C, Si; the structure also has Au, O"):
        Atoms("OSiAu2", np.eye(4, 3)).calc = calculator


def test_elements_that_change_later_are_named_too(calculator, structure):
    atoms = structure("crystal")
    atoms.calc = calculator
    atoms.get_potential_energy()
    atoms.numbers[0] = 8
    with pytest.raises(FlashACEError, match="the structure also has O"):
        atoms.get_potential_energy()


def test_float32_is_the_default_and_follows_float64(model_file, calculator, structure):
    one, other = structure("crystal"), structure("crystal")
    one.calc, other.calc = FlashACE(model_file, device="cpu"), calculator
    assert one.calc.model.dtype == torch.float32
    assert calculator.model.dtype == torch.float64
    assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-3)
    np.testing.assert_allclose(one.get_forces(), other.get_forces(), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "double", "", None])
def test_other_precisions_are_refused(model_file, dtype):
    with pytest.raises(FlashACEError, match=f"dtype: expected float32 or float64, got {re.escape(repr(dtype))}"):
        FlashACE(model_file, dtype=dtype)


def test_what_means_the_same_is_taken_and_kept_as_files_keep_it(model_file, structure, tmp_path):
    """Objects of torch and numpy, None for the usual device, and the folder that a fit leaves."""
    options = {"device": torch.device("cpu"), "dtype": torch.float64, "max_edges": np.int64(500), "skin": np.float32(0.25)}
    given = FlashACE(model_file.parent, **options)
    assert given.parameters == FlashACE(model_file, "cpu", "float64", 500, skin=0.25).parameters
    assert all(type(value) in (str, int, float, type(None)) for value in given.parameters.values())
    given.set(dtype=torch.float64, max_edges=np.int32(500))
    assert FlashACE(model_file, device=None).parameters["device"] == "auto"
    atoms = structure("crystal")
    atoms.calc = given
    atoms.get_forces()
    write(tmp_path / "a.traj", atoms)
    write(tmp_path / "a.json", atoms)
    assert FlashACE(**read(tmp_path / "a.traj").calc.parameters).parameters == given.parameters


def test_stresses_of_atoms_are_kept_when_they_are_asked_for(counted, structure, tmp_path):
    """They would double every trajectory. They come from the evaluation that gave the rest."""
    atoms, (calculator, calls) = structure("crystal"), counted
    atoms.calc = calculator
    stress = atoms.get_stress()
    assert "stresses" not in calculator.results
    write(tmp_path / "without.traj", atoms)
    np.testing.assert_allclose(atoms.get_stresses().sum(0), stress, atol=1e-13)
    write(tmp_path / "with.traj", atoms)
    assert len(calls) == 1
    kept = [read(tmp_path / f"{name}.traj").calc.results for name in ("without", "with")]
    assert kept[1].keys() - kept[0].keys() == {"stresses"}
    atoms.rattle(0.01)
    calculator.calculate(atoms, ["stresses", "energy"])
    np.testing.assert_allclose(calculator.results["stresses"].sum(0), atoms.get_stress(), atol=1e-13)
    assert len(calls) == 2
    calculator.reset()
    atoms.get_stresses()
    assert len(calls) == 3


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x"])
def test_devices_that_are_not_here_are_refused(model_file, device):
    with pytest.raises(FlashACEError, match=f"device: expected auto, cpu or a CUDA device of this machine, got {device!r}"):
        FlashACE(model_file, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message of a machine without CUDA")
def test_auto_takes_the_cpu_where_there_is_no_gpu(model_file):
    assert FlashACE(model_file).device.type == "cpu"
    with pytest.raises(FlashACEError, match=r"got 'cuda'"):
        FlashACE(model_file, device="cuda")


def test_unknown_options_are_refused(model_file):
    with pytest.raises(TypeError, match="default_dtype"):
        FlashACE(model_file, default_dtype="float64")


def test_torch_is_left_as_it_was(model_file, structure):
    """No seed, default dtype or number of threads is changed from inside the library."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    atoms = structure("crystal")
    atoms.calc = FlashACE(model_file)
    atoms.get_forces()
    assert (torch.rand(3) == expected).all()


NO_ELEMENTS = {119: "the atomic number 119", -1: "the atomic number -1", 10**6: "the atomic number 1000000", 0: "X", 118: "Og"}


@pytest.mark.parametrize("number", NO_ELEMENTS)
def test_numbers_outside_the_table_of_elements_are_named(calculator, number):
    atoms = Atoms([14, number], np.eye(2, 3))
    with pytest.raises(FlashACEError, match=f"this model knows C, Si; the structure also has {NO_ELEMENTS[number]}. Use a model fitted to"):
        atoms.calc = calculator


def test_a_difference_of_energies_that_float32_does_not_resolve_is_told_once(model_file, structure):
    atoms = structure("primitive")
    single, double = FlashACE(model_file, device="cpu"), FlashACE(model_file, device="cpu", dtype="float64")
    for calculator in (single, double):
        atoms.calc = calculator
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(3):
                atoms.get_potential_energy()
                atoms.positions[0, 0] += 1e-4
        assert [w.category for w in told] == ([PrecisionWarning] if calculator is single else [])
        assert all("differ by 0.0001 Å in one coordinate" in str(w.message) for w in told)


def test_who_asks_for_forces_or_moves_is_told_nothing(model_file, structure):
    atoms = structure("primitive")
    atoms.calc = FlashACE(model_file, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):  # second derivatives from forces, whatever is asked for first
            atoms.positions[0, 0] += 1e-4
            atoms.get_potential_energy()
            atoms.get_forces()
        thermalize_momenta(atoms, 1.0)
        dynamics = VelocityVerlet(atoms, 0.01 * units.fs)
        dynamics.attach(atoms.get_potential_energy)
        dynamics.run(5)
        for _ in range(3):  # a sampler that wants energies alone
            atoms.rattle(1e-4, seed=1)
            atoms.get_potential_energy()


# Several calculators, several structures


def test_calculators_of_one_file_share_their_weights(model_file, make_model, tmp_path):
    one, other = FlashACE(model_file, dtype="float64", kernel="plain"), FlashACE(str(model_file), dtype="float64", kernel="plain")
    assert one.model is other.model
    assert FlashACE(model_file, dtype="float32").model is not one.model
    path = tmp_path / "m.pt"
    save_model(path, make_model(seed=1), {})
    before = FlashACE(path)
    save_model(path, make_model(seed=2), {})  # another fit, at the same place
    assert FlashACE(path).model is not before.model


def test_weights_that_nobody_holds_are_freed(make_model, tmp_path):
    save_model(tmp_path / "m.pt", make_model(seed=3), {})
    calculator = FlashACE(tmp_path / "m.pt")
    model = weakref.ref(calculator.model)
    del calculator
    gc.collect()
    assert model() is None


def test_copies_share_weights_and_nothing_else(calculator, structure):
    atoms = structure("crystal")
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    twin = copy.deepcopy(atoms)
    assert twin.calc is not calculator
    assert twin.calc.model is calculator.model
    twin.positions[0] += 0.1
    assert abs(twin.get_potential_energy() - energy) > 1e-6
    assert atoms.get_potential_energy() == calculator.results["energy"] == energy
    assert twin.calc.parameters == calculator.parameters
    twin.calc.set(dtype="float32")
    assert calculator.parameters["dtype"] == "float64"


def test_pickled_calculators_and_structures_come_back_whole(calculator, structure):
    """As multiprocessing sends them, and with the weights: the file may be out of reach where they arrive."""
    atoms = structure("crystal")
    atoms.calc = calculator
    forces = atoms.get_forces()
    again = pickle.loads(pickle.dumps(atoms))
    np.testing.assert_array_equal(again.calc.results["forces"], forces)
    again.calc.reset()
    np.testing.assert_allclose(again.get_forces(), forces, atol=SAME)
    assert not any(p.requires_grad for p in again.calc.model.parameters())


@pytest.mark.parametrize("options", [{"kernel": "compiled"}, {"kernel": "plain"}, {"dtype": "float64"}], ids=str)
def test_what_is_sent_to_another_process_is_whole_on_both_sides(model_file, structure, options):
    """`ForkingPickler` moves PyTorch's tensors, away from where C and numpy look at them, and frees where they were."""
    atoms = structure("crystal")
    atoms.calc = FlashACE(model_file, device="cpu", **options)
    forces = atoms.get_forces().copy()
    sent = ForkingPickler.dumps(atoms)
    rubbish = [torch.full((n,), torch.nan) for n in range(1, 4000)]  # takes the place of what is freed
    arrived = ForkingPickler.loads(sent)
    assert arrived.calc.model is atoms.calc.model  # weights of one content are there once
    for side in (atoms, arrived):
        side.calc.reset()
        np.testing.assert_allclose(side.get_forces(), forces, rtol=0, atol=SAME)
    del rubbish


def test_calculators_go_there_and_back(model_file, structure):
    frames = [structure("crystal") for _ in range(3)]
    for n, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=n)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for before, after in zip(frames, pool.imap(partial(_attached, model_file), frames), strict=True):
            found = after.get_potential_energy()
            after.calc.reset()
            assert after.get_potential_energy() == pytest.approx(found, abs=SAME)
            before.calc = FlashACE(model_file, device="cpu")
            assert before.get_potential_energy() == pytest.approx(found, abs=SAME)


def _attached(model_file, atoms):
    atoms.calc = FlashACE(model_file, device="cpu")
    atoms.get_forces()
    return atoms


def test_a_model_that_is_sent_itself_leaves_its_calculators_whole(make_model, structure, tmp_path):
    save_model(tmp_path / "m.pt", make_model(seed=5), {})
    atoms = structure("crystal")
    atoms.calc = FlashACE(tmp_path / "m.pt", device="cpu")
    forces = atoms.get_forces().copy()
    atoms.calc.model.share_memory()
    rubbish = [torch.full((n,), torch.nan) for n in range(1, 4000)]
    atoms.calc.reset()
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    del rubbish


def test_a_calculator_can_be_sent_while_others_are_evaluated_with_it(model_file, structure):
    images = [structure("crystal") for _ in range(2)]
    for n, atoms in enumerate(images):
        atoms.rattle(0.02, seed=n)
        atoms.calc = FlashACE(model_file, device="cpu")
    with batched(images):
        energy = images[0].get_potential_energy()
        assert pickle.loads(pickle.dumps(images[0])).get_potential_energy() == energy


def test_one_calculator_serves_several_structures(calculator, structure):
    """Each answer belongs to the structure that was asked about, whatever was asked before."""
    names = ["crystal", "molecule", "slab in vacuum", "atom"]
    together = {name: structure(name) for name in names}
    for atoms in together.values():
        atoms.calc = calculator
    for name in names * 2:
        alone = structure(name)
        alone.calc = copy.deepcopy(calculator)
        np.testing.assert_allclose(together[name].get_forces(), alone.get_forces(), atol=SAME)
        assert ("stress" in calculator.results) == (together[name].cell.rank == 3)


def test_two_models_do_not_mix(calculator, make_model, structure, tmp_path):
    save_model(tmp_path / "other.pt", make_model(seed=7), {})
    one, other = structure("crystal"), structure("crystal")
    one.calc, other.calc = calculator, FlashACE(tmp_path / "other.pt", dtype="float64", kernel="plain")
    first = one.get_potential_energy(), other.get_potential_energy()
    one.rattle(0.01, seed=3), other.rattle(0.01, seed=3)
    one.get_forces(), other.get_forces()
    one.positions, other.positions = structure("crystal").positions, structure("crystal").positions
    assert (one.get_potential_energy(), other.get_potential_energy()) == pytest.approx(first, abs=SAME)
    assert abs(first[0] - first[1]) > 1e-3


def test_a_band_in_threads_is_the_band_in_series(model_file, structure):
    """ASE's NEB runs one calculator per image, each in a thread of its own."""
    forces = {}
    for parallel in (True, False):
        ends = structure("crystal"), structure("crystal")
        ends[1].positions[0] += (0.8, 0.3, 0.1)
        band = NEB([ends[0], *(ends[0].copy() for _ in range(4)), ends[1]], parallel=parallel)
        band.interpolate()
        for image in band.images:
            image.calc = FlashACE(model_file, dtype="float64", kernel="plain")
        for _ in range(3):
            forces[parallel] = band.get_forces()
            band.set_positions(band.get_positions() + 0.01 * forces[parallel])
        assert len({id(image.calc.model) for image in band.images}) == 1
    np.testing.assert_allclose(forces[True], forces[False], atol=1e-9)


# What ASE has no name for


def turned(atoms):
    """Rotated, mirrored and moved."""
    other = atoms.copy()
    q = -np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    other.set_cell(atoms.cell.array @ q.T)
    other.positions = atoms.positions @ q.T + 1.7
    return other


@pytest.mark.parametrize("name", ["crystal", "molecule", "wire", "atom"])
def test_descriptors_do_not_turn_with_the_structure(calculator, structure, name):
    atoms = structure(name)
    found = calculator.get_descriptors(atoms)
    assert found.shape == (len(atoms), calculator.model.config.hidden_dim)
    np.testing.assert_allclose(calculator.get_descriptors(turned(atoms)), found, atol=1e-11)
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(calculator.get_descriptors(atoms[order]), found[order], atol=1e-11)


def test_descriptors_are_what_the_readouts_read(calculator, structure):
    """Each layer has its own, and together they give the energies."""
    atoms, model = structure("crystal"), calculator.model
    atoms.set_cell(1.25 * atoms.cell.array, scale_atoms=True)  # beyond the reach of the repulsion
    layers = [torch.from_numpy(calculator.get_descriptors(atoms, layer=layer)) for layer in range(model.config.num_layers)]
    np.testing.assert_array_equal(calculator.get_descriptors(atoms), layers[-1])
    np.testing.assert_array_equal(calculator.get_descriptors(atoms, layer=-len(layers)), layers[0])
    assert (layers[0] - layers[-1]).abs().max() > 0.1
    alone = [torch.from_numpy(calculator.get_descriptors(Atoms(atoms.numbers[[0]]), layer=layer)) for layer in range(len(layers))]
    beyond = sum(readout(s[:1]) - readout(s0) for readout, s, s0 in zip(model.readouts, layers, alone, strict=True))
    assert (model.scale * beyond).item() == pytest.approx(calculator.get_node_energies(atoms)[0], abs=1e-10)


def test_descriptors_in_parts_and_in_float32(calculator, model_file, structure):
    atoms = structure("crystal")
    found = calculator.get_descriptors(atoms)
    calculator.budget.max_edges = 40
    np.testing.assert_allclose(calculator.get_descriptors(atoms), found, atol=1e-12)
    single = FlashACE(model_file, device="cpu").get_descriptors(atoms)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, found, atol=1e-4)


def test_descriptors_say_what_they_expect(calculator, structure):
    for layer in (2, -3, 0.5, True):
        with pytest.raises(FlashACEError, match=rf"layer: expected a whole number from -2 to 1, got {layer}"):
            calculator.get_descriptors(structure("crystal"), layer=layer)
    with pytest.raises(FlashACEError, match="invariants_only: expected True, got False"):
        calculator.get_descriptors(structure("crystal"), invariants_only=False)


ASKED = {
    "get_descriptors": lambda calculator, atoms: calculator.get_descriptors(atoms),
    "get_hessian": lambda calculator, atoms: calculator.get_hessian(atoms),
}


@pytest.mark.parametrize("name", ASKED)
def test_results_stay_as_they_are_whatever_else_is_asked(calculator, structure, name):
    atoms, other = structure("molecule"), structure("primitive")
    atoms.calc = calculator
    atoms.get_forces()
    before = copy.deepcopy(calculator.results)
    own = ASKED[name](calculator, None)  # of the last results
    np.testing.assert_array_equal(own, ASKED[name](calculator, atoms))
    ASKED[name](calculator, other)
    assert calculator.results.keys() == before.keys() <= set(all_properties)
    assert all(np.array_equal(calculator.results[key], before[key]) for key in before)
    assert not calculator.calculation_required(atoms, ["forces"])


@pytest.mark.parametrize("name", ["get_descriptors", "get_hessian", "get_node_energies", "get_committee_spread"])
def test_without_a_structure_they_say_so(calculator, model_file, name):
    asked = FlashACE([model_file, model_file], device="cpu") if "committee" in name else calculator
    with pytest.raises(FlashACEError, match=f"{name}: expected a structure, got none"):
        getattr(asked, name)()


@pytest.mark.parametrize("name", ["get_descriptors", "get_hessian"])
def test_what_is_not_finite_is_told(calculator, name):
    with pytest.raises(CalculationFailed, match=r"(descriptors|Hessian): expected finite numbers.* atoms \[0, 1\]; shortest distance 0 Å"):
        getattr(calculator, name)(Atoms("SiC", [(0, 0, 0)] * 2))


def test_second_derivatives_are_those_of_the_calculator(calculator, model_file, structure):
    """In ASE's order of the forces, and near enough in float32."""
    atoms = structure("wire")
    H = calculator.get_hessian(atoms)
    assert H.shape == (3 * len(atoms), 3 * len(atoms))
    step = 1e-4
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * step
        forces.append(calculator.get_property("forces", moved).ravel())
    np.testing.assert_allclose(H[3 * 2 + 1], (forces[1] - forces[0]) / (2 * step), atol=2e-5 * np.abs(H).max())
    single = FlashACE(model_file, device="cpu").get_hessian(atoms)
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, H, atol=1e-4 * np.abs(H).max())


def test_node_energies_are_energies_without_those_of_atoms_alone(calculator, structure):
    atoms = structure("crystal")
    found = calculator.get_node_energies(atoms)
    expected = calculator.results["energies"] - [calculator.model.e0[symbol] for symbol in atoms.symbols]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert calculator.get_node_energies(structure("atom")) == [0.0]
    assert set(calculator.results) <= set(all_properties)


# Models that are no single file


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_model):
    """Three models, of which one has another cutoff."""
    folder = tmp_path_factory.mktemp("committee")
    for n, options in enumerate(({}, {}, {"r_max": 3.5})):
        save_model(folder / f"{n}.pt", make_model(seed=n, **options), {})
    return [folder / f"{n}.pt" for n in range(3)]


def test_a_committee_gives_the_mean_and_how_far_its_members_differ(files, structure):
    atoms = structure("crystal")
    atoms.calc = FlashACE(files, device="cpu", dtype="float64")
    alone = []
    for file in files:
        member = FlashACE(file, device="cpu", dtype="float64")
        member.calculate(atoms, ["stresses"])
        alone.append(member.results)
    atoms.get_stresses()
    assert set(atoms.calc.results) == set(alone[0])
    for name, value in atoms.calc.results.items():
        np.testing.assert_allclose(value, np.mean([results[name] for results in alone], axis=0), atol=1e-11, err_msg=name)
    spread = atoms.calc.get_committee_spread(atoms)
    for name in ("energy", "energies", "forces"):
        np.testing.assert_allclose(getattr(spread, name), np.std([results[name] for results in alone], axis=0, ddof=1), atol=1e-11)
    assert type(spread.energy) is float
    assert [member.get_potential_energy(atoms) for member in atoms.calc.members] == pytest.approx([r["energy"] for r in alone], abs=1e-11)


def test_what_a_committee_gives_belongs_to_the_structure_asked_about(files, structure):
    calculator = FlashACE(files, device="cpu", dtype="float64")
    first, second = structure("molecule"), structure("primitive")
    spread = calculator.get_committee_spread(first)
    assert len(calculator.get_committee_spread(second).forces) == len(second)
    assert "stress" in calculator.results
    np.testing.assert_array_equal(calculator.get_committee_spread(first).forces, spread.forces)
    assert "stress" not in calculator.results


def test_a_committee_of_twins_is_the_twin(model_file, calculator, structure):
    atoms = structure("wire")
    twins = FlashACE([model_file] * 2, device="cpu", dtype="float64", kernel="plain")
    assert twins.get_potential_energy(atoms) == pytest.approx(calculator.get_potential_energy(atoms), abs=SAME)
    spread = twins.get_committee_spread(atoms)
    assert spread.energy == 0
    assert not spread.forces.any()
    np.testing.assert_allclose(twins.get_hessian(atoms), calculator.get_hessian(atoms), atol=1e-10)
    np.testing.assert_allclose(twins.get_node_energies(atoms), calculator.get_node_energies(atoms), atol=1e-10)


def test_committees_work_wherever_calculators_do(files, structure):
    """Many at once, copies, other processes, changed options."""
    images = [structure("molecule"), structure("primitive")]
    options = {"device": "cpu", "dtype": "float64"}
    expected = [FlashACE(files, **options).get_potential_energy(atoms) for atoms in images]
    assert [r["energy"] for r in evaluate_many(images, FlashACE(files, **options))] == pytest.approx(expected, abs=SAME)
    calculator = FlashACE(files, **options)
    for atoms in images:
        atoms.calc = copy.deepcopy(calculator)
    with batched(images):
        assert [atoms.get_potential_energy() for atoms in images] == pytest.approx(expected, abs=SAME)
        spread = images[0].calc.get_committee_spread()
    assert spread.energy == pytest.approx(calculator.get_committee_spread(images[0]).energy, abs=SAME)
    arrived = pickle.loads(pickle.dumps(calculator))
    arrived.reset()
    assert arrived.models == calculator.models
    assert arrived.get_potential_energy(images[1]) == pytest.approx(expected[1], abs=SAME)
    calculator.set(max_edges=40)
    assert calculator.models == arrived.models
    assert {member.budget.max_edges for member in calculator.members} == {40}
    assert calculator.get_potential_energy(images[0]) == pytest.approx(expected[0], abs=SAME)
    calculator.set(model=files[0])
    assert calculator.members == ()
    assert calculator.parameters["model"] == str(files[0])


def test_members_watch_by_themselves(trained, make_model, tmp_path):
    """The first of them has no distances of training."""
    save_model(tmp_path / "silent.pt", make_model(), {})
    calculator = FlashACE([tmp_path / "silent.pt", trained.parameters["model"]])
    atoms = Atoms("SiC", [(0, 0, 0), (1.2, 0, 0)], calculator=calculator)
    with pytest.warns(ShortDistanceWarning, match=r"1\.200 Å apart"):
        atoms.get_forces()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ShortDistanceWarning)  # the switch
        FlashACE(calculator.parameters["model"]).get_potential_energy(atoms)


def test_members_that_do_not_know_an_element_say_so(make_model, files, tmp_path):
    config, e0 = make_model().config, {"Si": -5.0, "O": -10.0}
    save_model(tmp_path / "sio.pt", AttentionACE(config, e0), {})
    for models in ([tmp_path / "sio.pt", files[0]], [files[0], tmp_path / "sio.pt"]):
        with pytest.raises(FlashACEError, match=r"this model knows (O|C), Si; the structure also has (O|C)"):
            Atoms("SiOC", np.eye(3)).calc = FlashACE(models)


def test_committees_and_single_models_say_what_they_have_not(files, structure):
    committee, single = FlashACE(files[:2], device="cpu"), FlashACE(files[0], device="cpu")
    with pytest.raises(FlashACEError, match=r"get_descriptors: expected a single model, got a committee"):
        committee.get_descriptors(structure("crystal"))
    with pytest.raises(FlashACEError, match=r"get_uncertainty: .* got a committee; take get_committee_spread"):
        committee.get_uncertainty(structure("crystal"))
    with pytest.raises(FlashACEError, match="get_committee_spread: expected a committee, got one model"):
        single.get_committee_spread(structure("crystal"))
    with pytest.raises(FlashACEError, match=r"warn_uncertainty: .*0\.pt has no statistics"):
        committee.set(warn_uncertainty=0.1)
    assert committee.parameters["warn_uncertainty"] is None
    with pytest.raises(FlashACEError, match="model: expected one model or more, got an empty list"):
        FlashACE([])
    with pytest.raises(FlashACEError, match="model: expected a model file, a run folder, an AttentionACE or a list of these, got 5"):
        FlashACE(5)


def test_a_model_object_is_taken_as_it_is_now(make_model, structure):
    """What is done to it afterwards, a fit that goes on for example, changes no calculator."""
    model, atoms = make_model(seed=4), structure("crystal")
    calculator = FlashACE(model, device="cpu", dtype="float64", kernel="plain")
    energy = calculator.get_potential_energy(atoms)
    assert energy == pytest.approx(predict(model, build_graph(atoms, 4.0), torch.float64).energy.item(), abs=SAME)
    assert all(p.requires_grad for p in model.readouts.parameters())
    with torch.no_grad():
        model.readouts[0].linear.weight.mul_(2.0)
    calculator.set(dtype="float32")
    assert calculator.get_potential_energy(atoms) == pytest.approx(energy, abs=1e-3)
    calculator.set(model=model)
    assert abs(calculator.get_potential_energy(atoms) - energy) > 1e-2


GIVEN = {
    "file": lambda model, file: file,
    "text": lambda model, file: str(file),
    "folder": lambda model, file: file.parent,
    "object": lambda model, file: model,
    "files": lambda model, file: [file, str(file)],
    "objects and files": lambda model, file: (model, file),
    "a list of one": lambda model, file: [file],
}


@pytest.mark.parametrize("given", GIVEN)
def test_whatever_was_given_can_be_stored(model, model_file, structure, tmp_path, given):
    atoms = structure("primitive")
    atoms.calc = FlashACE(GIVEN[given](model, model_file), device=torch.device("cpu"), dtype=np.float64, skin=np.array(0.25))
    energy = atoms.get_potential_energy()
    atoms.get_forces()
    for name in ("a.traj", "a.db", "a.json"):
        write(tmp_path / name, atoms)
        assert read(tmp_path / name).get_potential_energy() == pytest.approx(energy, abs=1e-8), name
    parameters = connect(tmp_path / "a.db").get(1).calculator_parameters
    assert parameters == json.loads(json.dumps(atoms.calc.todict()))
    assert parameters["dtype"] == "float64"
    if "object" in given:
        with pytest.raises(FlashACEError, match=r"model: <AttentionACE [0-9a-f]{16}> was an object of the program that wrote this"):
            FlashACE(**parameters)
    else:
        assert FlashACE(**parameters).get_potential_energy(structure("primitive")) == pytest.approx(energy, abs=SAME)


@pytest.mark.parametrize("many", [False, True])
def test_another_current_folder_changes_nothing(model_file, structure, monkeypatch, tmp_path, many):
    monkeypatch.chdir(model_file.parent)
    calculator = FlashACE(["model.pt", "model.pt"] if many else "model.pt", device="cpu")
    monkeypatch.chdir(tmp_path)
    calculator.set(dtype="float64")
    energy = calculator.get_potential_energy(structure("primitive"))
    again = FlashACE(**calculator.parameters)
    assert again.get_potential_energy(structure("primitive")) == energy
    assert calculator.set(model=[model_file, model_file] if many else model_file) == {}


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), np.str_("float64"), torch.float64])
def test_precision_in_the_types_of_numpy_and_torch(model_file, dtype):
    assert FlashACE(model_file, dtype=dtype).parameters["dtype"] == "float64"


@pytest.mark.parametrize("number", [np.int64(500), np.array(500), torch.tensor(500)])
def test_numbers_in_the_types_of_numpy_and_torch(model_file, number):
    calculator = FlashACE(model_file, max_edges=number, skin=number / 1000)
    assert (calculator.parameters["max_edges"], calculator.parameters["skin"]) == (500, pytest.approx(0.5))
    json.dumps(calculator.parameters)


def test_keywords_of_ase_mean_what_they_mean_there(model_file, structure, tmp_path):
    atoms = structure("primitive")
    calculator = FlashACE(model_file, label="run", directory=tmp_path, atoms=atoms)
    assert atoms.calc is calculator
    assert (calculator.label, calculator.directory) == (f"{tmp_path}/run", str(tmp_path))
    atoms.get_forces()
    assert list(tmp_path.iterdir()) == []
    assert not {"label", "directory", "atoms"} & set(calculator.parameters)
    with pytest.raises(FlashACEError, match="the structure also has Au"):
        FlashACE(model_file, atoms=Atoms("Au"))


# What else of ASE stands between a calculator and its user


def test_constraints_act_on_what_is_handed_out_and_not_on_results(calculator, structure):
    atoms = structure("crystal")
    atoms.calc = calculator
    free = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 3]))
    assert not atoms.get_forces()[[0, 3]].any()
    np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), free)
    np.testing.assert_array_equal(calculator.results["forces"], free)
    before = atoms.positions[[0, 3]].copy()
    BFGS(atoms, logfile=None).run(fmax=1e-9, steps=3)
    np.testing.assert_array_equal(atoms.positions[[0, 3]], before)


@pytest.mark.parametrize("kind", [FrechetCellFilter, UnitCellFilter, StrainFilter])
def test_filters_move_only_what_their_mask_lets_move(calculator, structure, kind):
    atoms = structure("crystal")
    atoms.calc = calculator
    before = atoms.cell.array.copy()
    BFGS(kind(atoms, mask=[0, 0, 1, 0, 0, 0]), logfile=None).run(fmax=1e-9, steps=3)
    change = np.abs(atoms.cell.array - before)
    assert change[2, 2] > 1e-4
    change[2, 2] = 0
    assert change.max() < 1e-12


@pytest.mark.parametrize("name", ["energy", "free_energy", "forces", "stress"])
def test_sums_and_mixtures_with_other_calculators(calculator, structure, name):
    atoms = structure("crystal")
    pair = LennardJones(sigma=1.7, epsilon=0.1, rc=4.0)
    own, other = (np.array(c.get_property(name, atoms)) for c in (calculator, pair))
    for mixture, expected in (
        (SumCalculator([calculator, pair]), own + other),
        (MixedCalculator(calculator, pair, 0.3, 0.7), 0.3 * own + 0.7 * other),
        (LinearCombinationCalculator([calculator, pair], [2.0, -1.0]), 2 * own - other),
    ):
        atoms.calc = mixture
        np.testing.assert_allclose(mixture.get_property(name, atoms), expected, atol=1e-10)


# Parts


def test_parts_of_a_structure_are_evaluated_one_by_one(counted, model_file, each_structure):
    calculator, calls = counted
    whole, parts = each_structure, each_structure.copy()
    whole.calc, parts.calc = FlashACE(model_file, device="cpu", dtype="float64", kernel="plain"), calculator
    calculator.budget.max_edges = 1
    assert parts.get_potential_energy() == pytest.approx(whole.get_potential_energy(), rel=1e-12)
    assert len(calls) == len(parts)
    assert parts.calc.results.keys() == whole.calc.results.keys()
    for name in parts.calc.results:
        np.testing.assert_allclose(parts.calc.results[name], whole.calc.results[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["compiled", "plain"])
def test_max_edges_is_obeyed_and_kept(model_file, structure, kernel):
    calculator = FlashACE(model_file, device="cpu", max_edges=60, kernel=kernel)
    sizes, atoms, take_part = [], structure("crystal"), derivatives.take_part
    atoms.calc = calculator
    calculator.calculate(atoms)  # a kernel is tried when it is made
    calculator.reset()

    def counted(*arguments):
        part = take_part(*arguments)
        sizes.append(part.graph.slots.numel())
        return part

    with patch("flashace.potential.derivatives.take_part", counted):
        forces = atoms.get_forces()
    np.testing.assert_allclose(forces, FlashACE(model_file, device="cpu").get_property("forces", atoms), atol=1e-4)
    assert len(sizes) > 2
    assert max(sizes) <= 60
    again = FlashACE(**json.loads(json.dumps(calculator.parameters)))
    assert again.budget.max_edges == 60
    with patch("flashace.potential.model_source.share_model", side_effect=AssertionError("the model was read again")):
        calculator.set(max_edges=None)
    assert calculator.budget.max_edges == FlashACE(model_file, device="cpu").budget.max_edges > 60


@pytest.mark.parametrize("max_edges", [0, -1, 1.5, "100", True])
def test_other_sizes_are_refused(model_file, max_edges):
    with pytest.raises(FlashACEError, match=r"max_edges: expected a whole number of neighbour pairs, at least 1, or None, got "):
        FlashACE(model_file, max_edges=max_edges)


# Structures that cannot be evaluated


BAD = {
    "no atoms": (lambda atoms: atoms.__delitem__(slice(None)), "structure: expected at least one atom, got none"),
    "NaN position": (lambda atoms: atoms.positions.__setitem__((3, 1), np.nan), r"positions: expected finite numbers, .* at atom 3"),
    "infinite position": (lambda atoms: atoms.positions.__setitem__((3, 1), -np.inf), r"positions: expected finite numbers, .* at atom 3"),
    "NaN cell": (lambda atoms: atoms.cell.__setitem__((0, 0), np.nan), "cell: expected finite numbers"),
    "no volume": (lambda atoms: atoms.cell.__setitem__(2, atoms.cell[0]), "cell: .* needs 3 independent lattice vectors"),
    "collapsed": (lambda atoms: atoms.set_cell(0.05 * atoms.cell.array), "cell: expected room for at most 20000 neighbours"),
    "unknown element": (lambda atoms: atoms.numbers.__setitem__(0, 8), "this model knows C, Si; the structure also has O"),
    "no element": (lambda atoms: atoms.numbers.__setitem__(0, 119), "the structure also has the atomic number 119"),
    "coinciding atoms": (lambda atoms: atoms.positions.__setitem__(5, atoms.positions[2]), r"atoms \[2, 5\]; shortest distance 0 Å"),
}


@pytest.mark.parametrize("case", BAD)
def test_after_bad_input_nothing_old_is_left_and_the_next_call_works(calculator, structure, case):
    """Each of them twice, through Atoms and directly: the second answer must not be the one from before."""
    spoil, message = BAD[case]
    good, bad = structure("crystal"), structure("crystal")
    good.calc = bad.calc = calculator
    energy = good.get_potential_energy()
    spoil(bad)
    for ask in (
        bad.get_potential_energy,
        bad.get_forces,
        lambda: calculator.calculate(bad),
        lambda: calculator.get_property("stress", bad),
    ):
        calculator.calculate(good)
        for _ in range(2):
            with pytest.raises((FlashACEError, CalculationFailed), match=message):
                ask()
            assert calculator.results == {}
        assert good.get_potential_energy() == pytest.approx(energy, abs=SAME)


def test_a_calculator_without_atoms_says_so(calculator):
    for ask in (calculator.get_potential_energy, calculator.calculate):
        with pytest.raises(FlashACEError, match=r"structure: expected Atoms, got None; say `atoms.calc = calculator`"):
            ask()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-3])
def test_atoms_almost_on_top_of_each_other_have_an_enormous_energy(trained, distance, dtype):
    """Nothing overflows, and nothing looks like an ordinary result: the repulsion of two nuclei, whatever the network says."""
    trained.set(dtype=dtype)
    atoms = Atoms("SiC", [(0, 0, 0), (distance, 0, 0)], calculator=trained)
    with pytest.warns(UserWarning, match=r"Si-C: atoms 0 and 1 are 0\.00. Å apart"):
        assert atoms.get_potential_energy() == pytest.approx(14.3996 * 14 * 6 / distance, rel=1e-1)
    np.testing.assert_allclose(atoms.get_forces()[:, 0] * distance**2, [-14.3996 * 14 * 6, 14.3996 * 14 * 6], rtol=1e-2)


def test_a_cell_with_thousands_of_images_is_evaluated(model_file):
    atoms = Atoms("Si", cell=[0.6] * 3, pbc=True, calculator=FlashACE(model_file, dtype="float64", kernel="plain"))
    assert np.isfinite(atoms.get_potential_energy())
    assert np.abs(atoms.get_forces()).max() < 1e-9 * abs(atoms.get_potential_energy())


# Distances that training did not have


@pytest.fixture
def trained(make_model, tmp_path):
    """A calculator of a file that tells what its training data had: no two carbon atoms within the cutoff."""
    save_model(tmp_path / "m.pt", make_model(shortest_distances={"C-Si": 1.7, "Si-Si": 2.1}), {})
    return FlashACE(tmp_path / "m.pt", dtype="float64", kernel="plain")


def test_a_distance_that_training_did_not_have_is_told_once(trained):
    atoms = Atoms("SiC2", [(0, 0, 0), (1.75, 0, 0), (0, 9.0, 0)], calculator=trained)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_forces()
        atoms.positions[1, 0] = 0.96 * 1.7  # what heat does
        atoms.get_forces()
    atoms.positions[1, 0] = 1.2
    with pytest.warns(UserWarning, match=r"Si-C: atoms 0 and 1 are 1.200 Å apart; .* 1.700 Å is the shortest distance of such a pair"):
        atoms.get_forces()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.positions[1, 0] = 1.1
        atoms.get_forces()
    with pytest.warns(ShortDistanceWarning, match=r"1\.100 Å"):  # another calculator warns anew
        FlashACE(trained.parameters["model"]).calculate(atoms)


def test_a_model_without_isolated_atoms_warns_once_for_all_its_calculators(model, tmp_path):
    assert model.free_atoms
    for name in ("one.pt", "other.pt"):
        network = copy.deepcopy(model)
        network.free_atoms = False
        save_model(tmp_path / name, network, {})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                with pytest.raises(FreeAtomsWarning):
                    FlashACE(tmp_path / name, device="cpu")
        with pytest.warns(FreeAtomsWarning, match=f"{name}.*--isolated-atoms FILE"):
            FlashACE(tmp_path / name, device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FlashACE(tmp_path / name, device="cpu", dtype="float64")


def test_a_pair_that_training_did_not_have_is_told(trained):
    atoms = Atoms("CSiC", [(0, 0, 0), (9.0, 0, 0), (0, 0, 3.5)], calculator=trained)
    with pytest.warns(UserWarning, match=r"C-C: atoms 0 and 2 are 3.500 Å apart; in the training data no such pair is closer than 4 Å"):
        atoms.get_forces()


def test_the_worst_pair_is_named_images_included(trained):
    atoms = Atoms("SiC", [(0, 0, 0), (1.5, 0, 0)], cell=[1.8, 20, 20], pbc=True, calculator=trained)
    with pytest.warns(UserWarning, match=r"Si-C: atoms 0 and 1 are 0.300 Å apart"):
        atoms.get_forces()


def test_a_warning_that_is_made_an_error_leaves_no_results(trained):
    atoms = Atoms("SiC", [(0, 0, 0), (1.2, 0, 0)], calculator=trained)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match=r"1\.200 Å apart"):
                atoms.get_forces()
            assert trained.results == {}


def test_files_without_distances_load_and_do_not_warn(calculator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Atoms("SiC", [(0, 0, 0), (0.4, 0, 0)], calculator=calculator).get_forces()


def test_the_message_is_true_in_large_systems(calculator, structure):
    """It names the atoms that coincide, not all whose forces they spoil."""
    atoms = structure("crystal").repeat((5, 5, 6))
    atoms.positions[700] = atoms.positions[1]
    atoms.calc = calculator
    with pytest.raises(CalculationFailed, match=r"atoms \[1, 700\]; shortest distance 0 Å"):
        atoms.get_forces()


def test_a_model_that_overflows_fails_as_ase_expects(make_model, structure, tmp_path):
    model = make_model()
    model.readouts[0].linear.weight.data.fill_(1e300)  # too large for float32
    save_model(tmp_path / "inf.pt", model, {})
    atoms = structure("crystal")
    atoms.calc = FlashACE(tmp_path / "inf.pt")
    with pytest.raises(CalculationFailed, match=r"energy, .*: expected finite numbers, got NaN or infinity"):
        atoms.get_potential_energy()


def test_loading_takes_the_weights_as_they_are(model_file, model):
    loaded = load_model(model_file, torch.float64)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all((p == dict(model.named_parameters())[name]).all() for name, p in loaded.named_parameters())


def test_a_refused_change_leaves_everything_as_it_was(model_file):
    calculator = FlashACE(model_file)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            calculator.set(model="nope.pt")
    assert calculator.parameters["model"] == str(model_file)
    calculator.set(dtype="float64")
    assert calculator.model.dtype == torch.float64
