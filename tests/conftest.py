"""What the tests share: structures of every periodicity, small random models with visible effects, labelled files, one tiny fit."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"  # before anything imports Triton, as flashace.train does

import yaml
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import all_changes
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from click.testing import CliRunner, Result
from e3nn import o3
from rich.console import Console

from flashace.cli.main import main
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.potential.model_file import save_model
from flashace.train.config import make_config
from flashace.train.loop import Trainer
from flashace.train.prepare import prepare
from flashace.train.step import TrainStep

# compiled kernels of the tests, also of those in processes of their own; kept from run to run
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "kernels")

SMALL = {
    "r_max": 4.0,
    "num_radial": 5,
    "hidden_dim": 16,
    "num_channels": 4,
    "key_dim": 4,
    "edge_hidden_dim": 16,
}
E0 = {"C": -7.5, "Si": -5.25}  # eV; numbers that float32 holds exactly
TINY_FIT = {
    **SMALL,
    "r_max": 3.0,
    "num_layers": 1,
    "correlation": 2,
    "epochs": 2,
    "batch_size": 4,
    "device": "cpu",
    "dtype": "float64",
    "check": "off",  # test_check.py looks; other fits have no seconds for it, and labels that nobody calculated
}


@pytest.fixture(autouse=True)
def _one_thread_and_unchanged_globals() -> Iterator[None]:
    """No test may leave another default dtype, number of threads or autograd mode behind."""
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    yield
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before


@pytest.fixture
def signals_as_usual() -> Iterator[None]:
    """What this process and those that it starts hear, also where whoever started the tests (`nohup`, a shell's `&`) has them ignored."""
    ignored = [s for s in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM) if signal.getsignal(s) is signal.SIG_IGN]
    for signum in ignored:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    yield
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)


@pytest.fixture
def stop_at() -> Callable[[pytest.MonkeyPatch, int], None]:
    """stop_at(patch, step): SIGTERM comes at the end of this training step, the first being 1."""

    def stop(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        plain, count = TrainStep.__call__, iter(range(1, 10**6))

        def call(self: TrainStep, *arguments: Any) -> torch.Tensor:
            terms = plain(self, *arguments)
            if next(count) == step:
                signal.raise_signal(signal.SIGTERM)
            return terms

        monkeypatch.setattr(TrainStep, "__call__", call)

    return stop


@pytest.fixture
def marked_processes(tmp_path: Path) -> Callable[[], list[str]]:
    """Those that are there with FLASHACE_TEST_MARK=tmp_path in their environment."""

    def find() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"FLASHACE_TEST_MARK={tmp_path}".encode() in (process / "environ").read_bytes():
                    found.append(process.name)
            except OSError:
                continue
        return found

    return find


# Structures


def _rattled(atoms: Atoms, size: float = 0.1) -> Atoms:
    atoms.rattle(size, seed=1)
    return atoms


def _sic() -> Atoms:
    return _rattled(bulk("SiC", "zincblende", a=4.36, cubic=True))


def _primitive() -> Atoms:
    return _rattled(bulk("SiC", "zincblende", a=4.36))


def _sheared() -> Atoms:
    """A strained crystal in one of its most awkward cells: the vectors are long and nearly parallel."""
    atoms = _primitive()
    atoms.set_cell(atoms.cell.array @ [[1.0, 0.1, 0.05], [0.0, 1.05, -0.1], [0.02, 0.0, 0.95]], scale_atoms=True)
    atoms.set_cell(np.array([[1, 0, 0], [2, 1, 0], [3, -1, 1]]) @ atoms.cell.array)
    return atoms


def _left_handed() -> Atoms:
    atoms = _sic()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    assert np.linalg.det(atoms.cell.array) < 0
    return atoms


def _slab(vacuum: float | None) -> Atoms:
    atoms = fcc111("Si", (2, 2, 2), a=3.9, vacuum=vacuum)
    atoms.numbers[::2] = 6
    return _rattled(atoms)


def _wire() -> Atoms:
    atoms = Atoms("SiCSiC", [(0, 0, 0), (1.2, 1.0, 1.1), (0.3, 1.4, 2.5), (-1.0, 0.5, 3.1)], pbc=(False, False, True))
    atoms.cell[2] = (0.3, 0.2, 4.4)
    return atoms


def _molecule() -> Atoms:
    atoms = molecule("C2H6")
    atoms.numbers[:] = np.where(atoms.numbers == 1, 14, 6)
    atoms.positions *= 1.7
    return _rattled(atoms)


def _in_a_box() -> Atoms:
    atoms = _molecule()
    atoms.cell = [9.0, 8.0, 7.0]
    return atoms


def _mixed() -> Atoms:
    atoms = _sic()
    atoms.pbc = (True, False, True)
    return atoms


def _outside() -> Atoms:
    atoms = _sic()
    atoms.positions += np.random.default_rng(3).integers(-7, 8, (8, 3)) @ atoms.cell.array
    return atoms


def _one_per_cell() -> Atoms:
    return Atoms("Si", [(0.3, -5.0, 9.0)], cell=[[2.4, 0, 0], [0.4, 2.6, 0], [0.1, 0.3, 2.7]], pbc=True)


STRUCTURES: dict[str, Callable[[], Atoms]] = {
    "crystal": _sic,
    "primitive": _primitive,
    "sheared": _sheared,
    "left-handed": _left_handed,
    "slab in vacuum": lambda: _slab(6.0),
    "slab without cell height": lambda: _slab(None),
    "wire": _wire,
    "molecule": _molecule,
    "molecule in a box": _in_a_box,
    "mixed pbc": _mixed,
    "atoms outside": _outside,
    "one atom per cell": _one_per_cell,
    "atom": lambda: Atoms("C", [(1.0, 2.0, 3.0)]),
}


@pytest.fixture
def structure() -> Callable[[str], Atoms]:
    """Name -> a fresh structure of Si and C, without symmetry unless it is a single atom."""
    return lambda name: STRUCTURES[name]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `each_structure` runs on all of them."""
    if "each_structure" in metafunc.fixturenames:
        metafunc.parametrize("each_structure", STRUCTURES, indirect=True)


@pytest.fixture
def each_structure(request: pytest.FixtureRequest) -> Atoms:
    return STRUCTURES[request.param]()


# Symmetry


def wigner_matrices(l_max: int, matrix: torch.Tensor) -> torch.Tensor:
    """[(l_max+1)², (l_max+1)²] in float64: how the harmonics of e3nn turn with an orthogonal matrix, solved from its harmonics on a sphere
    (e3nn's own D_from_matrix is good to six digits)."""
    u = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    u = u / u.norm(dim=-1, keepdim=True)
    blocks = []
    for l in range(l_max + 1):
        before, after = (o3.spherical_harmonics(l, v, normalize=False, normalization="component") for v in (u, u @ matrix.T))
        blocks.append(torch.linalg.lstsq(before, after).solution.T)
    return torch.block_diag(*blocks)


@pytest.fixture(scope="session")
def turns() -> Callable[[int], list[tuple[torch.Tensor, torch.Tensor]]]:
    """turns(l_max): a rotation and a rotation with reflection, each with its Wigner matrices."""
    rng = np.random.default_rng(0)
    q = torch.from_numpy(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    return lambda l_max: [(m, wigner_matrices(l_max, m)) for m in (q, -q)]


# Models


def build_model(
    dtype: torch.dtype = torch.float64, seed: int = 0, shortest_distances: dict[str, float] | None = None, **options: object
) -> AttentionACE:
    """A random model of Si and C whose attention, product and readouts all matter: forces are of the order of 1 eV/Å."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ModelConfig(**{**SMALL, **options})
        model = AttentionACE(config, E0, 1.5, avg_num_neighbors=12.0, dtype=torch.float64, shortest_distances=shortest_distances)
        with torch.no_grad():
            for readout in model.readouts:
                readout.linear.weight.mul_(15.0)
                readout.out.weight.mul_(15.0)
            for layer in model.layers:
                layer.attention.query.bias.normal_()
                layer.mix_scalars.bias.normal_()
                layer.scale_scalars.fill_(1.5 / len(model.layers))
                layer.scale_tensors.fill_(1.5 / len(model.layers))
    return model.to(dtype)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., AttentionACE]:
    """`build_model`: make_model(dtype=…, seed=…, **options of ModelConfig)."""
    return build_model


@pytest.fixture(scope="session")
def model() -> AttentionACE:
    """The random model in float64. Do not change it."""
    return build_model().requires_grad_(False)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory, model: AttentionACE) -> Path:
    """`model` as a file. Do not change it."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, model, {"training_data": {"files": ["a.extxyz"], "frames": 3, "sha256": "0" * 64}, "versions": {"torch": "2"}})
    return path


# Labelled data and fits


class ShiftedLennardJones(LennardJones):
    """Lennard-Jones with the energies of `E0` for atoms alone, so that reference energies matter."""

    def __init__(self) -> None:
        super().__init__(sigma=1.7, epsilon=0.3, rc=4.0, smooth=True, ro=3.0)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, ["energy", "forces", "stress"], system_changes)
        own = sum(E0[symbol] for symbol in self.atoms.symbols)
        self.results["energy"] += own
        self.results["free_energy"] += own


def labelled_frames(num_frames: int = 12, seed: int = 0) -> list[Atoms]:
    """Small cells of SiC, rattled and strained, with energy, forces and stress; two config_types."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(num_frames):
        atoms = bulk("SiC", "zincblende", a=4.4)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.06, size=(2, 3))
        calculator = ShiftedLennardJones()
        calculator.calculate(atoms)
        atoms.calc = SinglePointCalculator(atoms, **{name: calculator.results[name] for name in ("energy", "forces", "stress")})
        atoms.info["config_type"] = "warm" if i % 2 else "cold"
        frames.append(atoms)
    return frames


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., list[Atoms]]:
    return labelled_frames


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve labelled frames of two atoms. Do not change it."""
    path = tmp_path_factory.mktemp("data") / "sic.extxyz"
    write(path, labelled_frames())
    return path


@pytest.fixture(scope="session")
def tiny_fit() -> dict[str, object]:
    """Options of a fit of two epochs that takes a second."""
    return TINY_FIT


@pytest.fixture
def trainer(data_file: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """trainer(…options): the Trainer of the tiny fit before its first step."""

    def make(**options: object) -> Trainer:
        prepared = prepare(make_config({**TINY_FIT, "data": [str(data_file)], **options}))
        return Trainer(prepared, tmp_path / "trainer", Console(quiet=True), 0.0)

    return make


@pytest.fixture(scope="session")
def write_yaml() -> Callable[..., Path]:
    """write_yaml(path, **options): the options of the tiny fit and these as a YAML file; None removes one."""

    def save(path: Path, **options: object) -> Path:
        chosen = {name: value for name, value in {**TINY_FIT, **options}.items() if value is not None}
        path.write_text(yaml.safe_dump(chosen))
        return path

    return save


@pytest.fixture(scope="session")
def flashace() -> Callable[..., Result]:
    """flashace("fit", …): the command line in this process. Only what click turns into an exit is caught; a traceback fails the test."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def fit_options() -> dict[str, object]:
    """What `fit` adds to the options of the tiny fit; a file of tests may have its own. AdamW can be repeated to the last digits."""
    return {"optimizer": "adamw"}


@pytest.fixture
def fit(
    flashace: Callable[..., Result],
    write_yaml: Callable[..., Path],
    data_file: Path,
    fit_options: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """fit(name, …arguments, …options): the result of a tiny fit into the folder `name` of tmp_path, where it runs; it draws no pictures.

    It has to end well, unless `ok` is False.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flashace.evaluate.report.learning_curve", lambda *arguments: None)
    monkeypatch.setattr("flashace.evaluate.report.parity", lambda *arguments: None)

    def run(name: str, *arguments: object, ok: bool = True, **options: object) -> Result:
        path = write_yaml(tmp_path / f"{name}.yaml", **{"data": [str(data_file)], **fit_options, **options})
        result = flashace("fit", "-c", path, "-o", name, *arguments)
        assert not ok or result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation after every epoch."""
    monkeypatch.setattr("flashace.train.loop.STEPS_APART", 1)


@pytest.fixture(scope="session")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory,
    data_file: Path,
    write_yaml: Callable[..., Path],
    flashace: Callable[..., Result],
) -> Path:
    """The folder that a tiny fit leaves, and in output.txt what it printed. Do not change it."""
    folder = tmp_path_factory.mktemp("fit")
    here = Path.cwd()
    os.chdir(folder)
    try:
        result = flashace("fit", data_file, "-c", write_yaml(folder / "options.yaml"), "--output", "run")
    finally:
        os.chdir(here)
    assert result.exit_code == 0, result.output
    (folder / "run/output.txt").write_text(result.output)
    return folder / "run"
