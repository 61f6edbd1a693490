"""Triton beside the plain path on a GPU: are they the same, how long does silicon take, how much memory; as a Markdown table.

python benchmarks/gpu.py                                # 64 to 10^6 atoms on the first GPU; exit status 1 where the two differ
python benchmarks/gpu.py --tiles 32 64 128              # for the tile that suits a GPU
TRITON_INTERPRET=1 python benchmarks/gpu.py --device cpu --repeats 1 --runs 1 --options hidden_dim=8 num_channels=2 num_layers=1 key_dim=2
                                                        # that the script works, in Triton's interpreter

Atoms and time are those of energies, forces and stress from a graph on the device, without the neighbour list; a step is the calculator's,
with the neighbour list, which is made on the CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial

import torch
import triton
from ase import Atoms
from ase.build import bulk
from peers_flashace import make

from flashace import FlashACE
from flashace.backends.triton import backend as cuda
from flashace.calculator import DTYPES
from flashace.potential.derivatives import EdgeBudget, Prediction, predict_in_parts
from flashace.potential.model import AttentionACE
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph


def main() -> None:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, nargs="+", default=[2, 4, 8, 16, 50], help="of the cubic cell of 8 atoms along each axis")
    parser.add_argument("--runs", type=int, default=10, help="the median of so many is given")
    parser.add_argument("--tiles", type=int, nargs="+", default=[cuda.TILE], help="numbers side by side in one program")
    parser.add_argument("--options", nargs="*", default=[], help="of ModelConfig, as num_layers=1")
    arguments = parser.parse_args()
    options = {name: int(value) for name, value in (option.split("=") for option in arguments.options)}
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, Triton's interpreter"
    print(f"{name}, {date.today()}, torch {torch.__version__}, triton {triton.__version__}, {options or 'default sizes'}\n")
    same = check(device, options)
    measure(device, options, arguments.repeats, arguments.runs, arguments.tiles)
    sys.exit(not same)


def check(device: torch.device, options: dict[str, int]) -> bool:
    """Prints how far both paths are from the plain path in float64, and says whether Triton is as near as it should be."""
    atoms = silicon(1)
    graph = build_graph(atoms, 5.0).to(device)
    print("| largest error against the plain path in float64 | energy of an atom, eV | force, eV/Å |\n|---|---|---|")
    exact: Prediction | None = None
    errors = {}
    for dtype in ("float64", "float32"):
        model = calculator(device, dtype, options).model
        for path, kernel in (("plain", None), ("triton", cuda.kernel_of(model))):
            found = predict_in_parts(partial(model, interaction=kernel), graph, DTYPES[dtype], EdgeBudget.of(device))
            exact = exact or found
            energies, forces = (float((a - b).abs().max()) for a, b in ((found.energies, exact.energies), (found.forces, exact.forces)))
            errors[path, dtype] = energies, forces
            print(f"| {path}, {dtype} | {energies:.1e} | {forces:.1e} |", flush=True)
    assert exact is not None
    splines = 1e-5 * float(exact.forces.abs().max())
    limits = {"float64": (splines, splines), "float32": tuple(2 * x + splines for x in errors["plain", "float32"])}
    same = all(error <= most for dtype in limits for error, most in zip(errors["triton", dtype], limits[dtype], strict=True))
    print(f"\nlargest force {float(exact.forces.abs().max()):.2f} eV/Å; {'the same' if same else 'NOT THE SAME'}\n", flush=True)
    return same


def measure(device: torch.device, options: dict[str, int], repeats: list[int], runs: int, tiles: list[int]) -> None:
    """Prints the table of float32."""
    calc = calculator(device, "float32", options)
    model = calc.model
    paths: dict[str, cuda.CudaKernel | None] = {"plain": None}
    for tile in tiles:
        cuda.TILE = tile
        paths[f"triton, tile {tile}"] = cuda.CudaKernel(model)
    print("| silicon atoms | path | µs per atom | peak memory, kB per atom |\n|---|---|---|---|")
    for n in repeats:
        atoms = silicon(n)
        graph = build_graph(atoms, 5.0).to(device)
        for path, kernel in paths.items():
            evaluate = partial(evaluated, model, kernel, graph, device)
            evaluate()
            before = start_peak(device)
            seconds = median(evaluate, device, runs if len(atoms) < 100_000 else min(runs, 3))
            peak = "" if before is None else f"{(torch.cuda.max_memory_allocated(device) - before) / len(atoms) / 1e3:.1f}"
            print(f"| {len(atoms):,} | {path} | {1e6 * seconds / len(atoms):.3f} | {peak} |", flush=True)
    print(f"\n| step of {8 * repeats[0] ** 3} atoms through the calculator | ms |\n|---|---|")
    cuda.TILE = tiles[0]
    for kernel in ("plain", "compiled" if device.type == "cuda" else "plain"):
        calc.set(kernel=kernel)
        atoms = silicon(repeats[0])
        atoms.calc = calc
        atoms.get_forces()
        print(f"| {kernel} | {1e3 * median(partial(step, atoms), device, runs):.2f} |", flush=True)


def calculator(device: torch.device, dtype: str, options: dict[str, int]) -> FlashACE:
    """The same random weights every time."""
    return make(dtype, 5.0, ["Si"], kernel="plain", device=str(device), **options)


def silicon(n: int) -> Atoms:
    """8 n³ atoms off their places."""
    atoms = bulk("Si", a=5.43, cubic=True) * (n, n, n)
    atoms.rattle(0.05, seed=0)
    return atoms


def evaluated(model: AttentionACE, kernel: cuda.CudaKernel | None, graph: Graph, device: torch.device) -> Prediction:
    """Of the whole graph, in parts where it is large."""
    return predict_in_parts(partial(model, interaction=kernel), graph, torch.float32, EdgeBudget.of(device))


def step(atoms: Atoms) -> None:
    """As a step of molecular dynamics."""
    atoms.positions[0, 0] += 1e-3
    atoms.get_forces()


def start_peak(device: torch.device) -> int | None:
    """Bytes in use, where the device tells."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def median(function: Callable[[], object], device: torch.device, runs: int) -> float:
    """Seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
