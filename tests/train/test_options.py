"""docs/options.md: written by the dataclasses, complete, and about options each of which a fit feels."""

import io
import re
import shutil
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from rich.console import Console

from flashace.errors import FlashACEError
from flashace.potential.model import ModelConfig
from flashace.structure.neighbors import build_graph
from flashace.train.config import TrainConfig, make_config, write_config
from flashace.train.loop import Trainer
from flashace.train.options import option_tables
from flashace.train.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f.name for kind in (TrainConfig, ModelConfig) for f in fields(kind)]


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/options.md").read_text() == option_tables(), "python -m flashace.train.options > docs/options.md"


def test_no_option_is_missing():
    assert re.findall(r"^\| `(\w+)` \|", option_tables(), re.MULTILINE) == NAMES


# Every option is felt: with another value something else comes out

SMALLEST = {
    "r_max": 3.0, "num_radial": 3, "hidden_dim": 8, "num_channels": 4, "key_dim": 4, "edge_hidden_dim": 8, "num_layers": 1,
    "correlation": 2, "epochs": 3, "batch_size": 2, "valid_fraction": 0.3, "device": "cpu", "dtype": "float64", "check": "off",
    "compile": False, "data": ["data.extxyz"],
}  # fmt: skip


def fitted(options):
    """What a fit of some steps leaves and says, but for the times that it takes."""
    said = io.StringIO()
    trainer = made(options, said)
    trainer.run()
    squeezed = build_graph(Atoms("SiC", [(0, 0, 0), (0, 0, 0.9)]), 3.0)
    squeezed = squeezed.with_edge_vec(squeezed.edge_vec.to(trainer.model.dtype))
    weights = [p for model in (trainer.model, trainer.update.averaged) for p in model.parameters()]
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in trainer.log.rows]
    files = sorted(str(path.relative_to(trainer.folder.path)) for path in trainer.folder.path.rglob("*.*"))
    prepared = trainer.prepared
    return {
        "weights": [(p.dtype, p.detach().numpy().tobytes()) for p in weights],
        "energies": trainer.model(squeezed).tolist(),
        "references": prepared.references.values,
        "frames": [[frame.origin for frame in frames] for frames in (prepared.train, prepared.valid)],
        "looked": prepared.looked is None,
        "rows": rows,
        "files": [file for file in files if "tfevents" not in file] + ["tensorboard"] * any("tfevents" in file for file in files),
        "said": re.sub(r"\d+ min", "", said.getvalue()),
    }


def parts(options):
    """Of what a fit is made, before its first step."""
    trainer = made(options)
    graphs = trainer.train.graphs
    return [p.shape for p in trainer.model.parameters()], trainer.step.compiled, trainer.step.undecided, graphs[0] is graphs[0]


def resumed(options):
    trainer = made(options)
    moments = [len(optimizer.state) for optimizer in trainer.update.optimizers]
    return moments, trainer.course.steps, trainer.model.e0, [p.tolist() for p in trainer.update.averaged.parameters()]


def precision_on_a_gpu(options):
    return replace(prepare(make_config(options)), device=torch.device("cuda")).amp_dtype


def made(options, said=None, folder="run"):
    """A Trainer in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    Path(folder).mkdir()
    console = Console(file=said or io.StringIO(), width=200)
    return Trainer(prepare(make_config(options), None, console.print), Path(folder), console, time.monotonic())


@dataclass(frozen=True)
class Felt:
    """With `value` instead of that of `base` something else comes out of `see`. None in `base` leaves an option out."""

    value: object
    see: object = fitted
    base: tuple = ()


def felt(value, see=fitted, **base):
    return Felt(value, see, tuple(base.items()))


NO_SCORE = {"energy_weight": 0.0, "forces_weight": 0.0, "stress_weight": 0.0}  # no validation is better than the first
FELT = {
    "size": felt("small", parts, num_channels=None, hidden_dim=None),
    "data": felt(["other.extxyz"]),
    "valid": felt(["other.extxyz"]),
    "valid_fraction": felt(0.5),
    "isolated_atoms": felt("atoms.extxyz"),
    "atomic_energies": felt({"Si": -1.0, "C": -2.0}),
    "energy_shift_per_atom": felt(-1.5),
    "solve_atomic_energies": felt(True, data=["with_atoms.extxyz"]),
    "energy_key": felt("other_energy"),
    "forces_key": felt("other_forces"),
    "stress_key": felt("none"),
    "check": felt("warn"),
    "seed": felt(1),
    "device": felt("cuda" if not torch.cuda.is_available() else "tpu"),
    "dtype": felt("float32"),
    "epochs": felt(2),
    "max_time": felt(1e-4),
    "batch_size": felt(3),
    "grad_accum_steps": felt(2),
    "max_edges_per_step": felt(1),
    "random_rotation": felt(True),
    "use_amp": felt(False, precision_on_a_gpu, dtype="float32"),
    "amp_dtype": felt("float16", precision_on_a_gpu, dtype="float32"),
    "learning_rate": felt(1e-3),
    "warmup": felt(0.9),
    "lr_scheduler": felt("constant"),
    "lr_patience": felt(0, lr_scheduler="plateau", lr_patience=1, **NO_SCORE),
    "lr_factor": felt(0.1, lr_scheduler="plateau", lr_patience=0, **NO_SCORE),
    "early_stopping": felt(1, **NO_SCORE),
    "optimizer": felt("adamw"),
    "weight_decay": felt(0.5),
    "clip_grad_norm": felt(1e-3),
    "ema_decay": felt(0.0),
    "loss": felt("mse"),
    "huber_delta": felt(1e-3),
    "energy_weight": felt(7.0),
    "forces_weight": felt(7.0),
    "stress_weight": felt(7.0),
    "free_atoms_weight": felt(0.0, r_max=5.0, atomic_energies={"Si": -1.0, "C": -2.0}),
    "compile": felt(True, parts),
    "precompute_neighbors": felt(False, parts),
    "checkpoint_interval": felt(1),
    "checkpoint_dir": felt("elsewhere"),
    "keep_checkpoints": felt(1, checkpoint_interval=1),
    "resume_from": felt("before", resumed),
    "resume_load_optimizer": felt(True, resumed, resume_from="before"),
    "resume_load_scheduler": felt(True, resumed, resume_from="before"),
    "use_checkpoint_energy_shift": felt(False, resumed, resume_from="before", data=["other.extxyz"]),
    "pretrained": felt("before", resumed, data=["other.extxyz"]),
    "replay": felt(["with_atoms.extxyz"], data=["other.extxyz"], pretrained="before"),
    "replay_fraction": felt(0.2, data=["other.extxyz"], pretrained="before", replay=["with_atoms.extxyz"]),
    "tensorboard": felt(True),
    "r_max": felt(3.2),
    "l_max": felt(1),
    "num_radial": felt(4),
    "hidden_dim": felt(4),
    "num_channels": felt(8),
    "num_heads": felt(2),
    "key_dim": felt(2),
    "num_layers": felt(2),
    "correlation": felt(1),
    "edge_hidden_dim": felt(4),
    "radial_basis_type": felt("gaussian"),
    "radial_trainable": felt(True),
    "gaussian_width": felt(0.3, radial_basis_type="gaussian"),
    "envelope_exponent": felt(4),
    "zbl": felt(False),
    "bounded": felt(False),
}
ELSEWHERE = ("output", "resume_load_scaler")  # below, and in test_resume.py, since it takes float16


@pytest.fixture(scope="module")
def place(make_frames, tmp_path_factory):
    """A folder with the files that the options above name, and the run folder `before`."""
    folder = tmp_path_factory.mktemp("options")
    frames = make_frames(6)
    for atoms in frames:
        atoms.info["other_energy"], atoms.arrays["other_forces"] = 0.9 * atoms.get_potential_energy(), 0.9 * atoms.get_forces()
    lone = [Atoms(symbol, info={"config_type": "IsolatedAtom"}) for symbol in ("Si", "C")]
    for atoms, energy in zip(lone, (-1.0, -2.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    write(folder / "data.extxyz", frames)
    write(folder / "with_atoms.extxyz", [*frames, *lone])
    write(folder / "atoms.extxyz", lone)
    write(folder / "other.extxyz", make_frames(6, seed=4))
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch, every_epoch):
    """An empty folder to fit in, from which `place` is seen."""
    for file in place.glob("*.extxyz"):
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def usual():
    """What came out of the bases so far."""
    return {}


def outcome(case, options):
    """What `case` sees; the message where the options are refused."""
    if options.get("resume_from") or options.get("pretrained"):
        made(SMALLEST | {"epochs": 1}, folder="before").run()
        write_config(Path("before/config.yaml"), make_config(SMALLEST | {"epochs": 1}))
    try:
        return case.see({name: value for name, value in options.items() if value is not None})
    except FlashACEError as error:
        return str(error)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", FELT)
def test_every_option_is_felt(name, usual):
    case = FELT[name]
    base = SMALLEST | dict(case.base)
    key = repr((case.see, sorted(base.items(), key=str)))
    if key not in usual:
        usual[key] = outcome(case, base)
    assert outcome(case, base | {name: case.value}) != usual[key]


def test_no_option_is_forgotten():
    assert sorted([*FELT, *ELSEWHERE]) == sorted(NAMES)


@pytest.mark.usefixtures("here")
def test_output_is_the_run_folder(flashace, tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr("flashace.train.loop.fit", lambda prepared, folder, *others, **more: folders.append(folder) or True)
    for options in ({}, {"output": "elsewhere"}):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(SMALLEST | options))
        assert flashace("fit", "-c", "c.yaml").exit_code == 0
    assert folders == [Path("runs/data"), Path("elsewhere")]
