"""One thing that a check of labels noticed: how bad it is, in which frames, and what mends it; and the table of many."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from flashace.data.origin import Origin

Severity = Literal["surely wrong", "suspicious", "note"]
ORDER: tuple[Severity, ...] = ("surely wrong", "suspicious", "note")
COLOR = {"surely wrong": "bold red", "suspicious": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Finding:
    """`what` names it in a few words, `detail` has the numbers, `mend` the flag or the script that mends it, "" where nothing has to be
    done. `frames` are origins; none where it concerns the data as a whole. `label` is the one that is wrong, ""
    where all of a frame is."""

    severity: Severity
    what: str
    detail: str
    frames: tuple[Origin, ...] = ()
    mend: str = ""
    label: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain types, with the number of frames beside their list."""
        return asdict(self) | {"frames": list(map(str, self.frames)), "count": len(self.frames)}


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; otherwise in the order in which they came."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.severity))


def finding_table(findings: Sequence[Finding]) -> Table:
    """A row per finding, numbered; what mends them stands below the table (`mends`), where it can be copied."""
    table = Table(title="What the labels show", title_justify="left", show_lines=True)
    for name in ("", "severity", "what", "frames", "detail"):
        table.add_column(name, justify="right" if name == "frames" else "left", overflow="fold")
    for i, f in enumerate(findings, 1):
        detail = f.detail + (f"\n{shorten(list_frames(f.frames))}" if f.frames else "")
        table.add_row(str(i), Text(f.severity, COLOR[f.severity]), f.what, str(len(f.frames) or ""), detail)
    return table


def mends(findings: Sequence[Finding]) -> str:
    """What mends each finding, by its number in the table."""
    return "\n".join(f"To mend {i}, {f.what}:\n{f.mend}\n" for i, f in enumerate(findings, 1) if f.mend)


def by_file(origins: Iterable[Origin]) -> dict[str, list[int]]:
    """The positions in each file, {"a.xyz": [3, …]}, in the order of the files."""
    places: dict[str, list[int]] = {}
    for origin in origins:
        places.setdefault(origin.file, []).append(origin.index)
    return {file: sorted(set(indices)) for file, indices in places.items()}


def list_frames(origins: Iterable[Origin]) -> str:
    """ "train.xyz: 3, 195–212; test.xyz: 7"."""
    return "; ".join(f"{file}: {', '.join(_spans(indices))}" for file, indices in by_file(origins).items())


def shorten(text: str, length: int = 240) -> str:
    """The text, or its beginning and that `--json` has all of it."""
    return text if len(text) <= length else text[: text.rindex(",", 0, length)] + ", … (--json lists all)"


def _spans(indices: Sequence[int]) -> list[str]:
    runs = [list(run) for _, run in groupby(enumerate(indices), key=lambda item: item[1] - item[0])]
    return [f"{run[0][1]}" if len(run) == 1 else f"{run[0][1]}–{run[-1][1]}" for run in runs]
