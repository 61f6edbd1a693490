"""The commands: what a user types in, what the rest of the house does out. The only file with click.

What needs PyTorch, which takes seconds to import, is imported by the command that needs it: help is there at once.
"""

import codecs
import ctypes
import io
import itertools
import json
import os
import platform
import sys
import time
import unicodedata
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ase.calculators.calculator import CalculationFailed
from rich.console import Console
from rich.table import Table

from flashace.engines.serve import PORT
from flashace.engines.serve import serve as serve_sockets
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from flashace.data.frames import LabelKeys, Labelled
    from flashace.structure.graph import Graph
    from flashace.train.config import FitConfig, TrainConfig
    from flashace.train.prepare import Prepared

# file names and labels are shown as they are: "[1]" and ":o:" in them are no markup
console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)
LENGTHS = ("epochs", "max_time")
CONFIG_PLACES = (Path("config.yaml"), Path("training/config.yaml"))


# what a terminal that does not know UTF-8, or a file name that is none, gets instead
PLAINER = "flashace.plainer"
PLAIN = {"³": "3", "²": "2", "–": "-", "−": "-", "…": "...", "×": "x", "±": "+-", "·": "*", "→": "->", "σ": "sigma", "°": " deg"}


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return PLAIN.get(sign) or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode() or "?"


codecs.register_error(PLAINER, _plainer)


class _Group(click.Group):
    """Our own errors are one line for the user, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=PLAINER)
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
@click.option("--stress-key", help="Name of the stress or virial in DATA; none leaves it out.")
@click.option("--check", help="Labels that are surely wrong: stop, leave_out, warn or off.")
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
    from flashace.train.loop import fit as run_fit
    from flashace.train.ranks import joined

    started = time.monotonic()
    _keep_freed_memory()
    with joined() as ranks, ExitStack() as locks:
        console.quiet = not ranks.first
        plan = None
        try:
            if ranks.first:
                plan = _plan(config, overwrite, dry_run, resume, flags, locks)
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


def _plan(
    config: str | None, overwrite: bool, dry_run: bool, resume: str | None, flags: dict[str, Any], locks: ExitStack
) -> "tuple[Prepared, Path] | None":
    """What is fitted, and the run folder, locked; shows the decisions. None for a dry run."""
    from flashace.evaluate import report
    from flashace.train.lock import locked
    from flashace.train.prepare import prepare

    if resume is not None:
        config = _config_of_run(resume, config, flags)
        locks.enter_context(locked(Path(resume), tell=console.print))  # before its checkpoint is read
    folder = None if resume is None else Path(resume)
    config, options = _configuration(config, flags, resume)
    prepared = prepare(options, folder, lambda message: console.print(message, soft_wrap=True))
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
        folder = _default_folder(prepared.config.train.data[0], overwrite, locks) if output is None else Path(output)
        locks.enter_context(locked(folder, tell=console.print))
        if not overwrite:
            _refuse_existing(folder)
        _spare_inputs_of_fit(folder, prepared.config.train, config)
    return prepared, folder


@main.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--json", "json_file", type=click.Path(), help="File for the findings, with all frames.")
@click.option("--energy-key", help="Name of the energy in DATA.")
@click.option("--forces-key", help="Name of the forces in DATA.")
@click.option("--stress-key", help="Name of the stress or virial in DATA; none leaves it out.")
def check(data: tuple[str, ...], json_file: str | None, **keys: Any) -> None:
    """What is wrong with the labels of DATA, how sure that is, and what mends it. Exit status 1 where something is surely wrong.

    Units, signs and orders of components are tested by a linear fit of seconds. DATA itself is never changed.
    """
    from flashace.check import check as check_labels
    from flashace.check.finding import finding_table, mends
    from flashace.evaluate import report

    _check_output("--json", json_file, *data)
    findings, labels = check_labels(data, _label_keys(keys))
    if json_file is not None:
        _write_json(json_file, [finding.as_json() for finding in findings])
    console.print(report.label_table(labels))
    console.print(finding_table(findings))
    console.print(mends(findings), soft_wrap=True)
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
@click.option("--stress-key", help="Name of the stress or virial in DATA; none leaves it out.")
def convert(data: tuple[str, ...], shards: str, overwrite: bool, **keys: Any) -> None:
    """Write DATA as a folder SHARDS of memory-mapped arrays: `flashace fit SHARDS` then needs no more memory for more data."""
    from flashace.data.shards import convert as convert_files
    from flashace.evaluate import report
    from flashace.train.loop import progress_bar

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
    from flashace.backends.choice import backend_of
    from flashace.calculator import choose_device, choose_dtype
    from flashace.data.shards import read_data
    from flashace.evaluate import report
    from flashace.evaluate.calibrate import calibration_rows
    from flashace.evaluate.predict import error_rows, predict_graphs
    from flashace.potential.model_file import load_model

    _check_output("--output", output, model, *data)
    report.check_name_of_predictions(output)
    network = load_model(model, choose_dtype(dtype), choose_device(device))
    frames, labels = read_data(data, _label_keys(keys), required=("energy",))
    graphs = _graphs(frames, network.config.r_max)
    for graph in graphs:
        network.check_elements(graph.numbers)
    predictions = predict_graphs(network, graphs, backend=backend_of(network))
    report.write_predictions(output, frames, predictions)
    console.print(report.label_table(labels))
    console.print(report.error_table({"data": error_rows(frames, predictions)}))
    if network.uncertainty is not None:
        console.print(report.calibration_table(calibration_rows(frames, predictions)))
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
    from flashace.calculator import choose_device, choose_dtype
    from flashace.evaluate import report
    from flashace.evaluate.calibrate import calibration_sets, estimate_uncertainty
    from flashace.potential.model_file import load_model, read_header, save_model

    _check_output("--output", output or model, *data, *valid)
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
    from flashace.calculator import choose_dtype
    from flashace.engines.lammps.export import export_for_lammps
    from flashace.potential.model_file import NO_FREE_ATOMS, load_model

    target = Path(output or Path(model).with_suffix(".so"))
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
    from flashace.evaluate import report
    from flashace.potential.model_file import NO_FREE_ATOMS, read_header, told_free_atoms
    from flashace.verify.sanity import Sanity

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
    if header.get("coordination") is not None:
        ranges = ", ".join(f"{pair} {least:.2f} to {most:.2f}" for pair, (least, most) in header["coordination"].items())
        table.add_row("neighbours in training", f"{ranges} (the centre first, each neighbour counted by the envelope)")
    if header.get("energy_bound") is not None:
        table.add_row("bound of the network", f"{header['energy_bound']:.4g} eV per atom, beyond its reference energy")
    for name, value in header["config"].items():
        table.add_row(name, str(value))
    table.add_row("uncertainty", report.uncertainty_in_words(header.get("uncertainty")))
    if provenance.get("sanity") is not None:
        table.add_row("outside the data", Sanity(*(provenance["sanity"][name] for name in Sanity._fields)).in_words())
    table.add_row("splines of kernels", _splines_in_words(model))
    table.add_row("format", str(header["format"]))
    if "check" in provenance:
        table.add_row("check of the labels", provenance["check"])
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
@click.option("--dtype", type=click.Choice(["float64", "float32"]), default="float64", show_default=True, help="Precision to check in.")
def verify(
    model: str, structure: str, calculator: str, arguments: tuple[str, ...], json_file: str | None, device: str | None, dtype: str
) -> None:
    """Does MODEL obey the laws that a potential has to obey, on STRUCTURE (the last frame)? Exit status 1 where it does not."""
    from flashace.data.shards import read_data
    from flashace.verify.laws import calculator_factory, law_table
    from flashace.verify.laws import verify as verify_laws

    _check_output("--json", json_file, model, structure)
    frames, _ = read_data(structure, required=())
    make_calculator, choosable = calculator_factory(calculator, model, device, arguments)
    precisions = ("float64", "float32") if choosable and dtype == "float64" else (dtype,)
    results = verify_laws(make_calculator, frames[-1].atoms, precisions)
    if json_file is not None:
        _write_json(json_file, [result._asdict() for result in results])
    console.print(law_table(results))
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
    from flashace.calculator import FlashACE
    from flashace.data.shards import read_data

    if unixsocket is not None and (host, port) != (None, None):
        raise FlashACEError("address: expected --unixsocket, or --host and --port, got both; leave one out")
    frames, _ = read_data(structure, required=())
    evaluated = serve_sockets(FlashACE(model, device, dtype), frames[-1].atoms, unixsocket, host or "localhost", port or PORT, wait)
    console.print(f"the server has ended; structures evaluated: {evaluated}")


def _splines_in_words(path: str) -> str:
    import torch

    from flashace.backends.splines import splines_of
    from flashace.potential.model_file import load_model

    try:
        splines = splines_of(load_model(path, torch.float64))
    except FlashACEError as error:
        return str(error)
    return f"{splines.intervals} intervals, off by {splines.error:.1e} of the largest edge function"


def _configuration(path: str | None, flags: dict[str, Any], resume: str | None) -> "tuple[str | None, FitConfig]":
    """From -c, from data on the command line alone, or from the first config file in the usual places; and which file that was."""
    from flashace.train.config import load_config

    if path is None and not flags["data"]:
        found = [place for place in CONFIG_PLACES if place.is_file()]
        if not found:
            raise FlashACEError(f"expected DATA or --config, or one of {', '.join(map(str, CONFIG_PLACES))} here; got none of them")
        path = str(found[0])
        console.print(f"options from {path}")
    options = load_config(path, flags)
    if path is not None:
        _check_paths(path, options.train, [name for name, value in flags.items() if value not in (None, ())], resume)
    return path, options


def _check_paths(config: str, options: "TrainConfig", flags: Sequence[str], resume: str | None) -> None:
    """Raises FlashACEError for what the file of options names and is not there: the path alone would not say who named it."""
    named: dict[str, tuple[str | None, ...]] = {"data": options.data, "valid": options.valid}
    if resume is None:  # the checkpoint has what these give
        named |= {"isolated_atoms": (options.isolated_atoms,), "resume_from": (options.resume_from,)}
    for option, paths in named.items():
        for path in paths:
            if path is not None and option not in flags and not os.path.exists(path) and "@" not in path:
                raise FlashACEError(
                    f"{config}: `{option}` names {path}, which is not there, seen from {Path.cwd()}; "
                    "correct it in this file, or run from the folder where its paths hold"
                )


def _check_output(option: str, output: str | None, *inputs: str) -> None:
    """Raises FlashACEError for a file that is to be written and is one of those that the command reads, or has no place.

    Before the work, since it would be lost.
    """
    if output is None:
        return
    target = Path(output)
    for path in inputs:
        if any(_same(target, file) for file in _files_read(Path(path))):
            raise FlashACEError(f"{option} {output}: expected another file than those that are read, which this would overwrite")
    if target.is_dir():
        raise FlashACEError(f"{option} {output}: expected a file to write, got a folder; name a file in it")
    if not target.parent.is_dir():
        raise FlashACEError(f"{option} {output}: expected a folder {target.parent} to write to, found none; make it")


def _spare_inputs_of_fit(folder: Path, options: "TrainConfig", config: str | None) -> None:
    """Raises FlashACEError where the run folder would lose what the fit reads."""
    from flashace.train.loop import LEFT_BY_A_FIT

    read = [config, *options.data, *options.valid, options.isolated_atoms, options.resume_from]
    for path in filter(None, read):
        if any(_same(folder / name, file) for name in ("config.yaml", *LEFT_BY_A_FIT) for file in _files_read(Path(path))):
            raise FlashACEError(f"{folder}: expected a run folder in which {path}, which the fit reads, is not overwritten; name another")
    if options.resume_from is not None and _same(folder, _run_folder(Path(options.resume_from), options.checkpoint_dir)):
        raise FlashACEError(f"{folder}: expected another run folder than the one to start from, which this would overwrite; name another")


def _run_folder(start: Path, checkpoint_dir: str) -> Path:
    """Of a run folder, its checkpoints, or one of them."""
    return next((path for path in (start, *start.parents[:2]) if (path / checkpoint_dir).is_dir()), start)


def _files_read(path: Path) -> list[Path]:
    """The files that are there and that a command reads when it is given `path`."""
    from flashace.data.files import files_of
    from flashace.data.shards import is_shards

    if is_shards(path):
        return [*path.iterdir()]
    try:
        return files_of(path)
    except FlashACEError:  # the reader says it, and knows what it was to be
        return []


def _same(one: Path, other: Path) -> bool:
    """Whether both are there and one file, whatever their names."""
    return one.exists() and other.exists() and one.samefile(other)


def _write_json(path: str, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    Path(path).write_text(text, "utf-8", errors="backslashreplace")  # of half a pair of surrogates, just what JSON has


def _graphs(frames: "Sequence[Labelled]", r_max: float) -> "Sequence[Graph]":
    """Once for frames in memory, and at each access for those of shards."""
    from flashace.data.graphs import build_graphs, fresh_graphs

    return build_graphs(frames, r_max) if isinstance(frames, list) else fresh_graphs(frames, r_max)


def _label_keys(keys: dict[str, Any]) -> "LabelKeys":
    from flashace.data.frames import LabelKeys

    return LabelKeys(**{name.removesuffix("_key"): key for name, key in keys.items()})


def _stop_on_wrong_labels(prepared: "Prepared") -> None:
    """Prints what is surely wrong with the frames of a fit, and raises FlashACEError where `check` says stop."""
    from flashace.check.finding import finding_table, mends

    wrong = [] if prepared.looked is None else list(prepared.looked.wrong)
    if not wrong:
        return
    console.print(finding_table(wrong))
    console.print(mends(wrong), soft_wrap=True)
    if prepared.config.train.check == "stop":
        names = ", ".join(finding.what for finding in wrong)
        raise FlashACEError(
            f"labels: surely wrong are {names}; mend them as printed above, or say --check leave_out to fit without these labels, "
            "or --check warn to fit all the same"
        )


def _keep_freed_memory() -> None:
    """Ask glibc not to give memory back after every tensor: on one CPU core a training step took 0.8 of its time so."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in {-3: 2**30, -1: 2**31 - 1, -2: 2**26}.items():  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(parameter, value)


def _default_folder(data: str, overwrite: bool, locks: ExitStack) -> Path:
    """runs/<name>, or the first of runs/<name>-2, -3, … that is free; made, and locked, before another fit can take the same."""
    from flashace.train.lock import locked

    first = Path("runs") / Path(data).stem
    if overwrite:
        return first
    for folder in itertools.chain([first], (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))):
        try:
            locks.enter_context(locked(folder, new=True, tell=console.print))
        except FileExistsError:
            continue
        break
    return folder


def _config_of_run(run: str, config: str | None, flags: dict[str, Any]) -> str:
    """The configuration file of a run that goes on. Raises FlashACEError where flags are given that do not make it longer."""
    from flashace.train.config import load_config

    given = [name for name, value in flags.items() if value not in (None, ()) and name not in LENGTHS]
    if given or config:
        raise FlashACEError(
            f"--resume {run} takes its options from that folder; leave out {', '.join(given or ['config'])} (--epochs and --max-time alone "
            "may be given, to make it longer)"
        )
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise FlashACEError(f"--resume {run}: expected the folder of a run, found no {path}; name one, or start the fit anew")
    before = load_config(path, {}).train
    for name in LENGTHS:
        old, new = getattr(before, name), flags[name]
        if new is not None and (old is None or new <= old):
            flag, has = name.replace("_", "-"), f"has {old:g}" if old else f"has none: its length is {_length_in_words(before)}"
            raise FlashACEError(f"--{flag} {new:g}: expected more than {run} had, to make that fit longer, but it {has}")
    return str(path)


def _length_in_words(train: "TrainConfig") -> str:
    return " or ".join(f"--{name.replace('_', '-')} {getattr(train, name):g}" for name in LENGTHS if getattr(train, name))


def _refuse_existing(folder: Path) -> None:
    from flashace.train.checkpoint import checkpoints_in
    from flashace.train.loop import LEFT_BY_A_FIT

    if any((folder / name).exists() for name in LEFT_BY_A_FIT) or checkpoints_in(folder / "checkpoints"):
        raise FlashACEError(
            f"{folder}: this run folder holds a fit already; name another with --output, or say --overwrite, or --resume {folder}"
        )
