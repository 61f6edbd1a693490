"""What a fit has found in; metrics.csv, TensorBoard and lines for the console out."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flashace.data.frames import LabelSummary
from flashace.data.labels import LABELS
from flashace.data.statistics import LossUnits
from flashace.evaluate import report
from flashace.evaluate.metrics import UNITS
from flashace.files import whole_file
from flashace.train.course import Means

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What one validation leaves in the log."""

    epochs: float
    seconds: float  # of training
    learning_rate: float
    weights: Sequence[float]  # of the loss terms, now
    training: Means  # of the steps since the last one
    errors: Row  # on validation frames: a row of `ErrorTable`
    replay: Row = field(default_factory=dict)  # the same on old frames, where there are any

    def row(self, labels: LabelSummary, units: LossUnits) -> Row:
        """The columns of metrics.csv, errors in meV."""
        return {
            "epoch": round(self.epochs, 3),
            "seconds": round(self.seconds, 1),
            "learning_rate": self.learning_rate,
            "loss": sum(w * term for w, term in zip(self.weights, self.training.terms, strict=True)),
            **{
                f"train_{label}_rmse": 1e3 * units[label] * square**0.5 if labels.counts[label].used else None
                for label, square in zip(LABELS, self.training.squares, strict=True)
            },
            **{
                f"{part}_{name}": value
                for part, errors in (("valid", self.errors), ("replay", self.replay))
                for name, value in errors.items()
                if name not in ("config_type", "frames")
            },
        }

    def in_words(self, row: Row) -> str:
        """One line of text."""
        old = f"  replay: {_in_words(self.replay)}" if self.replay else ""
        return f"epoch {row['epoch']:g}  loss {row['loss']:.3g}  validation: {_in_words(self.errors)}{old}"


def _in_words(errors: Row) -> str:
    known = {label: errors[f"{label}_rmse"] for label in UNITS if errors[f"{label}_rmse"] is not None}
    return ", ".join(f"{label} {rmse:.3g} {UNITS[label]}" for label, rmse in known.items())


class Log:
    """The console, metrics.csv in a run folder, and TensorBoard where it is asked for."""

    def __init__(self, folder: Path, console: Console, tensorboard: bool) -> None:
        self.folder, self.console = folder, console
        self.rows: list[Row] = []  # of metrics.csv
        self.board = report.tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def say(self, sentence: str) -> None:
        """However long, on one line where the console is a file."""
        self.console.print(sentence, soft_wrap=True)

    def add(self, row: Row, steps: int) -> None:
        """Another row, after so many steps."""
        self.rows.append(row)
        self.write()
        if self.board is not None:
            for name, value in row.items():
                if value is not None:
                    self.board.add_scalar(name, value, steps)
            self.board.flush()

    def write(self) -> None:
        """metrics.csv, whole: after a restart it has the rows up to the checkpoint and no others. The first rank has all rows."""
        path = self.folder / "metrics.csv"
        if not self.rows:
            path.unlink(missing_ok=True)
            return
        columns = dict.fromkeys(name for row in self.rows for name in row)  # another version may have had others
        with whole_file(path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def show(self, text: str, progress: float, seconds: float) -> None:
        """A line about a validation with what is to come; a terminal has the progress bar instead."""
        if not self.console.is_terminal:
            ahead = seconds / 60 * (1 / max(progress, 1e-3) - 1)
            self.say(f"{progress:4.0%}  {ahead:3.0f} min to go  {text}")


def progress_bar(console: Console) -> Progress:
    """Shown on a terminal only, and gone when it is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
