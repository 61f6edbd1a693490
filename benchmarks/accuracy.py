"""Fits of several variants with several seeds, and their errors on test files, as a Markdown table with the spread of the seeds.

    python benchmarks/accuracy.py benchmarks/depth.yaml --data train.xyz --test test.xyz --seeds 0 1 2 --output docs/depth.md

The YAML file has `common` options of `flashace fit`, and `variants`: a name and the options that it changes. Runs that are there
already are not repeated, and interrupted ones go on, so a table can grow over days. CPU time is that of the whole fit, with
compiling and pictures.
"""

import argparse
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from flashace import __version__
from flashace.calculator import choose_device
from flashace.data.frames import read_labelled
from flashace.data.graphs import build_graphs
from flashace.evaluate.predict import error_rows, predict_graphs
from flashace.potential.model_file import load_model, read_header

FIT = [sys.executable, "-c", "from flashace.cli.main import main; main()", "fit"]
SUMS = ("energy_rmse", "forces_rmse", "stress_rmse")


class Run(NamedTuple):
    """One fit of one variant."""

    errors: dict[str, dict[str, float | None]]  # of each test file and config_type; meV/atom, meV/Å, meV/Å³
    parameters: int
    epochs: float
    cpu_minutes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", type=Path, help="YAML with `common` and `variants`")
    parser.add_argument("--data", required=True, help="training frames")
    parser.add_argument("--isolated-atoms", help="file for the reference energies")
    parser.add_argument("--test", nargs="+", required=True, help="test files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder for the fits")
    parser.add_argument("--output", type=Path, help="file for the table; printed where not given")
    arguments = parser.parse_args()

    plan = yaml.safe_load(arguments.variants.read_text())
    files = {"data": [arguments.data]} | ({"isolated_atoms": arguments.isolated_atoms} if arguments.isolated_atoms else {})
    runs: dict[str, list[Run]] = {name: [] for name in plan["variants"]}
    for seed in arguments.seeds:  # all variants with the first seed first: a table that is cut short compares like with like
        for name, options in plan["variants"].items():
            folder = arguments.runs / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}-{seed}"
            run_fit(folder, files | plan.get("common", {}) | options | {"seed": seed})
            runs[name].append(evaluate(folder, arguments.test))
            text = document(runs, arguments)
            arguments.output.write_text(text) if arguments.output else print(text)


def run_fit(folder: Path, options: dict[str, Any]) -> None:
    """Fit in `folder`, or go on with what is there. `cpu.json` counts the CPU seconds of all attempts."""
    if (folder / "model.pt").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "options.yaml").write_text(yaml.safe_dump(options))
    started = any((folder / "checkpoints").glob("step-*.pt"))
    how = ["--resume", str(folder)] if started else ["--config", str(folder / "options.yaml"), "--output", str(folder), "--overwrite"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / "log").open("a") as log:
        subprocess.run([*FIT, *how], stdout=log, stderr=log, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    spent = folder / "cpu.json"
    spent.write_text(json.dumps(seconds + (json.loads(spent.read_text()) if started and spent.is_file() else 0.0)))


def evaluate(folder: Path, tests: Sequence[str]) -> Run:
    """Errors of the model of `folder` on the test files."""
    model = load_model(folder / "model.pt", device=choose_device("auto"))
    errors = {}
    for test in tests:
        frames, _ = read_labelled(test, required=("energy",))
        rows = error_rows(frames, predict_graphs(model, build_graphs(frames, model.config.r_max)))
        for row in rows:
            kind = f", {row['config_type']}" if len(rows) > 1 else ""
            errors[f"{Path(test).stem}{kind}"] = {name: row[name] for name in SUMS}
    header = read_header(folder / "model.pt")
    epochs = float((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
    return Run(errors, header["num_parameters"], epochs, json.loads((folder / "cpu.json").read_text()) / 60)


def document(runs: dict[str, list[Run]], arguments: argparse.Namespace) -> str:
    """The tables, one per test file and config_type, and what they were made with."""
    done = {name: found for name, found in runs.items() if found}
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    lines = [
        f"Made by `benchmarks/accuracy.py {arguments.variants}` on {datetime.date.today()}, {processor()}, {threads} thread(s);",
        f"flashace {__version__}, torch {torch.__version__}. Root mean square errors, mean ± standard deviation of the seeds.",
        "",
    ]
    columns = "variant", "energy, meV/atom", "forces, meV/Å", "stress, meV/Å³", "parameters", "epochs", "CPU minutes", "seeds"
    for test in next(iter(done.values()))[0].errors:
        lines += [f"**{test}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [*(table_row(name, found, test) for name, found in done.items()), ""]
    return "\n".join(lines)


def table_row(name: str, found: Sequence[Run], test: str) -> str:
    """One line of Markdown."""
    cells = [spread([run.errors[test][label] for run in found]) for label in SUMS]
    cells += [
        f"{found[0].parameters:,}",
        spread([run.epochs for run in found]),
        spread([run.cpu_minutes for run in found]),
        str(len(found)),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def spread(values: Sequence[float | None]) -> str:
    """mean ± standard deviation; nothing where a label is missing."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return ""
    deviation = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 and len(set(numbers)) > 1 else ""
    return f"{statistics.mean(numbers):.4g}{deviation}"


def processor() -> str:
    """The model of the CPU, or of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    found: Iterator[str] = (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    return next(found, platform.processor())


if __name__ == "__main__":
    main()
