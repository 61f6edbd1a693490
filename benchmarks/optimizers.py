"""Validation errors over CPU time with Muon, AdamW and SOAP for the weight matrices: a picture and a Markdown table.

    pip install pytorch-optimizer
    python benchmarks/optimizers.py --data train.xyz --valid valid.xyz --epochs 60 --output docs/optimizers

SOAP (Vyas et al., arXiv:2409.11321) stands in Muon's place; AdamW takes the rest in all runs. Runs are not repeated.
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from pytorch_optimizer import SOAP
from rich.console import Console
from torch.optim import Optimizer

from flashace.potential.model import AttentionACE
from flashace.train import loop
from flashace.train.config import TrainConfig, make_config
from flashace.train.optim import update
from flashace.train.optim.muon import Muon
from flashace.train.optim.update import make_optimizers
from flashace.train.prepare import prepare

RATES = {"muon": (3e-3, 6e-3, 1e-2), "adamw": (1e-3, 3e-3, 6e-3), "soap": (1e-3, 3e-3, 6e-3)}


class Curve(NamedTuple):
    """One fit: validation errors in meV/Å and meV/atom, after so many epochs; CPU seconds of all of it."""

    optimizer: str
    rate: float
    epochs: list[float]
    forces: list[float]
    energy: list[float]
    cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--isolated-atoms")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--output", type=Path, default=Path("docs/optimizers"), help="name of picture and table, without ending")
    arguments = parser.parse_args()
    shared = {"data": arguments.data, "valid": arguments.valid, "epochs": arguments.epochs, "compile": True, "device": "cpu"}
    if arguments.isolated_atoms:
        shared["isolated_atoms"] = arguments.isolated_atoms
    curves = [run(name, rate, shared, arguments.runs / f"{name}-{rate:g}") for name, rates in RATES.items() for rate in rates]
    arguments.output.with_suffix(".md").write_text(table(curves))
    draw(curves, arguments.output.with_suffix(".png"))


def run(name: str, rate: float, shared: dict[str, Any], folder: Path) -> Curve:
    """Fit with one optimizer, or read what the fit left."""
    spent = folder / "cpu.json"
    if not spent.is_file():
        update.make_optimizers = with_soap if name == "soap" else make_optimizers
        options = shared | {"learning_rate": rate, "optimizer": "adamw" if name == "adamw" else "muon"}
        begin = time.process_time()
        prepared = prepare(make_config(options), None, print)
        loop.fit(prepared, folder, Console(width=140), resume=False, overwrite=True, started=time.monotonic())
        spent.write_text(json.dumps(time.process_time() - begin))
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    epochs, forces, energy = ([float(row[key]) for row in rows] for key in ("epoch", "valid_forces_rmse", "valid_energy_rmse"))
    return Curve(name, rate, epochs, forces, energy, json.loads(spent.read_text()))


def with_soap(model: AttentionACE, config: TrainConfig) -> list[Optimizer]:
    """The optimizers of a fit, with SOAP in Muon's place."""
    adamw, muon = make_optimizers(model, config)
    assert isinstance(muon, Muon)
    return [adamw, SOAP(muon.param_groups[0]["params"], lr=config.learning_rate, weight_decay=0.0)]


def table(curves: Sequence[Curve]) -> str:
    """Markdown: the errors at the end."""
    lines = ["| optimizer | learning rate | energy, meV/atom | forces, meV/Å | CPU seconds |", "|---|---|---|---|---|"]
    lines += [f"| {c.optimizer} | {c.rate:g} | {c.energy[-1]:.3g} | {c.forces[-1]:.3g} | {c.cpu_seconds:.0f} |" for c in curves]
    return "\n".join(lines) + "\n"


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Force error over CPU time, a colour per optimizer, its best learning rate in full and the others faint."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for colour, name in enumerate(RATES):
        tried = sorted((c for c in curves if c.optimizer == name), key=lambda c: c.forces[-1])
        for curve in tried:
            seconds = [curve.cpu_seconds * epoch / curve.epochs[-1] for epoch in curve.epochs]
            best = curve is tried[0]
            label = f"{name}, {curve.rate:g}" if best else None
            axes.plot(seconds, curve.forces, color=f"C{colour}", alpha=1.0 if best else 0.25, label=label)
    axes.set(xlabel="CPU time, s", ylabel="validation force RMSE, meV/Å", yscale="log")
    axes.legend(title="best learning rate of each")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
