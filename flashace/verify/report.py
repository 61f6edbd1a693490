"""Results of laws in, their table for the terminal out."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from flashace.verify.law import LawResult


def law_table(results: Sequence[LawResult]) -> Table:
    """The results for the terminal; numbers without a unit are relative."""
    verdicts = {True: Text("holds", "green"), False: Text("BROKEN", "bold red"), None: Text("not\napplicable", "dim")}
    table = Table("law and its meaning", "verdict", title="Laws", title_justify="left")
    for column in ("measured", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in results:
        text = Text.assemble((r.law, "bold"), f"\n{r.meaning}", (f"\n{r.detail}" if r.detail else "", "dim"))
        numbers = ["–" if x is None else f"{x:.1e}" for x in (r.measured, r.tolerance)]
        unit = "" if r.unit == "relative" else f"\n{r.unit}"
        table.add_row(text, verdicts[r.passed], numbers[0], numbers[1] + unit, end_section=True)
    return table
