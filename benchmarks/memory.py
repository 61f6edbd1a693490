"""Peak memory and CPU time of one evaluation of silicon through the calculator, and what each further atom costs.

python benchmarks/memory.py                # 10^3, 10^4 and 10^5 atoms in parts, and up to 10^4 as a whole
python benchmarks/memory.py --max-edges 4000
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from ase.build import bulk
from peers_flashace import make

SIZES = {1_000: (5, 5, 5), 10_000: (10, 5, 25), 100_000: (25, 20, 25)}
WHOLE = sys.maxsize


def main() -> None:
    """Each evaluation in a process of its own, since a peak never falls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--max-edges", type=int, help="neighbour pairs at once; the calculator's default where not given")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(evaluate(arguments.one[0], arguments.one[1] or None)))
        return
    print("| silicon atoms | evaluated | peak memory, MB | CPU, µs per atom |\n|---|---|---|---|")
    peaks = {}
    for max_edges, name in ((arguments.max_edges or 0, "in parts"), (WHOLE, "as a whole")):
        for num_atoms in SIZES if name == "in parts" else list(SIZES)[:2]:
            command = [sys.executable, __file__, "--one", str(num_atoms), str(max_edges)]
            peak, seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            peaks[name, num_atoms] = peak
            print(f"| {num_atoms:,} | {name} | {peak / 1e6:,.0f} | {1e6 * seconds / num_atoms:.0f} |", flush=True)
    small, middle, large = SIZES
    print(f"\neach further atom: {(peaks['in parts', large] - peaks['in parts', middle]) / (large - middle) / 1e3:.1f} kB in parts,")
    print(f"{(peaks['as a whole', middle] - peaks['as a whole', small]) / (middle - small) / 1e3:.0f} kB as a whole")


def evaluate(num_atoms: int, max_edges: int | None) -> tuple[float, float]:
    """Bytes that the evaluation took at its peak, model and libraries left out, and process CPU time in s."""
    torch.set_num_threads(1)
    calculator = make("float32", 5.0, ["Si"])
    calculator.set(max_edges=max_edges)
    warm_up = bulk("Si")
    warm_up.calc = calculator
    warm_up.get_forces()
    atoms = bulk("Si", a=5.43, cubic=True).repeat(SIZES[num_atoms])
    atoms.rattle(0.05, seed=0)
    atoms.calc = calculator
    before, start = memory("VmRSS"), time.process_time()
    atoms.get_forces()
    return memory("VmHWM") - before, time.process_time() - start


def memory(name: str, process: int | str = "self") -> float:
    """Bytes that a process holds (VmRSS; without mapped files RssAnon), or held at most (VmHWM)."""
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith(name))
    return 1024 * float(line.split()[1])


if __name__ == "__main__":
    main()
