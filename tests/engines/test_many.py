"""Many structures at once: the same numbers as one by one, in one evaluation, behind ASE's own classes."""

import copy
import time
from contextlib import nullcontext

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.lj import LennardJones
from ase.mep import NEB
from ase.optimize import FIRE
from ase.phonons import Phonons
from ase.vibrations import Vibrations

from flashace import FlashACE, FlashACEError, batched, evaluate_many
from flashace.potential.model_file import save_model
from flashace.structure.neighbors import build_graph

SAME = 1e-10  # eV, eV/Å and eV/Å³ in float64
ROUNDED = 1e-4  # the same in float32
MIXED = ["crystal", "molecule", "atom", "slab without cell height", "sheared", "one atom per cell"]


@pytest.fixture
def calculator(model_file):
    return FlashACE(model_file, "cpu", "float64", kernel="plain")


@pytest.fixture
def counted(calculator, monkeypatch):
    """The calculator, and how many structures each evaluation of the network has had."""
    calls = []
    calculator.model = copy.deepcopy(calculator.model)  # other calculators of the file share theirs
    forward = calculator.model.forward
    monkeypatch.setattr(calculator.model, "forward", lambda graph: calls.append(graph.num_structures) or forward(graph))
    return calculator, calls


def path_of(structure, calculators):
    """A NEB of as many images."""
    images = [structure("molecule") for _ in calculators]
    images[-1].rattle(0.2, seed=5)
    for atoms, calculator in zip(images, calculators, strict=True):
        atoms.calc = calculator
    neb = NEB(images, method="improvedtangent", allow_shared_calculator=len(set(map(id, calculators))) == 1)
    neb.interpolate()
    return neb


# A list


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", SAME), ("float32", ROUNDED)])
@pytest.mark.parametrize("max_edges", [None, 150])
def test_each_result_is_that_of_the_calculator(model_file, structure, dtype, tolerance, max_edges):
    structures, one = [structure(name) for name in MIXED], FlashACE(model_file, "cpu", dtype)
    found = evaluate_many(structures, FlashACE(model_file, "cpu", dtype, max_edges=max_edges))
    assert len(found) == len(structures)
    for results, atoms in zip(found, structures, strict=True):
        one.calculate(atoms, ["stresses"])
        assert results.keys() == one.results.keys()
        for name, expected in one.results.items():
            np.testing.assert_allclose(results[name], expected, atol=tolerance, err_msg=name)
            assert np.shape(results[name]) == np.shape(expected)


def test_a_list_is_evaluated_at_once_or_by_its_edges(counted, structure):
    calculator, calls = counted
    evaluate_many([structure("molecule")] * 5, calculator)
    assert calls == [5]
    calls.clear()
    calculator.budget.max_edges = 3 * build_graph(structure("molecule"), calculator.r_max).slots.numel() - 1
    evaluate_many([structure("molecule")] * 5, calculator)
    assert calls == [2, 2, 1]
    assert evaluate_many([], calculator) == []


def test_a_file_does_as_well(model_file, structure):
    atoms = structure("crystal")
    (results,) = evaluate_many([atoms], model_file)
    atoms.calc = FlashACE(model_file)
    assert results["energy"] == pytest.approx(atoms.get_potential_energy(), abs=ROUNDED)


def test_what_the_calculator_knew_stays(calculator, structure):
    atoms = structure("crystal")
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    evaluate_many([structure("molecule")], calculator)
    assert calculator.results["energy"] == before
    assert not calculator.calculation_required(atoms, ["energy"])


def test_the_structure_that_fails_is_named(calculator, structure, make_model, tmp_path):
    with pytest.raises(FlashACEError, match=r"^structure 1: elements: .*Au"):
        evaluate_many([structure("crystal"), Atoms("Au")], calculator)
    model = make_model()
    model.readouts[0].linear.weight.data.fill_(1e300)  # too large for float32
    save_model(tmp_path / "inf.pt", model, {})
    with pytest.raises(CalculationFailed, match=r"^structure 1: energy, .*: expected finite numbers"):
        evaluate_many([structure("atom"), structure("crystal")], FlashACE(tmp_path / "inf.pt", "cpu", kernel="plain"))


# ASE's own classes


@pytest.mark.parametrize("shared", [False, True])
def test_a_path_is_evaluated_at_once(counted, structure, shared):
    calculator, calls = counted
    neb = path_of(structure, [calculator] * 6 if shared else [copy.deepcopy(calculator) for _ in range(6)])
    with batched(neb):
        FIRE(neb, logfile=None).run(fmax=1e-6, steps=3)
    assert calls == [6, 4, 4, 4]  # the ends stay where they are
    other = path_of(structure, [copy.deepcopy(calculator) for _ in range(6)])
    FIRE(other, logfile=None).run(fmax=1e-6, steps=3)
    np.testing.assert_allclose(neb.get_positions(), other.get_positions(), atol=SAME)
    np.testing.assert_allclose(neb.energies, other.energies, atol=SAME)


def test_threads_of_a_path_wait_for_each_other(counted, structure, monkeypatch):
    calculator, calls = counted
    forward = calculator.model.forward
    monkeypatch.setattr(calculator.model, "forward", lambda graph: time.sleep(0.05) or forward(graph))  # time for the others to ask
    neb = path_of(structure, [copy.deepcopy(calculator) for _ in range(6)])
    neb.parallel = True
    with batched(neb):
        neb.get_forces()  # an end of the path comes first here, alone
        neb.set_positions(1.001 * neb.get_positions())
        neb.get_forces()
    assert calls == [6, 4]


def test_vibrations_are_evaluated_at_once(counted, structure, tmp_path):
    calculator, calls = counted
    found = []
    for name, work in (("batched", batched), ("one by one", nullcontext)):
        atoms = structure("molecule")
        atoms.calc = calculator
        vibrations = Vibrations(atoms, name=str(tmp_path / name))
        calls.clear()
        with work(vibrations):
            vibrations.run()
        assert (len(calls) == 1) == (name == "batched")
        assert sum(calls) == 1 + 6 * len(atoms)
        found.append(vibrations.get_vibrations().get_hessian())
    np.testing.assert_allclose(*found, atol=1e-8)


@pytest.mark.parametrize("centred", [False, True])
def test_phonons_are_evaluated_at_once(counted, structure, tmp_path, centred):
    calculator, calls = counted
    found = []
    for name in ("batched", "one by one"):
        phonons = Phonons(structure("primitive"), calculator, (2, 2, 1), name=str(tmp_path / name), center_refcell=centred)
        phonons.set_atoms([1])
        calls.clear()
        if name == "batched":
            with batched(phonons):
                phonons.run()
            assert calls == [7]
        else:
            phonons.run()
            assert calls == [1] * 7
        found.append(np.array([phonons.cache[key]["forces"] for key in sorted(phonons.cache)]))
    np.testing.assert_allclose(*found, atol=SAME)


def test_other_structures_are_evaluated_by_themselves(counted, structure):
    calculator, calls = counted
    images = [structure("molecule"), structure("crystal")]
    for atoms in images:
        atoms.calc = calculator
    elsewhere = structure("wire")
    elsewhere.calc = calculator
    with batched(images):
        alone = elsewhere.get_potential_energy()
        assert calls == [1]
        images[0].get_forces(), images[1].get_stress(), images[0].get_forces()
        assert calls == [1, 2]
        images[1].positions[0] += 0.1
        images[1].get_forces()
        assert calls == [1, 2, 1]
    images[0].get_forces()
    assert calls == [1, 2, 1, 1]
    assert elsewhere.get_potential_energy() == pytest.approx(alone, abs=SAME)


def test_nobody_to_ask_is_named(structure):
    atoms = structure("molecule")
    for atoms.calc in (None, LennardJones()):
        for work in ([atoms], atoms, None):
            with pytest.raises(FlashACEError, match="expected NEB, Vibrations, Phonons or a list of Atoms"), batched(work):
                pass
    with pytest.raises(FlashACEError, match="expected a list of Atoms, got one Atoms"):
        evaluate_many(atoms, "model.pt")


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"skin": 0.1}, {"max_edges": 5}])
def test_calculators_that_differ_are_named(model_file, structure, other):
    images = [structure("molecule"), structure("molecule")]
    images[0].calc = FlashACE(model_file, "cpu", "float64")
    images[1].calc = FlashACE(model_file, "cpu", **{"dtype": "float64", **other})
    with pytest.raises(FlashACEError, match="expected calculators with one model and the same options"), batched(images):
        pass
    assert images[0].calc.batch is None


def test_options_may_change_within(calculator, structure, make_model, tmp_path):
    save_model(tmp_path / "other.pt", make_model(seed=5), {})
    atoms = structure("crystal")
    atoms.calc = calculator
    other = FlashACE(tmp_path / "other.pt", "cpu", "float64", kernel="plain").get_potential_energy(atoms)
    with batched([atoms]):
        assert abs(atoms.get_potential_energy() - other) > 1e-3
        atoms.calc.set(model=str(tmp_path / "other.pt"))
        assert atoms.get_potential_energy() == pytest.approx(other, abs=SAME)


def test_one_that_fails_does_so_alone(model_file, structure):
    images = [structure("crystal") for _ in range(3)]
    for atoms in images:
        atoms.calc = FlashACE(model_file, "cpu", "float64")
    expected = images[0].get_potential_energy()
    images[0].calc.reset()
    images[2].positions[0] = np.nan
    with batched(images):
        assert images[0].get_potential_energy() == pytest.approx(expected, abs=SAME)
        with pytest.raises(FlashACEError, match="positions: expected finite numbers"):
            images[2].get_potential_energy()


def test_results_and_copies_are_ones_own(model_file, structure):
    images = [structure("crystal") for _ in range(2)]
    for atoms in images:
        atoms.calc = FlashACE(model_file, "cpu", "float64")
    with batched(images):
        expected = images[0].get_forces()
        images[0].calc.results["forces"][:] = 0.0
        np.testing.assert_array_equal(images[1].get_forces(), expected)
        other = copy.deepcopy(images[0])
    assert other.calc.batch is None


def test_one_within_another(counted, structure):
    calculator, calls = counted
    images = [structure(name) for name in ("molecule", "crystal", "atom")]
    for atoms in images:
        atoms.calc = calculator
    with batched(images[:2]):
        with batched(images[2:]):
            images[2].get_forces()
        images[0].get_forces(), images[1].get_forces()
    assert calls == [1, 2]


def test_an_error_ends_it(calculator, structure):
    atoms = structure("molecule")
    atoms.calc = calculator
    with pytest.raises(ZeroDivisionError), batched([atoms]):
        1 / 0  # noqa: B018
    assert calculator.batch is None
