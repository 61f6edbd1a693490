"""TorchSim with a FlashACE model, against the ASE calculator."""

import copy
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from ase.geometry import find_mic
from ase.md.verlet import VelocityVerlet

from flashace import FlashACE, FlashACEError
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.potential.model_file import save_model
from flashace.potential.uncertainty import ForceLaw, Rigidity, Uncertainty
from flashace.structure.neighbors import build_graph

SAME = 1e-10  # eV, eV/Å and eV/Å³ in float64
ROUNDED = 1e-4  # the same in float32
needs_torchsim = pytest.mark.skipif(find_spec("torch_sim") is None, reason="TorchSim is not installed (extra torchsim)")


@pytest.fixture
def simulated(model_file):
    from flashace.engines.torchsim import FlashACEModel

    return lambda dtype="float64", model=model_file, **options: FlashACEModel(model, "cpu", dtype, **options)


@pytest.fixture
def state_of():
    from torch_sim.io import atoms_to_state

    return lambda *structures, dtype=torch.float64: atoms_to_state(list(structures), torch.device("cpu"), dtype)


def assert_same(found, structures, calculator, tolerance):
    first = 0
    for b, atoms in enumerate(structures):
        atoms.calc, last = calculator, first + len(atoms)
        np.testing.assert_allclose(found["energy"][b], atoms.get_potential_energy(), atol=tolerance)
        np.testing.assert_allclose(found["forces"][first:last], atoms.get_forces(), atol=tolerance)
        expected = atoms.get_stress(voigt=False) if atoms.cell.rank == 3 else np.full((3, 3), np.nan)
        np.testing.assert_allclose(found["stress"][b], expected, atol=tolerance)
        first = last
    assert (b + 1, first) == (len(found["energy"]), len(found["forces"]))


@needs_torchsim
def test_torchsim_finds_it_valid(tmp_path, simulated, make_model):
    from torch_sim.models.interface import validate_model_outputs

    small = make_model()
    model = AttentionACE(ModelConfig(**vars(small.config)), {"Si": -5.25, "Fe": -8.0}, dtype=torch.float64)
    save_model(tmp_path / "iron.pt", model, {"training_data": {"files": ["a.xyz"], "frames": 1, "sha256": "0" * 64}, "versions": {}})
    found = simulated(model=tmp_path / "iron.pt")
    validate_model_outputs(found, found.device, found.dtype)


@needs_torchsim
def test_a_committee_is_what_ase_says_of_it(tmp_path, simulated, state_of, structure, model_file, make_model):
    model = make_model()
    model.embedding.data *= 1.1
    save_model(tmp_path / "other.pt", model, {})
    files, structures = [model_file, tmp_path / "other.pt"], [structure("sheared"), structure("left-handed")]
    found = simulated(model=files)(state_of(*structures))
    assert_same(found, structures, FlashACE(files, "cpu", "float64"), SAME)
    assert abs(found["energy"][0] - FlashACE(model_file, "cpu", "float64").get_potential_energy(structures[0])) > 1e-6


@needs_torchsim
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", SAME), ("float32", ROUNDED)])
@pytest.mark.parametrize("max_edges", [None, 100])
@pytest.mark.parametrize("periodic", [True, False])
def test_a_batch_is_what_ase_says_of_each(simulated, state_of, structure, model_file, dtype, tolerance, max_edges, periodic):
    structures = [structure(name) for name in ("sheared", "molecule in a box", "left-handed", "molecule")]
    for atoms in structures:
        atoms.pbc = periodic
    if periodic:
        del structures[-1]  # without a cell
    found = simulated(dtype, max_edges=max_edges)(state_of(*structures))
    assert_same(found, structures, FlashACE(model_file, "cpu", dtype), tolerance)
    assert {x.dtype for x in found.values()} == {torch.float64}


@needs_torchsim
def test_one_flag_per_direction_as_in_newer_torchsim(simulated, state_of, structure, model_file):
    atoms = structure("crystal")
    state = state_of(atoms)
    atoms.pbc = [True, False, True]
    state.pbc = torch.tensor([True, False, True])
    assert_same(simulated()(state), [atoms], FlashACE(model_file, "cpu", "float64"), SAME)


@needs_torchsim
def test_results_have_the_precision_of_the_state(simulated, state_of, structure):
    found = simulated()(state_of(structure("crystal"), dtype=torch.float32))
    assert {x.dtype for x in found.values()} == {torch.float32}


@needs_torchsim
def test_atoms_are_as_uncertain_as_in_ase(tmp_path, simulated, state_of, structure, make_model):
    model = make_model()
    features = model.with_features(build_graph(structure("crystal"), model.config.r_max))[1]
    model.uncertainty = Uncertainty(
        *[Rigidity(features.T @ features, 0.1, 0.1)] * 2, frames=10, largest=1.0, force_law=ForceLaw(3.0, 0.8, 1.0)
    )
    save_model(tmp_path / "uncertain.pt", model, {})
    structures, calculator = [structure("sheared"), structure("crystal")], FlashACE(tmp_path / "uncertain.pt", "cpu", "float64")
    found = simulated(model=tmp_path / "uncertain.pt")(state_of(*structures))
    for name in ("energies", "forces"):
        expected = np.concatenate([getattr(calculator.get_uncertainty(atoms), name) for atoms in structures])
        np.testing.assert_allclose(found[f"{name}_uncertainty"], expected, rtol=SAME)
    strict = simulated(model=tmp_path / "uncertain.pt", stop_uncertainty=0.9 * found["energies_uncertainty"].max().item())
    with pytest.raises(CalculationFailed, match="stop_uncertainty: 1 of"):
        strict(state_of(*structures))
    assert list(simulated()(state_of(*structures))) == ["energy", "forces", "stress"]


@needs_torchsim
def test_systems_may_change_places(simulated, state_of, structure, model_file):
    model, calculator = simulated(), FlashACE(model_file, "cpu", "float64")
    crystal, wide = structure("crystal"), structure("crystal")
    wide.set_cell(1.05 * wide.cell.array, scale_atoms=True)
    for structures in ([crystal, wide], [wide], [wide, structure("primitive"), crystal]):
        assert_same(model(state_of(*structures)), structures, calculator, SAME)


@needs_torchsim
def test_dynamics_are_those_of_ase(simulated, state_of, structure, model_file):
    from torch_sim.integrators import nve

    atoms, dt = structure("crystal"), 0.5 * units.fs
    init, step = nve(simulated(), dt=torch.tensor(dt, dtype=torch.float64), kT=torch.tensor(300 * units.kB, dtype=torch.float64), seed=1)
    state = init(state_of(atoms, structure("primitive")))
    atoms.set_momenta(state.momenta[: len(atoms)].numpy())
    atoms.calc = FlashACE(model_file, "cpu", "float64")
    VelocityVerlet(atoms, timestep=dt).run(10)
    for _ in range(10):
        state = step(state)
    assert np.abs(atoms.positions - structure("crystal").positions).max() > 1e-3
    apart, _ = find_mic(state.positions[: len(atoms)].numpy() - atoms.positions, atoms.cell)  # TorchSim wraps them into the cell
    np.testing.assert_allclose(apart, 0, atol=1e-9)
    assert state.energy[0].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)


@needs_torchsim
def test_a_relaxation_ends_without_forces(tmp_path, simulated, state_of, make_model):
    import torch_sim

    model = make_model(num_layers=1, correlation=1, shortest_distances={"C-Si": 1.5, "C-C": 2.2, "Si-Si": 2.2})
    save_model(tmp_path / "calm.pt", model, {"training_data": {"files": ["a.xyz"], "frames": 1, "sha256": "0" * 64}, "versions": {}})
    structures = [bulk("SiC", "zincblende", a=a, cubic=True) for a in (4.2, 4.3)]
    for atoms in structures:
        atoms.rattle(0.02, seed=0)
    converged = torch_sim.generate_force_convergence_fn(force_tol=0.05, include_cell_forces=False)
    state = torch_sim.optimize(
        system=state_of(*structures),
        model=simulated(model=tmp_path / "calm.pt"),
        optimizer=torch_sim.optimizers.fire,
        convergence_fn=converged,
    )
    for atoms in state.to_atoms():
        atoms.calc = FlashACE(tmp_path / "calm.pt", "cpu", "float64")
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05


@needs_torchsim
def test_what_the_model_does_not_know_is_named(simulated, state_of, structure):
    gold = Atoms("Au2", [(0, 0, 0), (2, 0, 0)])
    with pytest.raises(FlashACEError, match="Au"):
        simulated()(state_of(structure("molecule"), gold))


@needs_torchsim
def test_what_is_not_finite_is_named(simulated, state_of, structure):
    model = simulated()
    model.calculator.model = copy.deepcopy(model.calculator.model)
    model.calculator.model.scale = float("nan")
    with pytest.raises(CalculationFailed, match="expected finite numbers"):
        model(state_of(structure("crystal")))


def test_without_torchsim_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    monkeypatch.delitem(sys.modules, "flashace.engines.torchsim", raising=False)
    for name in [name for name in sys.modules if name.startswith("torch_sim.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"expected TorchSim, got .* `pip install 'flashace\[torchsim\]'`"):
        import flashace.engines.torchsim  # noqa: F401
