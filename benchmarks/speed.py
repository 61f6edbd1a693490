"""Time and memory of FlashACE beside other potentials, all through their ASE calculators, as Markdown tables and a picture.

    python benchmarks/speed.py --acac train_300K.xyz --runners peers --peers environments --threads 1 2 --output docs/speed

`--runners` has modules that make the peers' calculators (`peers_*.py`) and the structures (`systems.py`), `--peers` an environment for
each peer. Every model runs in a process of its own (`speed_worker.py`). All models take turns with a structure, in several rounds, so
that what else the machine does meets them alike. What `--rows` has already is not measured again, so a table can grow over days.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms
from ase.io import read, write
from speed_report import ATOMS, OURS, Row, document, draw

from flashace.train.config import SIZES

HERE = Path(__file__).parent
CUTOFF = 5.0  # Å
# Large tensors stay with the process instead of being mapped and unmapped at each step, which the peers gain from.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}


class Model(NamedTuple):
    """Where a model lives and what makes its calculator."""

    label: str
    environment: str | None  # folder in --peers; this Python where None
    package: str
    factory: str
    options: dict[str, Any]


MODELS = (
    *(Model(f"{OURS} {size}", None, "flashace", "peers_flashace:make", {"size": size, "kernel": "compiled"}) for size in SIZES),
    Model("GRACE FS, XLA", "venv-grace", "tensorpotential", "peers_grace:make", {"preset": "FS"}),
    Model("GRACE-1L, XLA", "venv-grace", "tensorpotential", "peers_grace:make", {"preset": "GRACE_1LAYER_v2_25"}),
    Model("Allegro, AOTInductor", "venv-nequip", "nequip-allegro", "peers_nequip:aoti", {"arch": "allegro", "tag": "allegro"}),
    Model("NequIP, AOTInductor", "venv-nequip", "nequip", "peers_nequip:aoti", {"arch": "nequip", "tag": "nequip"}),
    Model("MACE 64x0e", "venv-mace", "mace-torch", "peers_mace:make", {"hidden": "64x0e"}),
    Model("MACE 64x0e, compiled", "venv-mace", "mace-torch", "peers_mace:make", {"hidden": "64x0e", "compile_mode": "default"}),
    Model("MACE 128x0e+128x1o", "venv-mace", "mace-torch", "peers_mace:make", {}),
)


def main() -> None:
    arguments = parse()
    wanted = [model for model in MODELS if model.label in arguments.models]
    models = [model for model in wanted if python(model, arguments.peers).is_file()]
    notes = [f"{model.label} is left out: {model.environment} is not installed." for model in wanted if model not in models]
    for note in notes:
        print(note)
    folder = arguments.rows.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in structures(arguments.runners, arguments.acac).items():
        write(folder / f"{name}.extxyz", atoms, format="extxyz")
    rows = [Row(**json.loads(line)) for line in arguments.rows.read_text().splitlines()] if arguments.rows.is_file() else []
    for threads, system in ((t, s) for t in arguments.threads for s in arguments.systems):
        there = {row.label for row in rows if (row.system, row.threads) == (system, threads)}
        if not {model.label for model in models} <= there:  # all anew: times of another hour do not compare
            rows = [row for row in rows if (row.system, row.threads) != (system, threads)]
            rows += compare(models, system, threads, arguments)
            arguments.rows.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
        arguments.output.with_suffix(".md").write_text(document(rows, notes, f"{arguments.output.name}.png"))
        draw(rows, arguments.output.with_suffix(".png"))


def parse() -> argparse.Namespace:
    labels = [model.label for model in MODELS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--acac", type=Path, required=True, help="file whose first frame is acetylacetone")
    parser.add_argument("--runners", type=Path, required=True, help="folder with systems.py and peers_*.py")
    parser.add_argument("--peers", type=Path, required=True, help="folder with an environment for each peer; those not there are left out")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--systems", nargs="+", choices=ATOMS, default=list(ATOMS), metavar="NAME", help=", ".join(ATOMS))
    parser.add_argument("--models", nargs="+", choices=labels, default=labels, metavar="LABEL", help=", ".join(labels))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="most steps of a model in a round")
    parser.add_argument("--seconds", type=float, default=10.0, help="no further step in a round after so many")
    parser.add_argument("--memory", type=float, default=12.0, help="GB that a model may take")
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/speed/rows.jsonl"), help="what has been measured; where a model lacks, all take turns anew"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/speed"), help="name of tables and picture, without ending")
    arguments, cores = parser.parse_args(), len(os.sched_getaffinity(0))
    if max(arguments.threads) > cores:
        parser.error(f"--threads: expected at most {cores}, the cores that this process may use, got {max(arguments.threads)}")
    return arguments


def python(model: Model, peers: Path) -> Path:
    """The interpreter of the model's environment."""
    return peers.absolute() / model.environment / "bin/python" if model.environment else Path(sys.executable)


def structures(runners: Path, acac: Path) -> dict[str, Atoms]:
    """Those of the peers' runners, and a larger crystal."""
    sys.path.insert(0, str(runners))
    systems, molecule = importlib.import_module("systems"), read(acac, 0)
    assert isinstance(molecule, Atoms)
    crystals = {f"Si {8 * n**3}": systems.si(n) for n in (2, 4, 8)}
    return {"acac 15": Atoms(molecule.symbols, molecule.positions), "water 192": systems.water192(), **crystals}


def compare(models: Sequence[Model], system: str, threads: int, arguments: argparse.Namespace) -> list[Row]:
    """The rows of all models, which take turns."""
    rows, workers = {m.label: Row(m.label, system, threads) for m in models}, {}
    logs = {m.label: arguments.rows.parent / f"{m.label}, {system}, {threads}.log" for m in models}
    for model in models:
        workers[model.label] = start(model, system, threads, logs[model.label], arguments)
        rows[model.label] = rows[model.label]._replace(**answer(workers[model.label], logs[model.label]))
    for turn in range(arguments.rounds):
        for label in [*workers][:: 1 if turn % 2 == 0 else -1]:
            if not rows[label].error:
                print(json.dumps([arguments.steps, arguments.seconds]), file=workers[label].stdin, flush=True)
                rows[label] = rows[label]._replace(**answer(workers[label], logs[label]))
    for label, worker in workers.items():
        worker.communicate()
        print(f"{system}, {threads} thread(s), {label}: {rows[label].error or f'{len(rows[label].wall)} steps'}", flush=True)
    return list(rows.values())


def start(model: Model, system: str, threads: int, log: Path, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    """The process of a model, which gets ready by itself."""
    path = os.pathsep.join([str(arguments.runners.absolute()), str(HERE), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path, "PEERS": str(arguments.peers.absolute())}
    options = {
        "calculator": model.factory,
        "options": json.dumps(model.options),
        "package": model.package,
        "structure": arguments.rows.parent / f"{system}.extxyz",
        "cutoff": CUTOFF,
        "threads": threads,
        "memory": arguments.memory,
    }
    command = [
        str(python(model, arguments.peers)),
        str(HERE / "speed_worker.py"),
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    with log.open("w") as errors:
        return subprocess.Popen(
            command, env=os.environ | MALLOC | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )


def answer(worker: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """What a worker has measured so far, or the last line of what it complained about."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    return json.loads(line) if line else {"error": f"{[f'ended with {worker.wait()}', *log.read_text().splitlines()][-1]:.200}"}


if __name__ == "__main__":
    main()
