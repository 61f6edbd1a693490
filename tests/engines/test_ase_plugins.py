"""The name `flashace` in ASE: by import, on its command line, among its plugins."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from ase.calculators.calculator import get_calculator_class
from ase.calculators.subprocesscalculator import MPICommand, NamedPackedCalculator
from ase.io import read, write

from flashace import FlashACE

SAME = 1e-10  # eV, eV/Å and eV/Å³


def test_ase_knows_the_name():
    assert get_calculator_class("flashace") is FlashACE


def test_ase_run(tmp_path, model_file, structure):
    write(tmp_path / "start.extxyz", structure("crystal"))
    parameters = f"model={model_file},dtype=float64,device=cpu,max_edges=100"
    _ase(tmp_path, "run", "flashace", "start.extxyz", "--modify", "import flashace.calculator", "-p", parameters, "-o", "done.extxyz")
    atoms, done = (read(tmp_path / name) for name in ("start.extxyz", "done.extxyz"))
    atoms.calc = FlashACE(model_file, "cpu", "float64")
    assert done.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=SAME)
    assert done.get_forces() == pytest.approx(atoms.get_forces(), abs=1e-7)  # extxyz writes eight digits of arrays
    assert done.get_stress() == pytest.approx(atoms.get_stress(), abs=1e-7)


def test_ase_lists_the_plugin(tmp_path):
    assert "flashace" in entry_points(group="ase.plugins").names, "installed before the entry point came; `pip install -e .` again"
    assert "CalculatorPlugin\n----------------\nflashace" in _ase(tmp_path, "info", "--plugins")
    loaded = "from ase._4.plugins import plugins; print([p() for p in plugins.calculators if p.name == 'flashace'])"
    assert _python(tmp_path, loaded) == f"[{FlashACE}]\n"


def test_a_process_of_its_own(model_file, structure):
    """As docs/engines.md has it: ASE's own command would not know the name there."""
    start = "import flashace.calculator; from ase.calculators.subprocesscalculator import main; main()"
    options = {"model": str(model_file), "device": "cpu", "dtype": "float64"}
    pack, atoms = NamedPackedCalculator("flashace", options), structure("primitive")
    expected = FlashACE(**options).get_potential_energy(atoms)
    with pack.calculator(MPICommand([sys.executable, "-c", start, "standard"])) as atoms.calc:
        assert atoms.get_potential_energy() == pytest.approx(expected, abs=SAME)


def _ase(folder, *arguments):
    return _python(folder, "from ase.cli.main import main; main()", *arguments)


def _python(folder, code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
