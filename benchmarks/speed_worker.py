"""One model and one structure, measured whenever `speed.py` asks; runs in the environment of the model and imports nothing of FlashACE.

Comes in: the options below, then one line per round on standard input, the most steps and the most seconds that it may take.
Goes out: JSON lines on standard output, one when the model is ready and one per round, each with everything measured so far.
"""

import argparse
import ctypes
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 2  # steps that compile or choose sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calculator", required=True, help="module:factory(dtype, cutoff, symbols, **options)")
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--package", required=True, help="the distribution whose version is told")
    parser.add_argument("--structure", required=True)
    parser.add_argument("--cutoff", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory", type=float, required=True, help="GB; where a model wants more, it fails alone")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what models print is not an answer
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    resource.setrlimit(resource.RLIMIT_DATA, (int(1e9 * arguments.memory),) * 2)
    step = make_step(arguments)
    for _ in range(WARM_UP):
        step()
    version = f"{arguments.package} {importlib.metadata.version(arguments.package)}"
    found: dict[str, Any] = {"version": version, "wall": [], "cpu": [], "peak": 0}
    print(json.dumps(found), file=answers)
    for line in sys.stdin:
        most_steps, most_seconds = json.loads(line)
        measure(step, most_steps, most_seconds, found)
        print(json.dumps(found), file=answers)


def make_step(arguments: argparse.Namespace) -> Any:
    """`step()`: energy, forces and, in a crystal, stress of new positions near the given ones; wall and process CPU time in s."""
    import numpy as np
    from ase import Atoms
    from ase.calculators.calculator import all_changes
    from ase.io import read

    module, factory = arguments.calculator.split(":")
    make = getattr(importlib.import_module(module), factory)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].config.threading.set_intra_op_parallelism_threads(arguments.threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(arguments.threads)
    atoms = read(arguments.structure)
    assert isinstance(atoms, Atoms)
    reference, rng = atoms.positions.copy(), np.random.default_rng(0)
    calculator = make(dtype="float32", cutoff=arguments.cutoff, symbols=sorted(set(atoms.symbols)), **arguments.options)
    properties = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]

    def step() -> tuple[float, float]:
        atoms.positions[:] = reference + rng.normal(0, 0.01, reference.shape)
        moved = atoms.copy()
        wall, cpu = time.perf_counter(), time.process_time()
        calculator.calculate(moved, properties, all_changes)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if not np.isfinite(calculator.results["forces"]).all():
            raise ArithmeticError("expected finite forces")
        return wall, cpu

    return step


def measure(step: Any, most_steps: int, most_seconds: float, found: dict[str, Any]) -> None:
    """Add to `found` the seconds of each step, and bytes that the process, libraries included, held at most meanwhile."""
    step()  # other models have had the caches and this one's free memory since
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    end = time.perf_counter() + most_seconds
    for _ in range(most_steps):
        wall, cpu = step()
        found["wall"].append(wall)
        found["cpu"].append(cpu)
        if time.perf_counter() > end:
            break
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found["peak"] = max(found["peak"], 1024 * int(line.split()[1]))
    ctypes.CDLL(None).malloc_trim(0)  # leaves room for the next model


if __name__ == "__main__":
    main()
