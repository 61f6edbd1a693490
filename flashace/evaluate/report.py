"""Summaries, errors, metrics and predictions in; tables for the terminal, pictures and a file of predictions out."""

import bz2
import csv
import gzip
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from rich.table import Table
from rich.text import Text

from flashace.data.frames import Labelled, LabelSummary
from flashace.data.labels import LABELS, Label
from flashace.errors import FlashACEError
from flashace.evaluate.metrics import ErrorTable
from flashace.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # as ASE packs files of these names
Predictions = Sequence[Mapping[str, Any]]  # per frame: energy (eV), forces [N, 3] (eV/Å), stress [3, 3] (eV/Å³) or None

COLORS = ("#7A92AB", "#D1495B", "#2A9D8F", "#E0A030")  # train, validation, and what else is drawn
INK, FAINT = "#2B2D42", "#D9DCE1"
MAX_POINTS = 20_000  # drawn per set and panel; the numbers in the picture count all


def label_table(summary: LabelSummary) -> Table:
    """Where each label was read from and in how many frames, how many lack it, and what they have instead."""
    table = Table(title=f"Labels of {summary.frames} frames", title_justify="left")
    for name, justify in (("label", "left"), ("read from", "left"), ("frames", "right"), ("missing", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for label in LABELS:
        count = summary.counts[label]
        missing = summary.frames - sum(count.used.values())
        used = [(source, str(frames)) for source, frames in count.used.items()] or [("not found", "–")]
        for i, (source, shown) in enumerate(used):
            last = i == len(used) - 1
            table.add_row("" if i else label, source, shown, str(missing) if last else "")
        for source, frames in count.ignored.items():
            table.add_row("", Text(f"not read: {source}", "yellow"), "", f"{frames} of these")
    for name, having in summary.unused.items():
        table.add_row("", Text(f"not used: {name}", "yellow"), str(having), "")
    return table


def error_table(rows_of_sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """MAE and RMSE per set and config_type from the rows of `ErrorTable`; a label that no frame has gets no column."""
    every_row = [row for rows in rows_of_sets.values() for row in rows]
    shown = [label for label in LABELS if any(row.get(f"{label}_rmse") is not None for row in every_row)]
    table = Table("set", title="Errors: MAE / RMSE", title_justify="left")
    table.add_column("config_type", overflow="fold")  # on a narrow terminal it takes several lines, whole
    table.add_column("frames", justify="right")
    for label in shown:
        table.add_column(f"{label}\n{LABELS[label].error_unit}", justify="right", overflow="fold")
    for name, rows in rows_of_sets.items():
        for row in rows:
            errors = [_pair(row.get(f"{label}_mae"), row.get(f"{label}_rmse")) for label in shown]
            cells = ["" if row is not rows[0] else name, row["config_type"] or "(none)", str(row["frames"]), *errors]
            table.add_row(*cells, style="bold" if row is rows[-1] else None, end_section=row is rows[-1])
    return table


def calibration_table(rows: Sequence[Mapping[str, Any]], of: str = "energy") -> Table:
    """What `calibration_rows` (or, `of` forces, `force_calibration_rows`) found: were the normal law exact, z would be 1 and the parts
    within σ and 2 σ 68 % and 95 %.
    """
    table = Table(title=f"{of.capitalize()} uncertainty σ against errors; too small for frames that were fitted", title_justify="left")
    table.add_column("config_type", overflow="fold")
    unit = LABELS[of].error_unit
    for name in ("frames", f"RMS error\n{unit}", f"RMS σ\n{unit}", "RMS of\nerror / σ", "within\nσ", "within\n2 σ", "rank\ncorrelation"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            row["config_type"] or "(none)",
            str(row["frames"]),
            *(three_digits(row[name]) for name in ("rmse", "uncertainty", "z")),
            *(f"{row[name]:.0%}" for name in ("within_1", "within_2")),
            "–" if row["rank"] is None else f"{row['rank']:.2f}",
            style="bold" if row is rows[-1] else None,
        )
    return table


def uncertainty_in_words(described: Mapping[str, Any] | None) -> str:
    """Of what a model file has (`Uncertainty.describe`)."""
    if described is None:
        return "not known (flashace calibrate adds it)"
    frames = f"{described['frames']} frame{'' if described['frames'] == 1 else 's'}"
    if described.get("left_out"):
        frames += f" and, since these are few, {described['left_out']} fitted ones, each as if left out (rather too small than too large)"
    forces = f", of its force up to {1e3 * described['forces']['largest']:.3g} meV/Å" if "forces" in described else ""
    return f"calibrated on {frames}; of an atom in these up to {1e3 * described['largest']:.3g} meV{forces}"


def learning_curve(metrics_csv: str | Path, png: str | Path) -> None:
    """Draws the loss, the learning rate and the validation errors over the epochs of a `metrics.csv`.

    Columns: epoch, learning_rate, loss, and `{train,valid}_{energy,forces,stress,…}_{mae,rmse}` in meV/atom, meV/Å, meV/Å³ and so on; those
    that are missing or empty are left out. Raises FlashACEError for a file without epochs.
    """
    columns = _read_columns(Path(metrics_csv))
    epochs = columns["epoch"]
    panels = [label for label in LABELS if any(f"valid_{label}_{kind}" in columns for kind in ("mae", "rmse"))]
    figure = _figure(3.8 * (1 + len(panels)), 3.8)
    grid = figure.add_gridspec(2, 1 + len(panels), height_ratios=(3, 1))
    loss, rate = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _curve(loss, epochs, columns.get("loss"), INK, "-")
    _curve(rate, epochs, columns.get("learning_rate"), INK, "-")
    _style(loss, "Loss", "", "")
    _style(rate, "Learning rate", "epoch", "")
    _log_scale(loss)
    for i, label in enumerate(panels):
        axes = figure.add_subplot(grid[:, 1 + i])
        for part, name, color in (("train", "train", COLORS[0]), ("valid", "validation", COLORS[1])):
            for kind, line in (("rmse", "-"), ("mae", ":")):
                _curve(axes, epochs, columns.get(f"{part}_{label}_{kind}"), color, line, f"{name} {kind.upper()}")
        _style(axes, label.capitalize(), "epoch", LABELS[label].error_unit)
        _log_scale(axes)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    for axes in figure.axes:
        axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        axes.locator_params(axis="x", integer=True)
    figure.savefig(png)


def parity(predictions: Mapping[str, tuple[Sequence[Labelled], Predictions]], png: str | Path) -> None:
    """Draws predicted against reference values of each set, and the errors under them, with MAE and RMSE of each set.

    `predictions`: {"train": (frames, predictions), "validation": …}. Energies per atom are relative to their mean.
    Raises FlashACEError for an empty set, frames without any label and a label without a prediction.
    """
    errors, points = {}, {}
    for name, (frames, predicted) in predictions.items():
        errors[name] = _errors(name, frames, predicted)
        points[name] = {label: _pairs_of(its, frames, predicted) for label, its in LABELS.items()}
    panels = [label for label in LABELS if any(points[name][label].size for name in points)]
    if not panels:
        raise FlashACEError(f"{', '.join(points)}: expected frames with labels to compare with, got none; name labelled data")
    figure = _figure(4.2 * len(panels), 5.8)
    grid = figure.add_gridspec(2, len(panels), height_ratios=(3, 1))
    for i, label in enumerate(panels):
        top = figure.add_subplot(grid[0, i])
        bottom = figure.add_subplot(grid[1, i], sharex=top)
        _parity_panel(top, bottom, LABELS[label], {name: points[name][label] for name in points}, errors)
    figure.savefig(png)


def write_predictions(path: str | Path, frames: Sequence[Labelled], predictions: Predictions) -> None:
    """Writes an extended XYZ file, packed where the name ends in .gz, .bz2 or .xz: every frame with all that it came with, and what was
    predicted for it.

    Added, where predicted, to `info`: `flashace_energy` (eV), `flashace_stress` (eV/Å³, Voigt: xx, yy, zz, yz, xz, xy) and
    `flashace_energy_uncertainty` (eV); to `arrays`: `flashace_forces` (eV/Å) and `flashace_energies_uncertainty` (eV); and those that a
    simulation writes too, `energies_uncertainty` (eV) and `forces_uncertainty` (eV/Å). The frames themselves are not changed.
    """
    images = []
    for frame, predicted in zip(frames, predictions, strict=True):
        atoms = _copy_with_results(frame.atoms)
        for name, label in LABELS.items():
            if predicted.get(name) is not None:
                value = label.plain(predicted[name])
                (atoms.arrays if label.per_atom else atoms.info)[f"flashace_{name}"] = value if value.shape else value.item()
        if predicted.get("energy_uncertainty") is not None:
            atoms.info["flashace_energy_uncertainty"] = float(predicted["energy_uncertainty"])
            for name in ("flashace_energies_uncertainty", "energies_uncertainty", "forces_uncertainty"):
                values = predicted.get(name.removeprefix("flashace_"))
                if values is not None:
                    atoms.arrays[name] = np.asarray(values, dtype=float)
        images.append(atoms)
    with whole_file(path) as aside, PACKED.get(Path(path).suffix, open)(aside, "wt", encoding="utf-8") as file:
        write(file, images, format="extxyz")


def check_name_of_predictions(path: str | Path) -> None:
    """Raises FlashACEError for a name that promises another format than the one that `write_predictions` has."""
    suffixes = [suffix for suffix in Path(path).suffixes if suffix not in (".gz", ".bz2", ".xz")]
    if suffixes and suffixes[-1] not in (".extxyz", ".xyz"):
        raise FlashACEError(
            f"{path}: expected a name that ends in .extxyz or .xyz, which is what predictions are written as, got {suffixes[-1]}; "
            f"write {Path(path).stem}.extxyz, and convert that with `ase convert`"
        )


def tensorboard_writer(folder: Path) -> "SummaryWriter":
    """A writer of event files. Raises FlashACEError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FlashACEError("tensorboard: the package is not installed; `pip install flashace[tensorboard]`, or leave it out") from error
    return SummaryWriter(folder)


def _pair(mae: float | None, rmse: float | None) -> str:
    return "–" if mae is None or rmse is None else f"{three_digits(mae)} / {three_digits(rmse)}"


def three_digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file that hold any number; NaN where a cell is empty."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}
    except (csv.Error, KeyError, TypeError, ValueError) as error:  # cells without a column come as a list
        raise FlashACEError(f"{path}: expected a table of numbers, got {error!r}; `flashace fit --resume` writes it anew") from error
    if not np.isfinite(columns.get("epoch", [np.nan])).all():
        raise FlashACEError(f"{path}: expected a column `epoch` and one row or more, got {len(rows)} rows; train first")
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in columns.items() if np.isfinite(values).any()}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def _style(axes: "Axes", title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK, which="both")
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def _log_scale(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    marks = range(1, 10) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=tuple(marks)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(axes: "Axes", epochs: np.ndarray, values: np.ndarray | None, color: str, line: str, label: str | None = None) -> None:
    known = epochs < 0 if values is None else values > 0  # NaN is not; zero has no place on a log scale
    if values is None or not known.any():
        return
    last = f"{label}  {three_digits(values[known][-1])}" if label else None
    marker = "o" if known.sum() < 20 else None
    axes.plot(epochs[known], values[known], line, color=color, linewidth=1.6, marker=marker, markersize=3, label=last)


def _errors(name: str, frames: Sequence[Labelled], predictions: Predictions) -> dict[str, Any]:
    if not frames:
        raise FlashACEError(f"{name}: expected at least one frame to draw, got none; leave this set out")
    table = ErrorTable()
    for frame, predicted in zip(frames, predictions, strict=True):
        table.add(frame, predicted)
    return table.rows()[-1]


def _pairs_of(label: Label, frames: Sequence[Labelled], predictions: Predictions) -> np.ndarray:
    """[2, P]: reference and predicted values in the units of the table; no columns where no frame has the label."""
    pairs = [np.empty((2, 0))]
    for frame, predicted in zip(frames, predictions, strict=True):
        known = frame.label(label.name)
        if known is None:
            continue
        pair = label.components([known, np.asarray(predicted[label.name])], len(frame.atoms))
        pairs.append(pair.reshape(2, -1))
    return np.concatenate(pairs, axis=1)


def _parity_panel(
    top: "Axes", bottom: "Axes", label: Label, points: Mapping[str, np.ndarray], errors: Mapping[str, Mapping[str, Any]]
) -> None:
    everything = np.concatenate(list(points.values()), axis=1)
    zero = everything[0].mean() if label.extensive else 0.0
    low, high = everything.min() - zero, everything.max() - zero
    pad = 0.05 * (high - low) or 1e-3
    top.plot((low - pad, high + pad), (low - pad, high + pad), color=INK, linewidth=0.8)
    top.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    bottom.axhline(0, color=INK, linewidth=0.8)
    for i, (name, pairs) in enumerate(points.items()):
        color = COLORS[i % len(COLORS)]
        chosen = np.random.default_rng(0).permutation(pairs.shape[1])[:MAX_POINTS]
        size, alpha = (14, 0.8) if len(chosen) < 1000 else (5, 0.35)
        reference, predicted = pairs[:, chosen] - zero
        for axes, values in ((top, predicted), (bottom, 1000 * (predicted - reference))):
            axes.scatter(reference, values, s=size, alpha=alpha, color=color, linewidths=0, zorder=2 + i)
        mae, rmse = errors[name][f"{label.name}_mae"], errors[name][f"{label.name}_rmse"]
        if rmse is not None:
            text = f"{name}: MAE {three_digits(mae)}, RMSE {three_digits(rmse)} {label.error_unit}"
            top.text(0.03, 0.97 - 0.055 * i, text, transform=top.transAxes, va="top", fontsize=8.5, color=color)
    title = f"{label.name.capitalize()} per atom, relative to the mean" if label.extensive else label.name.capitalize()
    _style(top, title, "", f"predicted, {label.size_unit}")
    _style(bottom, "", f"reference, {label.size_unit}", f"error, {label.error_unit}")
    top.tick_params(labelbottom=False)


def _copy_with_results(atoms: Atoms) -> Atoms:
    """A copy that keeps its calculator results; info and arrays of the same name, which a file cannot hold as well, are
    renamed to info_*."""
    copy = atoms.copy()
    results = dict(getattr(atoms.calc, "results", {}))
    for place in (copy.info, copy.arrays):
        for name in set(place) & set(results):
            place[f"info_{name}"] = place.pop(name)
    if results:
        copy.calc = SinglePointCalculator(copy, **results)
    return copy
