"""benchmarks/speed.py: its tables and picture from given numbers, and the process that measures one model."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ase.build import bulk

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
report = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "speed_report.py")))
SILICON = ("Si 64", "Si 512", "Si 4096")


def rows(label, power, scale, systems=SILICON, threads=1):
    """`scale` ms · atoms^power of CPU time, twice that on the wall, both the middle of three steps."""
    times = {system: 1e-3 * scale * report.ATOMS[system] ** power for system in systems}
    made = [report.Row(label, s, threads, "1.0", [t / 2, t, 3 * t], [t, 2 * t, 6 * t], 1e6 * report.ATOMS[s]) for s, t in times.items()]
    return [report.Row(**json.loads(json.dumps(row._asdict()))) for row in made]  # as they come from the file


def cells(markdown, head, label):
    """Cells of a model by column, in the first table of that head."""
    table = markdown[markdown.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return next(dict(zip(split[0][1:], line[1:], strict=True)) for line in split if line[0] == label)


def test_medians_quartiles_and_ratios_to_the_fastest_peer():
    made = rows("FlashACE small", 1, 0.5) + rows("slow peer", 1, 2, (*SILICON, "acac 15")) + rows("fast peer", 1, 1)
    text = report.document(made, [], "speed.png")
    assert cells(text, "process CPU time, ms", "FlashACE small")["Si 64"] == "32 (24–64) · 0.5"
    assert cells(text, "process CPU time, ms", "slow peer")["Si 64"] == "128 (96–256) · 2"
    assert cells(text, "wall time, ms", "fast peer")["Si 64"] == "128 (96–256) · 1"
    assert cells(text, "process CPU time, ms", "fast peer")["acac 15"] == "–"
    assert cells(text, "peak memory, MB", "fast peer")["Si 4096"] == "4,096"
    assert cells(text, "process CPU time, µs per atom", "fast peer")["Si 512"] == "1,000"


@pytest.mark.parametrize("power", [0.9, 1, 2])
def test_the_slope_is_the_power_of_the_number_of_atoms(power):
    text = report.document(rows("peer", power, 1, ("acac 15", "water 192", *SILICON)), [], "speed.png")
    assert cells(text, "process CPU time, µs per atom", "peer")["slope, Si"] == f"{power:.2f}"


def test_with_threads_the_wall_counts():
    made = rows("peer", 1, 1) + rows("peer", 1, 1, threads=2)
    two = report.document(made, [], "speed.png").split("## 2 threads")[1]
    assert cells(two, "wall time, µs per atom", "peer")["Si 64"] == "2,000"


def test_what_failed_or_was_left_out_is_said():
    failed = report.Row("peer", "Si 4096", 1, error="out of memory")
    text = report.document([*rows("peer", 1, 1, ("Si 64",)), failed], ["other is left out: venv is not installed."], "speed.png")
    assert cells(text, "process CPU time, ms", "peer")["Si 4096"] == "–"
    assert cells(text, "process CPU time, µs per atom", "peer")["slope, Si"] == "–"
    assert "- peer, Si 4096, 1 thread(s): `out of memory`" in text
    assert "- other is left out: venv is not installed." in text


def test_a_picture(tmp_path):
    made = rows("FlashACE small", 1, 0.5) + rows("peer", 1, 1, ("acac 15", *SILICON)) + rows("peer", 1, 1, threads=2)
    report.draw(made, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


FACTORY = """
from ase.calculators.lj import LennardJones

def make(dtype, cutoff, symbols, sigma):
    print("what a model prints")
    return LennardJones(sigma=sigma, rc=cutoff)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("sigma", [2.0, float("nan")])
def test_a_worker_adds_up_rounds_and_refuses_forces_that_are_no_numbers(tmp_path, sigma):
    (tmp_path / "factory.py").write_text(FACTORY)
    bulk("Si").write(tmp_path / "si.extxyz")
    options = {"calculator": "factory:make", "options": json.dumps({"sigma": sigma}), "package": "ase", "structure": tmp_path / "si.extxyz"}
    options |= {"cutoff": 5.0, "threads": 1, "memory": 4.0}
    command = [sys.executable, BENCHMARKS / "speed_worker.py", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, input="[2, 60]\n[3, 60]\n", capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if sigma == 2.0:
        assert [len(found["wall"]) for found in answers] == [0, 2, 5]
        assert min(answers[-1]["wall"]) > 0
        assert answers[-1]["peak"] > 1e6
    else:
        assert answers == []
        assert done.stderr.splitlines()[-1] == "ArithmeticError: expected finite forces"
