"""Uncertainty of energies and forces: its formula, laws, calibration on numbers of known spread, file, and the calculator's part."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed

from flashace import FlashACE, FlashACEError, UnfamiliarWarning, batched
from flashace.data.frames import Labelled
from flashace.evaluate.calibrate import estimate_uncertainty
from flashace.potential import model_file
from flashace.potential.derivatives import predict
from flashace.potential.model_file import load_model, read_header, save_model
from flashace.potential.uncertainty import MIN_FRAMES, RIDGES, Rigidity, Uncertainty, calibrate, calibrate_forces, calibrate_with_fitted
from flashace.structure.neighbors import build_graph

SAME = 1e-9  # relative; a well-conditioned quadratic form in another order of sums


def rattled(size, seed):
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True)
    atoms.rattle(size, seed=seed)
    return atoms


def labelled(model, structures, noise):
    """Frames with the model's own energies plus noise (eV per atom), and their graphs."""
    rng = np.random.default_rng(0)
    graphs = [build_graph(atoms, model.config.r_max) for atoms in structures]
    energies = [model(graph).sum().item() + noise * len(atoms) * rng.normal() for graph, atoms in zip(graphs, structures, strict=True)]
    return [Labelled(atoms, energy, None, None, "", "") for atoms, energy in zip(structures, energies, strict=True)], graphs


@pytest.fixture(scope="module")
def sure(make_model):
    """A random model with the statistics of small displacements. Do not change it."""
    model = make_model().requires_grad_(False)
    train = labelled(model, [rattled(0.03, seed) for seed in range(16)], 0.0)
    model.uncertainty = estimate_uncertainty(model, train, labelled(model, [rattled(0.03, seed) for seed in range(40, 52)], 0.01))
    return model


@pytest.fixture(scope="module")
def sure_file(sure, tmp_path_factory):
    path = tmp_path_factory.mktemp("sure") / "sure.pt"
    save_model(path, sure, {"note": "β"})
    return path


def sigmas(model, atoms):
    with torch.no_grad():
        return model.uncertainty(model.with_features(build_graph(atoms, model.config.r_max))[1])


# The formula


def test_energies_are_linear_in_the_features(make_model, each_structure):
    model = make_model(zbl=False).requires_grad_(False)
    graph = build_graph(each_structure, model.config.r_max)
    energies, features = model.with_features(graph)
    weights = torch.cat([p.flatten() for readout in model.readouts for p in (readout.linear.weight, readout.out.weight)])
    assert features.shape == (len(each_structure), model.num_features)
    assert torch.equal(energies, model(graph))
    torch.testing.assert_close(
        model.atomic_energies[model.element_index[graph.numbers]] + model.scale * features @ weights, energies, rtol=1e-13, atol=1e-12
    )


def test_statistics_are_the_explicit_sums(sure):
    of_energies, of_atoms = np.zeros((2, sure.num_features, sure.num_features))
    for seed in range(16):
        f = sure.with_features(build_graph(rattled(0.03, seed), sure.config.r_max))[1].numpy()
        of_energies += np.outer(f.sum(0), f.sum(0)) / len(f) ** 2
        of_atoms += sum(np.outer(row, row) for row in f)
    for part, F in ((sure.uncertainty.energy, of_energies), (sure.uncertainty.atoms, of_atoms)):
        np.testing.assert_allclose(part.covariance, F, rtol=0, atol=1e-12 * abs(F).max())
        expected = part.alpha * np.sqrt(f[0] @ np.linalg.solve(F + part.ridge * np.eye(len(F)), f[0]))
        assert part(torch.from_numpy(f[0])).item() == pytest.approx(expected, rel=1e-6)


def test_frames_without_an_energy_do_not_count(sure, make_model):
    frames, graphs = labelled(sure, [rattled(0.03, seed) for seed in range(20)], 0.01)
    holes = [Labelled(f.atoms, None if i % 2 else f.energy, None, None, "", "") for i, f in enumerate(frames)]
    one = estimate_uncertainty(sure, (holes, graphs), (holes, graphs))
    other = estimate_uncertainty(sure, (frames[::2], graphs[::2]), (frames[::2], graphs[::2]))
    assert one.describe() == other.describe()
    assert torch.equal(one.energy.covariance, other.energy.covariance)
    assert one.frames == 10


# Laws


@pytest.mark.parametrize("symbols", ["C", "Si", "CSi"])
def test_zero_for_atoms_alone(sure, symbols):
    """Exactly: the energy of an atom without neighbours is its reference energy, whatever the weights are."""
    energy, energies = sigmas(sure, Atoms(symbols, [(50.0 * i, 0, 0) for i in range(len(Atoms(symbols)))]))
    assert energy.item() == 0.0
    assert not energies.any()


def test_rotation_reflection_translation_permutation(sure, each_structure):
    energy, energies = sigmas(sure, each_structure)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    order = np.random.default_rng(1).permutation(len(each_structure))
    moved = each_structure[order]
    moved.set_cell(moved.cell.array @ turn)
    moved.positions = moved.positions @ turn + (0.3, -0.2, 0.7)
    again, each = sigmas(sure, moved)
    tolerance = SAME * max(energies.max().item(), 1e-12)
    assert again.item() == pytest.approx(energy.item(), abs=len(order) * tolerance)
    torch.testing.assert_close(each, energies[order], rtol=0, atol=tolerance)


def test_copies_of_a_cell_are_off_together(sure):
    """The error of a supercell is that of the cell times their number, and so is σ; what one atom contributes does not change."""
    cell = rattled(0.1, 1)
    energy, energies = sigmas(sure, cell)
    again, each = sigmas(sure, cell.repeat((2, 1, 3)))
    assert again.item() == pytest.approx(6 * energy.item(), rel=SAME)
    torch.testing.assert_close(each, energies.repeat(6), rtol=SAME, atol=0)


def test_parts_far_apart_are_at_most_off_together(sure, structure):
    one, other = structure("molecule"), structure("molecule")
    other.rattle(0.3, seed=4)
    far = other.copy()
    far.positions += (100.0, 0, 0)
    (a, a_each), (b, b_each), (both, both_each) = (sigmas(sure, atoms) for atoms in (one, other, one + far))
    assert abs(a - b) < both < (a + b) * (1 + SAME)
    torch.testing.assert_close(both_each, torch.cat([a_each, b_each]), rtol=1e-7, atol=0)


def test_what_was_not_seen_is_less_certain(sure):
    seen = torch.stack([sigmas(sure, rattled(0.03, seed))[0] for seed in range(40, 50)])
    unseen = torch.stack([sigmas(sure, rattled(0.3, seed))[0] for seed in range(10)])
    assert unseen.min() > 3 * seen.max()
    moved = rattled(0.03, 41)
    moved.positions[3] += (0.5, 0.3, 0)
    energies = sigmas(sure, moved)[1]
    assert energies.argmax() == 3
    assert energies[3] > 5 * sure.uncertainty.largest


# Calibration


@pytest.fixture(scope="module")
def synthetic():
    """F and the features of 4000 structures of three atoms in five dimensions, of very different variance."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([3.0, 1.0, 0.3, 0.03, 0.003], dtype=torch.float64)
    fitted, features = (torch.randn(n, 5, generator=rng, dtype=torch.float64) * spread for n in (200, 12_000))
    return fitted.T @ fitted, features, torch.arange(4000).repeat_interleave(3), rng


@pytest.mark.parametrize("rows", ["a row per structure", "a row per atom"])
def test_a_known_spread_is_found_again(synthetic, rows):
    F, features, structure, rng = synthetic
    if rows == "a row per structure":
        features, structure = features[:4000], torch.arange(4000)
    alpha, ridge = 0.07, float(RIDGES[12] * torch.linalg.eigvalsh(F).mean())
    true = Rigidity(F, ridge, alpha)
    sigma = torch.zeros(4000, dtype=torch.float64).index_add(0, structure, true(features) ** 2).sqrt()
    errors = sigma * torch.randn(4000, generator=rng, dtype=torch.float64)
    found = calibrate(F, features, structure, errors)
    assert ridge / 4 < found.ridge < 1.01 * ridge  # it, or the one below it, which 4000 errors cannot always rule out
    assert found.alpha == pytest.approx(alpha, rel=4 / (2 * 4000) ** 0.5)
    z = errors / torch.zeros_like(errors).index_add(0, structure, found(features) ** 2).sqrt()
    assert (z**2).mean() == pytest.approx(1.0, rel=1e-9)


def test_errors_that_say_nothing_leave_the_smallest_ridge(synthetic):
    """All structures alike: every ς² is as likely, and the one that is most alert to others is taken."""
    F, features, _, rng = synthetic
    errors = torch.randn(20, generator=rng, dtype=torch.float64)
    found = calibrate(F, features[:1].expand(20, -1), torch.arange(20), errors)
    assert found.ridge == pytest.approx(float(RIDGES[0] * torch.linalg.eigvalsh(F).mean()), rel=1e-9)


def test_without_errors_there_is_nothing_to_calibrate_with(synthetic):
    F, features, _, _ = synthetic
    with pytest.raises(FlashACEError, match="energies that differ from the predicted ones"):
        calibrate(F, features[:MIN_FRAMES], torch.arange(MIN_FRAMES), torch.zeros(MIN_FRAMES))


def test_a_fitted_structure_counts_as_if_it_were_left_out():
    """The closed form against fits of a last layer to all structures but one; its ridge term draws to the weights that the fit had."""
    rng = torch.Generator().manual_seed(1)
    g, y = torch.randn(12, 5, generator=rng, dtype=torch.float64), torch.randn(12, generator=rng, dtype=torch.float64)
    sizes = torch.arange(1, 13)
    F, one = g.T @ g, torch.eye(5, dtype=torch.float64)
    nothing = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    found, told, weights = calibrate_with_fitted(F, nothing, (sizes[:, None] * g, sizes * y, sizes))
    ridge = found.ridge * one
    residuals = y - g @ torch.linalg.solve(F + ridge, g.T @ y)
    found, told, weights = calibrate_with_fitted(F, nothing, (sizes[:, None] * g, sizes * residuals, sizes))
    ridge = found.ridge * one
    residuals = y - g @ torch.linalg.solve(F + ridge, g.T @ y)
    told = calibrate_with_fitted(F, nothing, (sizes[:, None] * g, sizes * residuals, sizes))[1]
    squares, errors = [], []
    for i in range(12):
        rest = torch.arange(12) != i
        without = g[rest].T @ g[rest] + ridge
        errors.append(sizes[i] * (y[i] - g[i] @ torch.linalg.solve(without, g[rest].T @ y[rest])))
        squares.append(sizes[i] ** 2 * g[i] @ torch.linalg.solve(without, g[i]))
    torch.testing.assert_close(told, torch.stack(errors))
    assert found.alpha**2 == pytest.approx((torch.stack(errors).square() / torch.stack(squares)).mean().item(), rel=1e-6)
    assert weights.sum() == pytest.approx(MIN_FRAMES)


def test_what_was_held_out_counts_in_full():
    """Two structures with errors of 3 σ beside fitted ones that are right: α² is their part of MIN_FRAMES."""
    rng = torch.Generator().manual_seed(1)
    g = torch.randn(12, 5, generator=rng, dtype=torch.float64)
    F = g.T @ g
    out = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    tiny = torch.full((12,), 1e-9, dtype=torch.float64)
    found, _, _ = calibrate_with_fitted(F, (out, torch.tensor([3.0, 3.0], dtype=torch.float64)), (g, tiny, torch.ones(12)))
    bare = Rigidity(F, found.ridge, 1.0)(out)
    assert found.alpha**2 == pytest.approx((9.0 / bare**2).sum().item() / MIN_FRAMES, rel=1e-6)


# Forces


def of_forces(model, seeds, noise):
    """Frames with the model's own energies and forces plus noise (eV per atom, eV/Å), and their graphs."""
    rng = np.random.default_rng(1)
    frames, graphs = labelled(model, [rattled(0.03, seed) for seed in seeds], 0.01)
    forces = [predict(model, graph, model.dtype).forces.numpy() for graph in graphs]
    forces = [f + noise * rng.normal(size=f.shape) for f in forces]
    return [Labelled(f.atoms, f.energy, own, None, "", "") for f, own in zip(frames, forces, strict=True)], graphs


@pytest.mark.parametrize("frames", [12, 3])
def test_forces_are_calibrated_and_the_file_keeps_it(make_model, tmp_path, frames):
    """Held-out components are off by σ on the mean, with 12 frames exactly; and what atoms alone have is exactly zero."""
    model = make_model().requires_grad_(False)
    train, valid = of_forces(model, range(16), 0.02), of_forces(model, range(40, 40 + frames), 0.02)
    model.uncertainty = estimate_uncertainty(model, train, valid)
    law = model.uncertainty.force_law
    sigma = torch.cat([model.uncertainty.forces(model.with_features(graph)[1]) for graph in valid[1]]).numpy()
    error = np.concatenate([predict(model, g, model.dtype).forces.numpy() - f.forces for f, g in zip(*valid, strict=True)])
    assert np.mean((error / sigma[:, None]) ** 2) == pytest.approx(1.0, rel=1e-6 if frames == 12 else 0.5)
    assert law.largest == pytest.approx(sigma.max(), rel=1e-6 if frames == 12 else 0.2)
    assert frames == 12 or law.exponent == 1.0
    path = tmp_path / "model.pt"
    save_model(path, model, {})
    assert load_model(path, torch.float64).uncertainty.describe() == model.uncertainty.describe()
    calculator = FlashACE(path, dtype="float64", kernel="plain", device="cpu")
    found = calculator.get_uncertainty(valid[0][0].atoms)
    np.testing.assert_allclose(found.forces, sigma[: len(found.forces)], rtol=1e-6)
    np.testing.assert_allclose(found.forces, law.scale * found.energies**law.exponent, rtol=1e-9)
    assert calculator.get_uncertainty(Atoms("Si")).forces.tolist() == [0.0]


def test_without_forces_there_is_none_of_them(sure, calculator, structure):
    assert sure.uncertainty.force_law is None
    assert "forces" not in sure.uncertainty.describe()
    assert calculator.get_uncertainty(structure("crystal")).forces is None


def test_a_power_law_is_found_again(synthetic):
    """σ = 0.3 q^0.8 of 12 000 atoms; with two frames of them the exponent is 1, and fitted atoms count as one frame more."""
    F, features, _, rng = synthetic
    ridge = float(RIDGES[8] * torch.linalg.eigvalsh(F).mean())
    sigma = 0.3 * Rigidity(F, ridge, 1.0)(features) ** 0.8
    squares = (sigma.unsqueeze(1) * torch.randn(len(sigma), 3, generator=rng, dtype=torch.float64)).square().mean(1)
    nothing = features[:0], squares[:0]
    found = calibrate_forces(F, (features, squares), nothing, frames=400)
    assert found.exponent == pytest.approx(0.8, abs=0.03)
    assert found.scale == pytest.approx(0.3, rel=0.05)
    few = calibrate_forces(F, (features[:20], squares[:20]), (features[20:60], 0 * squares[20:60]), frames=2)
    q2 = Rigidity(F, few.ridge, 1.0)(features[:20]) ** 2
    assert few.exponent == 1.0
    assert few.scale**2 == pytest.approx((squares[:20] / q2).sum().item() / 30, rel=1e-6)
    assert calibrate_forces(F, (features, 0 * squares), nothing, frames=400) is None


# A structure as a whole


def test_a_structure_that_is_unlike_the_training_as_a_whole_is_told(sure_file, calculator):
    ordinary, wide = rattled(0.03, 60), rattled(0.03, 61)
    wide.set_cell(1.08 * wide.cell, scale_atoms=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnfamiliarWarning)
        calculator.get_uncertainty(ordinary)
        with pytest.raises(UnfamiliarWarning, match=r"mean atom is [\d.]+ times as uncertain as in any frame of the calibration"):
            calculator.get_uncertainty(wide)
    stopping = FlashACE(sure_file, device="cpu", dtype="float64", kernel="plain", stop_uncertainty=1e9)
    stopping.guards.coordination = lambda *arguments: None
    with pytest.raises(CalculationFailed, match="stop_uncertainty: this structure is unlike the training data as a whole"):
        stopping.get_uncertainty(wide)


# The file


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_file_keeps_it_to_the_last_bit(sure, sure_file, dtype, tmp_path):
    loaded = load_model(sure_file, dtype)
    assert loaded.uncertainty.describe() == sure.uncertainty.describe()
    for name in ("energy", "atoms"):
        one, other = getattr(loaded.uncertainty, name), getattr(sure.uncertainty, name)
        assert one.whitening.dtype == torch.float64
        assert torch.equal(one.covariance.tril(), other.covariance.tril())
        assert torch.equal(one.covariance, one.covariance.T)
    atoms = rattled(0.1, 3)
    graph = build_graph(atoms, sure.config.r_max)
    found = loaded.uncertainty(loaded.with_features(graph.with_edge_vec(graph.edge_vec.to(dtype)))[1])
    for one, other in zip(found, sigmas(sure, atoms), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3 if dtype == torch.float32 else 1e-7, atol=0)
    save_model(tmp_path / "again.pt", loaded, {"note": "β"})
    if dtype == torch.float64:
        assert (tmp_path / "again.pt").read_bytes() == sure_file.read_bytes()


def test_weights_are_counted_without_it(sure, sure_file):
    header = read_header(sure_file)
    assert header["num_parameters"] == sum(p.numel() for p in sure.parameters())
    assert header["dtype"] == "float64"


WRONG = {
    "no alpha": lambda described, tensors: described["energy"].pop("alpha"),
    "alpha of zero": lambda described, tensors: described["atoms"].update(alpha=0.0),
    "ridge below zero": lambda described, tensors: described["energy"].update(ridge=-1e9),
    "ridge of no number": lambda described, tensors: described["energy"].update(ridge="small"),
    "unknown": lambda described, tensors: described["energy"].update(colour="red"),
    "forces of zero": lambda described, tensors: described.update(forces={"scale": 0.0, "exponent": 1.0, "largest": 1.0}),
    "forces without an exponent": lambda described, tensors: described.update(forces={"scale": 1.0, "largest": 1.0}),
    "a mean below zero": lambda described, tensors: described.update(largest_mean=-1.0),
    "no frames": lambda described, tensors: described.pop("frames"),
    "no energy": lambda described, tensors: described.pop("energy"),
    "text": lambda described, tensors: described.update(energy="yes"),
    "one part": lambda described, tensors: tensors.pop("atoms"),
    "a third part": lambda described, tensors: tensors.update(forces=tensors["atoms"].clone()),
    "other size": lambda described, tensors: tensors.update(atoms=tensors["atoms"][:-1]),
    "other dtype": lambda described, tensors: tensors.update(atoms=tensors["atoms"].float()),
    "not finite": lambda described, tensors: tensors.update(atoms=tensors["atoms"] / 0),
}


@pytest.mark.parametrize("case", WRONG)
def test_statistics_that_do_not_fit_are_refused(sure, tmp_path, monkeypatch, case):
    described, tensors = sure.uncertainty.describe(), sure.uncertainty.tensors()
    WRONG[case](described, tensors)
    monkeypatch.setattr(Uncertainty, "describe", lambda self: described)
    monkeypatch.setattr(Uncertainty, "tensors", lambda self: tensors)
    save_model(tmp_path / "wrong.pt", sure, {})
    with pytest.raises(FlashACEError, match="header and weights of this model file do not fit together"):
        load_model(tmp_path / "wrong.pt")


def test_statistics_that_the_header_does_not_tell_of_are_refused(sure, tmp_path, monkeypatch):
    monkeypatch.setattr(Uncertainty, "describe", lambda self: None)
    save_model(tmp_path / "wrong.pt", sure, {})
    with pytest.raises(FlashACEError, match=re.escape(f"{model_file.UNCERTAINTY}atoms")):
        load_model(tmp_path / "wrong.pt")


# The calculator


@pytest.fixture
def calculator(sure_file):
    return FlashACE(sure_file, device="cpu", dtype="float64", kernel="plain")


def test_structures_of_a_batch_keep_their_own(calculator):
    structures = [rattled(0.03, seed) for seed in range(4)]
    expected = [calculator.get_uncertainty(atoms).energy for atoms in structures]
    for atoms in structures:
        atoms.calc = calculator
    with batched(structures):
        found = [calculator.get_uncertainty(atoms).energy for atoms in structures]
    np.testing.assert_allclose(found, expected, rtol=SAME)
    assert len(set(expected)) == 4


def test_the_calculator_tells_it_and_keeps_results_clean(calculator, model_file, sure, structure):
    atoms = structure("crystal")
    atoms.calc = calculator
    found = calculator.get_uncertainty(atoms)
    energy, energies = sigmas(sure, atoms)
    assert type(found.energy) is float
    assert found.energy == pytest.approx(energy.item(), rel=SAME)
    np.testing.assert_allclose(found.energies, energies, rtol=SAME)
    forces = atoms.get_forces()
    plain = FlashACE(model_file, device="cpu", dtype="float64", kernel="plain")
    plain.calculate(atoms)
    assert calculator.results.keys() == plain.results.keys()
    np.testing.assert_allclose(forces, plain.results["forces"], atol=1e-12)


def test_it_comes_with_the_evaluation(calculator, structure, monkeypatch):
    calls = []
    evaluate = calculator.model.with_features
    monkeypatch.setattr(calculator.model, "with_features", lambda graph: calls.append(1) or evaluate(graph))
    atoms = structure("crystal")
    atoms.calc = calculator
    atoms.get_forces()
    first = calculator.get_uncertainty()
    assert calculator.get_uncertainty(atoms) is first
    assert len(calls) == 1
    atoms.positions[0, 0] += 0.2
    assert calculator.get_uncertainty(atoms).energy != first.energy
    assert len(calls) == 2


def test_a_warning_is_given_once(sure_file, calculator, structure):
    atoms = structure("crystal")
    energies = np.sort(calculator.get_uncertainty(atoms).energies)
    threshold = float(energies[-3:-1].mean())
    atoms.calc = FlashACE(sure_file, device="cpu", dtype="float64", warn_uncertainty=threshold)
    above = np.flatnonzero(calculator.get_uncertainty(atoms).energies > threshold).tolist()
    with pytest.warns(
        UserWarning, match=re.escape(f"warn_uncertainty: 2 of 8 atoms have energies uncertain by more than {threshold:g} eV: atoms {above}")
    ):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        atoms.get_potential_energy()


def test_nothing_is_said_below_the_thresholds(sure_file, calculator):
    atoms = rattled(0.03, 7)
    highest = float(calculator.get_uncertainty(atoms).energies.max())
    atoms.calc = FlashACE(sure_file, device="cpu", dtype="float64", warn_uncertainty=1.01 * highest, stop_uncertainty=1.01 * highest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_potential_energy()


def test_too_uncertain_is_a_failed_calculation(sure_file, structure):
    atoms = rattled(0.03, 7)
    atoms.calc = FlashACE(sure_file, device="cpu", dtype="float64", stop_uncertainty=3 * load_model(sure_file).uncertainty.largest)
    atoms.get_potential_energy()
    atoms.positions[5] += 0.8
    for _ in range(2):
        with pytest.raises(CalculationFailed, match=r"stop_uncertainty: .* atoms \[.*5.*\].*, most of all 5"):
            atoms.get_forces()
    assert not atoms.calc.results
    atoms.calc.set(stop_uncertainty=None)
    assert np.isfinite(atoms.get_forces()).all()


def test_thresholds_are_parameters_that_a_file_can_hold(sure_file):
    calculator = FlashACE(sure_file, warn_uncertainty=0.05)
    assert json.loads(json.dumps(calculator.todict()))["warn_uncertainty"] == 0.05
    assert FlashACE(**calculator.parameters).parameters == calculator.parameters


@pytest.mark.parametrize("value", [0, -1.0, "0.1", True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["warn_uncertainty", "stop_uncertainty"])
def test_thresholds_are_checked(sure_file, name, value):
    with pytest.raises(FlashACEError, match=f"{name}: expected None or a number above zero, in eV, got {re.escape(repr(value))}"):
        FlashACE(sure_file, **{name: value})


def test_a_model_without_says_what_to_do(model_file, calculator, structure):
    advice = re.escape(f"{model_file} has no statistics of its last layer; `flashace calibrate {model_file} DATA` adds them")
    with pytest.raises(FlashACEError, match=f"get_uncertainty: {advice}"):
        FlashACE(model_file).get_uncertainty(structure("crystal"))
    with pytest.raises(FlashACEError, match=f"stop_uncertainty: {advice}"):
        FlashACE(model_file, stop_uncertainty=0.1)
    with pytest.raises(FlashACEError, match="get_uncertainty: expected a structure, got none"):
        calculator.get_uncertainty()
