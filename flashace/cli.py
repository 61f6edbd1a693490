"""The commands: what a user types in, what the rest of the house does out. The only file with click."""

import ctypes
import itertools
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from ase.calculators.calculator import CalculationFailed
from rich.console import Console
from rich.table import Table

from flashace.calculator import FlashACE, choose_device, choose_dtype
from flashace.errors import FlashACEError
from flashace.graph import Graph
from flashace.kernels.splines import splines_of
from flashace.lammps.export import export_for_lammps
from flashace.model_file import NO_FREE_ATOMS, load_model, read_header, save_model, told_free_atoms
from flashace.serve import PORT
from flashace.serve import serve as serve_sockets
from flashace.train import report
from flashace.train.calibrate import calibration_rows, calibration_sets, estimate_uncertainty
from flashace.train.check import check as check_labels
from flashace.train.check import quick_check
from flashace.train.check.finding import finding_table, mends
from flashace.train.checkpoint import checkpoints_in
from flashace.train.config import FitConfig, load_config
from flashace.train.data import LabelKeys, Labelled
from flashace.train.evaluate import error_rows, predict_graphs
from flashace.train.lazy import chained
from flashace.train.loop import LEFT_BY_A_FIT, progress_bar
from flashace.train.loop import fit as run_fit
from flashace.train.neighbors import build_graphs, fresh_graphs
from flashace.train.prepare import Prepared, prepare
from flashace.train.ranks import joined
from flashace.train.shards import convert as convert_files
from flashace.train.shards import read_data
from flashace.verify import PRECISIONS, calculator_factory, law_table
from flashace.verify import verify as verify_laws

# file names and labels are shown as they are: "[1]" and ":o:" in them are no markup
console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)
CONFIG_PLACES = (Path("config.yaml"), Path("training/config.yaml"))


class _Group(click.Group):
    """Our own errors are one line for the user, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (FlashACEError, CalculationFailed, OSError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=_Group)
@click.version_option(package_name="flashace")
def main() -> None:
    """Attention on the Atomic Cluster Expansion: fit, check and use interatomic potentials."""


@main.command()
@click.argument("data", nargs=-1)
@click.option("-c", "--config", type=click.Path(), help="YAML with any of the options; flags overrule it.")
@click.option("--valid", multiple=True, help="File for validation; a part of DATA where not given.")
@click.option("--valid-fraction", type=float, help="Part of DATA for validation; 0 fits all frames.")
@click.option("--isolated-atoms", help="File with a single-atom frame per element: reference energies.")
@click.option("-o", "--output", help="Run folder; runs/<name of DATA> where not given.")
@click.option("--overwrite", is_flag=True, help="Delete the fit that the run folder holds.")
@click.option("--epochs", type=int, help="Passes over the data.")
@click.option("--max-time", type=float, help="Minutes; the schedule fits itself to it.")
@click.option("--batch-size", type=int, help="Structures per step.")
@click.option("--grad-accum-steps", type=int, help="Batches whose gradients are added up for one step.")
@click.option("--size", help="small, medium or large: sizes of the model.")
@click.option("--r-max", type=float, help="Cutoff in Å.")
@click.option("--num-layers", type=int, help="Layers: how deeply a neighbourhood is read.")
@click.option("--learning-rate", type=float, help="Peak of the schedule.")
@click.option("--lr-scheduler", help="cosine, plateau or constant, after the warm-up.")
@click.option("--early-stopping", type=int, help="End after so many validations without a better score.")
@click.option("--loss", help="huber or mse.")
@click.option("--energy-weight", type=float, help="Weight of the energy in the loss, the same for all the fit.")
@click.option("--forces-weight", type=float, help="Weight of the forces in the loss.")
@click.option("--stress-weight", type=float, help="Weight of the stress in the loss.")
@click.option("--random-rotation/--no-random-rotation", default=None, help="Turn each training structure at random, in every epoch.")
@click.option("--use-amp/--no-use-amp", default=None, help="Mixed precision on a GPU.")
@click.option("--amp-dtype", help="bfloat16 or float16.")
@click.option("--seed", type=int, help="Seed of split, weights and order of the frames.")
@click.option("--device", help="auto, cpu or cuda.")
@click.option("--dtype", help="float32 or float64.")
@click.option("--tensorboard/--no-tensorboard", default=None, help="Write the curves for TensorBoard too.")
@click.option("--energy-key", help="Name of the energy in DATA.")
@click.option("--forces-key", help="Name of the forces in DATA.")
@click.option("--stress-key", help="Name of the stress or virial in DATA.")
@click.option("--force", is_flag=True, default=None, help="Fit even to labels that are surely wrong.")
@click.option("--dry-run", is_flag=True, help="Show the decisions and stop.")
@click.option("--resume", type=click.Path(), help="Run folder of an interrupted fit: go on where it stopped.")
@click.option("--resume-from", help="Checkpoint, run folder or model file: start from its weights and reference energies.")
@click.option("--resume-load-optimizer", is_flag=True, default=None, help="Also from there: the state of the optimizer.")
@click.option(
    "--resume-load-scheduler", is_flag=True, default=None, help="Also from there: epoch, learning rate, best score, random states."
)
@click.option("--resume-load-scaler", is_flag=True, default=None, help="Also from there: the state of the gradient scaler.")
@click.option("--checkpoint-interval", type=int, help="Epochs between checkpoints.")
@click.option("--checkpoint-dir", help="Folder for checkpoints, inside the run folder unless absolute.")
@click.option("--keep-checkpoints", type=int, help="How many of the newest to keep; the best is kept too.")
@click.option("--energy-shift-per-atom", type=float, help="One reference energy in eV for all elements.")
@click.option(
    "--use-checkpoint-energy-shift/--no-use-checkpoint-energy-shift",
    default=None,
    help="With --resume-from: its reference energies, or those of DATA, to which the model then adapts.",
)
@click.option("--solve-atomic-energies", is_flag=True, default=None, help="Reference energies by least squares, whatever else there is.")
@click.option("--precompute-neighbors/--no-precompute-neighbors", default=None, help="Neighbour lists once, or again for every batch.")
def fit(config: str | None, overwrite: bool, dry_run: bool, resume: str | None, **flags: Any) -> None:
    """Fit a model to labelled structures (any format that ASE reads, or shards of `flashace convert`)."""
    started = time.monotonic()
    _keep_freed_memory()
    with joined() as ranks:
        console.quiet = not ranks.first
        plan = None
        try:
            if ranks.first:
                plan = _plan(config, overwrite, dry_run, resume, flags)
        finally:
            plan = ranks.from_first(plan)  # none where the first has failed, and says so itself
            if plan is None:
                ranks.leave()
        if plan is None:
            return
        prepared, folder = plan
        prepared = replace(prepared, device=ranks.device(prepared.device))
        ended = run_fit(prepared, folder, console, resume=resume is not None, overwrite=overwrite, started=started, ranks=ranks)
    if not ended:
        console.print(f"interrupted; everything is saved. To go on:\n    flashace fit --resume {folder}", soft_wrap=True)
        raise SystemExit(130)
    console.print(f"model     {folder / 'model.pt'}\npictures  {folder / 'learning_curve.png'}, {folder / 'parity.png'}", soft_wrap=True)


def _plan(config: str | None, overwrite: bool, dry_run: bool, resume: str | None, flags: dict[str, Any]) -> tuple[Prepared, Path] | None:
    """What is fitted, and the run folder; shows the decisions. None for a dry run."""
    if resume is not None:
        given = [name for name, value in flags.items() if value not in (None, ())]
        if given or config:
            raise FlashACEError(f"--resume {resume} takes its options from that folder; leave out {', '.join(given or ['config'])}")
        config = str(Path(resume) / "config.yaml")
        if not Path(config).is_file():
            raise FlashACEError(f"--resume {resume}: expected the folder of a run, found no {config}; name one, or start the fit anew")
    folder = None if resume is None else Path(resume)
    prepared = prepare(_configuration(config, flags), folder, lambda message: console.print(message, soft_wrap=True))
    console.print(report.label_table(prepared.labels))
    decisions = Table(show_header=False, title="Decisions", title_justify="left")
    for row in prepared.decisions():
        decisions.add_row(*row)
    console.print(decisions)
    if folder is None:
        _stop_on_wrong_labels(prepared)
    if dry_run:
        return None
    output = prepared.config.train.output
    if folder is None:
        folder = _default_folder(prepared.config.train.data[0], overwrite) if output is None else Path(output)
        if not overwrite:
            _refuse_existing(folder)
    return prepared, folder


@main.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--json", "json_file", type=click.Path(), help="File for the findings, with all frames.")
@click.option("--energy-key", help="Name of the energy in DATA.")
@click.option("--forces-key", help="Name of the forces in DATA.")
@click.option("--stress-key", help="Name of the stress or virial in DATA.")
def check(data: tuple[str, ...], json_file: str | None, **keys: Any) -> None:
    """What is wrong with the labels of DATA, how sure that is, and what mends it. Exit status 1 where something is surely wrong.

    Units, signs and orders of components are tested by a linear fit of seconds. DATA itself is never changed.
    """
    findings, labels = check_labels(data, _label_keys(keys))
    console.print(report.label_table(labels))
    console.print(finding_table(findings))
    console.print(mends(findings), soft_wrap=True)
    if json_file is not None:
        Path(json_file).write_text(json.dumps([finding.as_json() for finding in findings], indent=1, ensure_ascii=False) + "\n")
    wrong = [finding.what for finding in findings if finding.severity == "surely wrong"]
    if wrong:
        console.print(f"surely wrong: {'; '.join(wrong)}", soft_wrap=True)
        raise SystemExit(1)


@main.command()
@click.argument("data", nargs=-1, required=True)
@click.argument("shards", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Delete the shards that the folder holds.")
@click.option("--energy-key", help="Name of the energy in DATA.")
@click.option("--forces-key", help="Name of the forces in DATA.")
@click.option("--stress-key", help="Name of the stress or virial in DATA.")
def convert(data: tuple[str, ...], shards: str, overwrite: bool, **keys: Any) -> None:
    """Write DATA as a folder SHARDS of memory-mapped arrays: `flashace fit SHARDS` then needs no more memory for more data."""
    with progress_bar(console) as bar:
        task = bar.add_task("")

        def show(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        converted = convert_files(data, shards, _label_keys(keys), overwrite, show)
    console.print(report.label_table(converted.summary()))
    console.print(f"shards  {shards}: {len(converted)} frames, {converted.manifest['atoms']} atoms", soft_wrap=True)


@main.command()
@click.argument("model", type=click.Path())
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", default="predictions.extxyz", show_default=True, help="Frames with their predictions.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--energy-key")
@click.option("--forces-key")
@click.option("--stress-key")
def evaluate(model: str, data: tuple[str, ...], output: str, device: str, dtype: str, **keys: Any) -> None:
    """Errors of MODEL on labelled structures; predictions go to a file."""
    network = load_model(model, choose_dtype(dtype), choose_device(device))
    frames, labels = read_data(data, _label_keys(keys), required=("energy",))
    graphs = _graphs(frames, network.config.r_max)
    for graph in graphs:
        network.check_elements(graph.numbers)
    predictions = predict_graphs(network, graphs)
    console.print(report.label_table(labels))
    console.print(report.error_table({"data": error_rows(frames, predictions)}))
    if network.uncertainty is not None:
        console.print(report.calibration_table(calibration_rows(frames, predictions)))
    report.write_predictions(output, frames, predictions)
    console.print(f"predictions  {output}", soft_wrap=True)


@main.command()
@click.argument("model", type=click.Path())
@click.argument("data", nargs=-1, required=True)
@click.option("--valid", multiple=True, help="Frames that were not fitted; those of DATA that the fit held out, where not given.")
@click.option("-o", "--output", help="Model file to write; MODEL itself where not given.")
@click.option("--device", default="auto", show_default=True)
@click.option("--energy-key")
@click.option("--forces-key")
@click.option("--stress-key")
def calibrate(model: str, data: tuple[str, ...], valid: tuple[str, ...], output: str | None, device: str, **keys: Any) -> None:
    """Give MODEL, fitted to DATA, what it needs to say how uncertain its energies are. A fit does this by itself where it can."""
    header = read_header(model)
    network = load_model(model, choose_dtype(header["dtype"]), choose_device(device))
    sets = calibration_sets(data, valid, _label_keys(keys), header["provenance"])
    graphs = [_graphs(frames, network.config.r_max) for frames in sets]
    for graph in itertools.chain(*graphs):
        network.check_elements(graph.numbers)
    train, held_out = zip(sets, graphs, strict=True)
    network.uncertainty = estimate_uncertainty(network, train, held_out)
    save_model(output or model, network, header["provenance"])
    console.print(f"uncertainty {report.uncertainty_in_words(network.uncertainty.describe())}\nmodel  {output or model}", soft_wrap=True)


@main.command()
@click.argument("model", type=click.Path())
@click.option("--for", "engine", type=click.Choice(["lammps"]), required=True, help="The program that is to run it.")
@click.option("-o", "--output", help="File to write; MODEL with .so for its ending where not given.")
@click.option("--dtype", default="float32", show_default=True, help="Precision inside the network: float32 or float64.")
@click.option("--march", default="native", show_default=True, help="Kind of processor, as gcc names it: x86-64-v3 for any with AVX2.")
def export(model: str, engine: str, output: str | None, dtype: str, march: str) -> None:
    """One file of MODEL, compiled and with its weights, for another program (docs/lammps.md)."""
    target = Path(output or Path(model).with_suffix(".so"))
    if target.resolve() == Path(model).resolve():
        raise FlashACEError(f"--output {target}: expected another file than MODEL, which this would overwrite")
    network = load_model(model, choose_dtype(dtype))
    lacking = export_for_lammps(network, target, model, march)
    tried = f"not tried: this processor lacks {', '.join(lacking)}" if lacking else "gives the energies and forces of the plain path"
    console.print(f"{engine}  {target}  {dtype}, {march}, {target.stat().st_size / 1e6:.1f} MB; {tried}", soft_wrap=True)
    if not network.free_atoms:
        console.print(NO_FREE_ATOMS, soft_wrap=True)
    console.print(f"in the input: pair_style flashace\n              pair_coeff * * {target} {' '.join(network.symbols)}", soft_wrap=True)


@main.command()
@click.argument("model", type=click.Path())
def info(model: str) -> None:
    """What MODEL is: elements, sizes, reference energies, what it was fitted to and how well."""
    header = read_header(model)
    provenance = header["provenance"]
    table = Table(show_header=False, title=str(model), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # a hash is shown whole
    table.add_row("elements", ", ".join(header["atomic_energies"]))
    energies = ", ".join(f"{s} {e:.6f}" for s, e in header["atomic_energies"].items())
    origin = provenance.get("reference_energies", "origin unknown")
    table.add_row("reference energies", f"{energies} eV, {origin}")
    if not told_free_atoms(header.get("free_atoms"), origin):
        table.add_row("", NO_FREE_ATOMS)
    table.add_row("parameters", f"{header['num_parameters']:,}")
    if header.get("shortest_distances") is not None:
        distances = ", ".join(f"{pair} {r:.3f}" for pair, r in header["shortest_distances"].items())
        table.add_row("shortest distances", f"{distances} Å; other pairs never within r_max")
    for name, value in header["config"].items():
        table.add_row(name, str(value))
    table.add_row("uncertainty", report.uncertainty_in_words(header.get("uncertainty")))
    table.add_row("splines of kernels", _splines_in_words(model))
    table.add_row("format", str(header["format"]))
    for name in ("training_data", "versions"):
        for key, value in provenance.get(name, {}).items():
            table.add_row(f"{name.replace('_', ' ')}: {key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    console.print(table)
    if "errors" in provenance:
        console.print(report.error_table(provenance["errors"]))


@main.command()
@click.argument("model")
@click.argument("structure", type=click.Path())
@click.option(
    "--calculator",
    default="flashace.calculator:FlashACE",
    show_default=True,
    help="module:Class of any ASE calculator; it is given MODEL, unless that is -.",
)
@click.option("--arg", "arguments", multiple=True, help="name=value: a further argument of the calculator; as often as needed.")
@click.option("--json", "json_file", type=click.Path(), help="File for the results.")
@click.option("--device", help="Handed to the calculator; its own choice where not given.")
@click.option("--dtype", type=click.Choice(list(PRECISIONS)), default="float64", show_default=True, help="Precision to check in.")
def verify(
    model: str, structure: str, calculator: str, arguments: tuple[str, ...], json_file: str | None, device: str | None, dtype: str
) -> None:
    """Does MODEL obey the laws that a potential has to obey, on STRUCTURE (the last frame)? Exit status 1 where it does not."""
    frames, _ = read_data(structure, required=())
    make_calculator, choosable = calculator_factory(calculator, model, device, arguments)
    precisions = ("float64", "float32") if choosable and dtype == "float64" else (dtype,)
    results = verify_laws(make_calculator, frames[-1].atoms, precisions)
    console.print(law_table(results))
    if json_file is not None:
        Path(json_file).write_text(json.dumps([result._asdict() for result in results], indent=1, ensure_ascii=False) + "\n")
    broken = [result.law for result in results if result.passed is False]
    if broken:
        console.print(f"broken: {', '.join(broken)}")
        raise SystemExit(1)


@main.command()
@click.argument("model", type=click.Path())
@click.option(
    "--atoms", "structure", required=True, help="File with the server's atoms in its order (the last frame): the server sends none."
)
@click.option("--unixsocket", help="Name of the server's socket, the file being /tmp/ipi_NAME.")
@click.option("--host", help="Where the server runs; localhost where not given.")
@click.option("--port", type=int, help=f"Its port; {PORT} where not given.")
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait for a server that is not there yet.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
def serve(
    model: str, structure: str, unixsocket: str | None, host: str | None, port: int | None, wait: float, device: str, dtype: str
) -> None:
    """Evaluate MODEL for a program that speaks the i-PI protocol, such as i-PI or ASE's SocketIOCalculator, until that ends."""
    if unixsocket is not None and (host, port) != (None, None):
        raise FlashACEError("address: expected --unixsocket, or --host and --port, got both; leave one out")
    frames, _ = read_data(structure, required=())
    evaluated = serve_sockets(FlashACE(model, device, dtype), frames[-1].atoms, unixsocket, host or "localhost", port or PORT, wait)
    console.print(f"the server has ended; structures evaluated: {evaluated}")


def _splines_in_words(path: str) -> str:
    try:
        splines = splines_of(load_model(path, torch.float64))
    except FlashACEError as error:
        return str(error)
    return f"{splines.intervals} intervals, off by {splines.error:.1e} of the largest edge function"


def _configuration(path: str | None, flags: dict[str, Any]) -> FitConfig:
    """From -c, from data on the command line alone, or from the first config file in the usual places."""
    if path is None and not flags["data"]:
        found = [place for place in CONFIG_PLACES if place.is_file()]
        if not found:
            raise FlashACEError(f"expected DATA or --config, or one of {', '.join(map(str, CONFIG_PLACES))} here; got none of them")
        path = str(found[0])
        console.print(f"options from {path}")
    return load_config(path, flags)


def _graphs(frames: Sequence[Labelled], r_max: float) -> Sequence[Graph]:
    """Once for frames in memory, and at each access for those of shards."""
    return build_graphs(frames, r_max) if isinstance(frames, list) else fresh_graphs(frames, r_max)


def _label_keys(keys: dict[str, Any]) -> LabelKeys:
    return LabelKeys(**{name.removesuffix("_key"): key for name, key in keys.items()})


def _stop_on_wrong_labels(prepared: Prepared) -> None:
    """Prints what is surely wrong with the frames of a fit, and raises FlashACEError unless `force` is set."""
    wrong = [finding for finding in quick_check(chained(prepared.train, prepared.valid)) if finding.severity == "surely wrong"]
    if not wrong:
        return
    console.print(finding_table(wrong))
    console.print(mends(wrong), soft_wrap=True)
    if not prepared.config.train.force:
        names = ", ".join(finding.what for finding in wrong)
        raise FlashACEError(
            f"labels: surely wrong are {names}; mend them (`flashace check` looks deeper), or fit all the same with --force"
        )


def _keep_freed_memory() -> None:
    """Ask glibc not to give memory back after every tensor: on one CPU core a training step took 0.8 of its time so."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in {-3: 2**30, -1: 2**31 - 1, -2: 2**26}.items():  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(parameter, value)


def _default_folder(data: str, overwrite: bool) -> Path:
    """runs/<name>, or the first of runs/<name>-2, -3, … that is free."""
    first = Path("runs") / Path(data).stem
    numbered = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    return first if overwrite or not first.exists() else next(folder for folder in numbered if not folder.exists())


def _refuse_existing(folder: Path) -> None:
    if any((folder / name).exists() for name in LEFT_BY_A_FIT) or checkpoints_in(folder / "checkpoints"):
        raise FlashACEError(
            f"{folder}: this run folder holds a fit already; name another with --output, or say --overwrite, or --resume {folder}"
        )
