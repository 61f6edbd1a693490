"""Rows of `speed.py` in; Markdown tables and a picture out."""

import datetime
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

OURS = "FlashACE"
ATOMS = {"acac 15": 15, "Si 64": 64, "Si 512": 512, "water 192": 192, "Si 4096": 4096}
CLOCKS = {"cpu": "process CPU time", "wall": "wall time"}
ABOUT = """# Time and memory beside other potentials

Made by `benchmarks/speed.py` on {date}, {processor}. Versions: {versions}.
One step is energy and forces, in a crystal also stress, through the ASE calculator and with the neighbour list: float32, cutoff 5 Å,
random weights. The models took turns in several rounds. Times are medians of all steps with their quartiles in brackets and, after the dot,
the ratio to the fastest peer. Peak memory is that of the whole process, libraries included, while steps were measured. Dashes are
explained below the tables.

![Time per step over the number of atoms]({picture})"""


class Row(NamedTuple):
    """One model with one structure: seconds of each step and the bytes that the process held at most, or why there are none."""

    label: str
    system: str
    threads: int
    version: str = ""
    cpu: Sequence[float] = ()
    wall: Sequence[float] = ()
    peak: float = 0.0
    error: str = ""


def document(rows: Sequence[Row], notes: Sequence[str], picture: str) -> str:
    """Markdown with all tables, for each number of threads."""
    versions = sorted({row.version for row in rows if row.version})
    lines = [ABOUT.format(date=datetime.date.today(), processor=processor(), versions=", ".join(versions), picture=picture)]
    for threads in sorted({row.threads for row in rows}):
        lines += ["", f"## {threads} thread{'s' if threads > 1 else ''}", *tables([row for row in rows if row.threads == threads])]
    failures = [f"- {row.label}, {row.system}, {row.threads} thread(s): `{row.error}`" for row in rows if row.error]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), *failures]).rstrip() + "\n"


def tables(rows: Sequence[Row]) -> list[str]:
    """Those of one number of threads."""
    clock = main_clock(rows[0].threads)
    return [
        *table(f"{CLOCKS['cpu']}, ms", rows, lambda row: time_cell(row, rows, "cpu")),
        *table(f"{CLOCKS['wall']}, ms", rows, lambda row: time_cell(row, rows, "wall")),
        *table(f"{CLOCKS[clock]}, µs per atom", rows, lambda row: number(1e3 * median(row, clock) / ATOMS[row.system]), clock),
        *table("peak memory, MB", rows, lambda row: f"{row.peak / 1e6:,.0f}"),
    ]


def table(title: str, rows: Sequence[Row], cell: Callable[[Row], str], slope_of: str | None = None) -> list[str]:
    """A line per model and a column per structure; where a clock is given, also the slope of log time over log atoms for silicon."""
    columns = [system for system in ATOMS if any(row.system == system for row in rows)]
    heads = [title, *columns, *(["slope, Si"] if slope_of else [])]
    lines = ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for label in dict.fromkeys(row.label for row in rows):
        own = {row.system: row for row in rows if row.label == label}
        cells = [cell(own[system]) if system in own and not own[system].error else "–" for system in columns]
        lines.append(f"| {' | '.join([label, *cells, *([slope(list(own.values()), slope_of)] if slope_of else [])])} |")
    return lines


def time_cell(row: Row, rows: Sequence[Row], clock: str) -> str:
    """Median, quartiles and ratio to the fastest of the peers with the same structure."""
    low, high = (1e3 * float(np.quantile(getattr(row, clock), q)) for q in (0.25, 0.75))
    peers = [median(r, clock) for r in rows if r.system == row.system and not r.error and not r.label.startswith(OURS)]
    ratio = f" · {number(median(row, clock) / min(peers))}" if peers else ""
    return f"{number(median(row, clock))} ({number(low)}–{number(high)}){ratio}"


def slope(rows: Sequence[Row], clock: str) -> str:
    """d log time / d log atoms over the silicon crystals, by least squares; 1 is linear."""
    silicon = [row for row in rows if row.system.startswith("Si") and not row.error]
    atoms, times = [ATOMS[row.system] for row in silicon], [median(row, clock) for row in silicon]
    return f"{np.polyfit(np.log(atoms), np.log(times), 1)[0]:.2f}" if len(silicon) > 1 else "–"


def median(row: Row, clock: str) -> float:
    """Of all steps, in ms."""
    return 1e3 * float(np.median(getattr(row, clock)))


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main_clock(threads: int) -> str:
    """CPU time is what one thread costs on a busy machine; that of several threads counts also their waiting."""
    return "cpu" if threads == 1 else "wall"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time of a step over the number of atoms, a line per model through silicon, the other structures as hollow marks."""
    counts = sorted({row.threads for row in rows})
    figure, panels = plt.subplots(1, len(counts), figsize=(5 * len(counts) + 2, 5), sharey=True, squeeze=False, layout="constrained")
    labels = list(dict.fromkeys(row.label for row in rows))
    for threads, axes in zip(counts, panels[0], strict=True):
        clock = main_clock(threads)
        for k, label in enumerate(labels):
            own = [row for row in rows if (row.label, row.threads) == (label, threads) and not row.error]
            look = {"color": f"C{k % 10}", "marker": "so"[label.startswith(OURS)]}
            for silicon in (True, False):
                points = sorted((ATOMS[row.system], median(row, clock)) for row in own if row.system.startswith("Si") is silicon)
                style = {"label": label} if silicon else {"linestyle": "", "fillstyle": "none"}
                axes.plot([n for n, _ in points], [time for _, time in points], **look, **style)
        sizes = sorted({ATOMS[row.system] for row in rows})
        axes.set(xlabel="atoms (hollow: acac 15, water 192)", xscale="log", yscale="log", title=f"{threads} thread(s), {CLOCKS[clock]}")
        axes.set_xticks(sizes, sizes)
        axes.minorticks_off()
    panels[0, 0].set_ylabel("time per step, ms")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def processor() -> str:
    """The model of the CPU."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return next(iter(names), platform.processor())
