"""`flashace verify`: the table of the laws, and its exit status."""

import json
from pathlib import Path

from ase.build import bulk
from ase.io import write

from flashace import FlashACE, verify
from flashace.cli.verify import verify as command
from flashace.verify import runner


def test_choices_of_the_help_are_those_of_the_code():
    """Literals there: the code that has them imports PyTorch."""
    (dtype,) = (option for option in command.params if option.name == "dtype")
    assert list(dtype.type.choices) == list(verify.PRECISIONS)


def test_command_with_a_model_file(flashace, model_file, monkeypatch):
    write("structure.cif", bulk("SiC", "zincblende", a=3.9))
    monkeypatch.setattr(runner, "LAWS", (verify.rotation, verify.stress))
    arguments = ["verify", model_file, "structure.cif", "--json", "laws.json", "--device", "cpu"]
    done = flashace(*arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads(Path("laws.json").read_text())
    assert [row["law"] for row in rows] == ["rotation", "stress", "history", "float32 noise"]
    assert all(row["passed"] and row["measured"] <= row["tolerance"] for row in rows)

    calculate = FlashACE.calculate

    def wrong_sign(self, *args):
        calculate(self, *args)
        self.results["stress"] *= -1

    monkeypatch.setattr(FlashACE, "calculate", wrong_sign)
    done = flashace(*arguments)
    assert done.exit_code == 1
    assert "broken: stress" in done.output
    assert [row["law"] for row in json.loads(Path("laws.json").read_text()) if row["passed"] is False] == ["stress"]


def test_command_with_a_calculator_of_ones_own(flashace, one_line_error, tmp_path, monkeypatch):
    Path("own_potential.py").write_text(
        "from ase.calculators.lj import LennardJones\n\n"
        "def make(cutoff):\n    return LennardJones(sigma=2.3, epsilon=0.1, rc=float(cutoff))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write("structure.xyz", bulk("Cu", cubic=True))
    done = flashace("verify", "5.0", "structure.xyz", "--calculator", "own_potential:make")
    assert done.exit_code == 1
    assert "broken: cutoff with a lone neighbour, cutoff in the structure" in done.output.replace("\n", " ")
    one_line_error(flashace("verify", "5.0", "structure.xyz", "--calculator", "own_potential:missing"), "expected module:Class")
