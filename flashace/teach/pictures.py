"""Panels of a property in; a picture out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flashace.evaluate.report import COLORS, FAINT, INK
from flashace.files import whole_file
from flashace.teach.properties.property import Panel

IN_A_ROW = 4


def draw(panels: Sequence[Panel], png: str | Path) -> None:
    """One picture: the teacher's curves behind, the student's on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(IN_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        curves = {"teacher": (panel.teacher, COLORS[0], 3.0), "student": (panel.student, COLORS[1], 1.2)}
        for name, (values, color, width) in curves.items():
            if values is not None:
                line, size = ("-", width) if panel.joined else ("", 3 * width)
                lines = axes.plot(panel.x, np.asarray(values), line, color=color, linewidth=width, marker="o", markersize=size)
                lines[0].set_label(name)
        axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.set_xlabel(panel.xlabel, fontsize=9, color=INK)
        axes.set_ylabel(panel.ylabel, fontsize=9, color=INK)
        axes.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
        axes.grid(color=FAINT, linewidth=0.6, alpha=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    with whole_file(png) as aside:
        figure.savefig(aside, format="png")
