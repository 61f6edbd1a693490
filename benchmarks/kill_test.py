"""Commands, killed at random moments and while they write: what was there is whole, and the next try ends as if nothing had been.

    python benchmarks/kill_test.py --kills 20

A small fit, killed with SIGKILL and resumed, has to end bit-equal to the whole one. `export`, `convert`, `evaluate` and `calibrate`, which
replace an earlier file, are ended by SIGKILL, SIGTERM and SIGINT: the file is the old or the new one, and after a signal that can be caught
no file and no process is left. Every other kill waits for something half-written. Exit status 1 where a bit differs or anything is left.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import yaml
from ase.io import read, write
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from flashace.cli.main import main as flashace
from flashace.cli.terminal import console
from flashace.evaluate import report
from flashace.potential.model_file import load_model, read_header, save_model

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
        held = end_commands(Path(place), arguments.kills)
    print(f"{sum(equal)} of {len(equal)} resumed fits are bit-equal to the whole one")
    print(f"{sum(held)} of {len(held)} commands that were ended left what was there whole, and nothing else")
    raise SystemExit(not all(equal + held))


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


def start(*arguments: object, command: str = "fit") -> BaseProcess:
    """`flashace fit` with these arguments, or another command, in a process of its own: a fork, which has the imports behind it."""
    process = get_context("fork").Process(target=_run, args=((command, *map(str, arguments)),))
    process.start()
    return process


def _run(arguments: tuple[str, ...]) -> None:
    report.learning_curve = report.parity = lambda *_: None  # pictures take longer than this fit
    with Path(os.devnull).open("w") as console.file:
        flashace(arguments)


def finish(*arguments: object, command: str = "fit") -> None:
    process = start(*arguments, command=command)
    process.join()
    if process.exitcode:
        raise SystemExit(f"flashace {command} {' '.join(map(str, arguments))}: exit status {process.exitcode}")


def result(run: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """Every bit of the model, and the rows of metrics.csv but for the time that they took."""
    with safe_open(run / "model.pt", framework="np") as file:
        weights = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader((run / "metrics.csv").open())]
    return weights, rows


def end_commands(place: Path, kills: int) -> list[bool]:
    """For each command and signal, so many times: whether all was as it should be."""
    folder, scratch = place / "commands", place / "scratch"
    folder.mkdir()
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    model, data, half = folder / "model.pt", folder / "data.extxyz", folder / "half.extxyz"
    shutil.copy(place / "data.extxyz", data)
    write(half, read(data, ":12"))
    network = load_model(place / "whole/model.pt", torch.float64)
    network.uncertainty = None
    save_model(model, network, read_header(place / "whole/model.pt")["provenance"])
    lammps, shards, predictions = folder / "model.so", folder / "shards", folder / "predictions.extxyz"
    finish(model, "--for", "lammps", "--dtype", "float64", command="export")
    finish(half, shards, command="convert")
    finish(model, half, "-o", predictions, command="evaluate")
    commands = {
        "export": (lammps, (model, "--for", "lammps")),
        "convert": (shards, (data, shards, "--overwrite")),
        "evaluate": (predictions, (model, data, "-o", predictions)),
        "calibrate": (model, (model, place / "data.extxyz", "--valid", half)),
    }
    table = Table("command", "signal", "ended", "old one then", "left behind", "as it should be", title="commands")
    held: list[bool] = []
    for command, (target, arguments) in commands.items():
        old = contents(target)
        begin = time.monotonic()
        finish(*arguments, command=command)
        seconds, new = time.monotonic() - begin, contents(target)
        for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            good: list[bool] = []
            olds, left = 0, set()
            while len(good) < kills:
                put_back(target, old)
                before = listing(folder)
                ended = end_one(command, arguments, signum, [folder, scratch], seconds if len(good) % 2 == 0 else None)
                now, more = contents(target), (listing(folder) - before) | listing(scratch)
                caught = signum != signal.SIGKILL
                whole = now in (old, new) and not (caught and (more or stays_in(scratch)))
                if not ended and whole:
                    continue  # it was faster
                olds += now == old
                left |= {path.name for path in more}
                while not caught and running_in(scratch):  # a compiler without its master
                    time.sleep(0.01)
                for path in sorted(((listing(folder) - before) | listing(scratch)), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                finish(*arguments, command=command)
                good.append(whole and contents(target) == new)
            shown = f"{len(left)}: {min(left)}" if left else ""
            print(f"{command} {signum.name}: {sum(good)} of {len(good)}", flush=True)
            table.add_row(command, signum.name, str(len(good)), str(olds), shown, f"{sum(good)} of {len(good)}")
            held += good
    Console(width=140).print(table)
    return held


def end_one(command: str, arguments: tuple[object, ...], signum: int, places: list[Path], seconds: float | None) -> bool:
    """Send a command the signal after a part of the seconds, or, where None, when there is something new; whether it ended of that."""
    before = [listing(place) for place in places]
    program = start(*arguments, command=command)
    if seconds is None:
        while program.is_alive() and [listing(place) for place in places] == before:
            pass
        time.sleep(random.choice([0, 0.001, 0.1]))
    else:
        program.join(random.uniform(0, seconds))
    if program.is_alive():
        os.kill(program.pid, signum)
    program.join()
    return program.exitcode != 0


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])} if path.exists() else {}


def put_back(path: Path, files: dict[str, bytes]) -> None:
    if path.is_dir() or len(files) > 1:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    for name, data in files.items():
        (path / name if path.is_dir() else path).write_bytes(data)


def listing(folder: Path) -> set[Path]:
    """All that is in it; of what comes and goes meanwhile, some."""
    found: set[Path] = set()
    for root, folders, files in os.walk(folder):
        found |= {Path(root) / name for name in (*folders, *files)}
    return found


def stays_in(scratch: Path) -> bool:
    """Whether one is still there after a second: what was killed takes a moment to go."""
    end = time.monotonic() + 1
    while running_in(scratch):
        if time.monotonic() > end:
            return True
        time.sleep(0.01)
    return False


def running_in(scratch: Path) -> bool:
    """Whether a program that was started with this folder for its temporary files, a compiler, is still there."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={scratch}".encode() in (process / "environ").read_bytes():
                return True
        except OSError:
            continue
    return False


if __name__ == "__main__":
    main()
