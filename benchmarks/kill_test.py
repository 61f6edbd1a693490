"""A small fit, killed (kill -9) at random moments and while it writes checkpoints; resumed, it has to end bit-equal to the whole one.

    python benchmarks/kill_test.py --kills 20

Every other kill waits for a half-written checkpoint. Exit status 1 where a model or a row of metrics.csv differs in any bit.
"""

import argparse
import csv
import os
import random
import shutil
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import yaml
from ase.io import read, write
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from flashace import cli
from flashace.train import report

DATA = Path(__file__).parents[1] / "examples/data/sic.extxyz"
OPTIONS = {
    "r_max": 4.0, "hidden_dim": 16, "num_channels": 4, "key_dim": 4, "num_layers": 1, "correlation": 2, "epochs": 15, "batch_size": 4,
    "dtype": "float64", "device": "cpu", "compile": "no", "checkpoint_interval": 1,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        equal = kill_and_compare(Path(place), arguments.kills)
    print(f"{sum(equal)} of {len(equal)} resumed fits are bit-equal to the whole one")
    raise SystemExit(not all(equal))


def kill_and_compare(place: Path, kills: int) -> list[bool]:
    write(place / "data.extxyz", [atoms for atoms in read(DATA, ":") if len(atoms) > 1][:24])
    (place / "c.yaml").write_text(yaml.safe_dump({**OPTIONS, "data": [str(place / "data.extxyz")]}))
    seconds = time_whole(place)
    table = Table(
        "kill", "moment", "checkpoints then", "half-written file left", "went on from", "bit-equal", title=f"whole fit {seconds:.1f} s"
    )
    equal: list[bool] = []
    while len(equal) < kills:
        run = place / f"run-{len(equal)}"
        moment = kill_one(place, run, seconds, while_writing=len(equal) % 2 == 1)
        if moment is None:  # it ended before
            shutil.rmtree(run)
            continue
        checkpoints = sorted(path.name for path in run.rglob("step-*.pt"))
        partial = [path.name for path in run.rglob("*.partial")]
        if (run / "config.yaml").is_file():
            finish("--resume", run)
            origin = checkpoints[-1] if checkpoints else "the beginning"
        else:
            finish("-c", place / "c.yaml", "-o", run, "--overwrite")
            origin = "a new run"
        equal.append(result(run) == result(place / "whole"))
        table.add_row(str(len(equal)), moment, str(len(checkpoints)), ", ".join(partial), origin, "yes" if equal[-1] else "NO")
    Console(width=140).print(table)
    return equal


def time_whole(place: Path) -> float:
    """Seconds of the uninterrupted fit, from the moment its folder is there."""
    program = start("-c", place / "c.yaml", "-o", place / "whole")
    while not (place / "whole/config.yaml").is_file():
        time.sleep(0.001)
    begin = time.monotonic()
    program.join()
    return time.monotonic() - begin


def kill_one(place: Path, run: Path, seconds: float, while_writing: bool) -> str | None:
    """Start a fit and kill it; the moment in words, or None where the fit was faster."""
    program = start("-c", place / "c.yaml", "-o", run)
    while not run.is_dir():
        time.sleep(0.001)
    begin = time.monotonic()
    wait = random.uniform(0.0, 0.9 * seconds)
    while time.monotonic() - begin < wait and program.is_alive():
        time.sleep(0.0005)
    while while_writing and program.is_alive() and not list((run / "checkpoints").glob("*.partial")):
        pass
    program.kill()
    program.join()
    if program.exitcode == 0:
        return None
    return f"{time.monotonic() - begin:.2f} s" + (", writing" if while_writing else "")


def start(*arguments: object) -> BaseProcess:
    """`flashace fit` with these arguments in a process of its own: a fork, which has the imports behind it."""
    process = get_context("fork").Process(target=_fit, args=(tuple(map(str, arguments)),))
    process.start()
    return process


def _fit(arguments: tuple[str, ...]) -> None:
    report.learning_curve = report.parity = lambda *_: None  # pictures take longer than this fit
    with Path(os.devnull).open("w") as cli.console.file:
        cli.main(["fit", *arguments])


def finish(*arguments: object) -> None:
    process = start(*arguments)
    process.join()
    if process.exitcode:
        raise SystemExit(f"flashace fit {' '.join(map(str, arguments))}: exit status {process.exitcode}")


def result(run: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """Every bit of the model, and the rows of metrics.csv but for the time that they took."""
    with safe_open(run / "model.pt", framework="np") as file:
        weights = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader((run / "metrics.csv").open())]
    return weights, rows


if __name__ == "__main__":
    main()
