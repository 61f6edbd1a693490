"""`flashace label`: structures in, a teacher's labels out."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flashace.cli.shared import check_output
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from rich.progress import Progress

    from flashace.teach.labelling import Summary

TOLD = 60.0  # s between two lines about the progress where there is no terminal
REASONS = 10  # that are shown


@click.command()
@click.argument("structures", nargs=-1, required=True)
@click.option(
    "--teacher", required=True, help="emt, tblite, chgnet, sevennet, diep, flashace:MODEL, or module:Class of any ASE calculator."
)
@click.option("--teacher-arg", "arguments", multiple=True, help="name=value: a further argument of the calculator; as often as needed.")
@click.option("-o", "--output", required=True, type=click.Path(), help="Extended XYZ to append to; what it has is not made again.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes, each with a calculator and one thread.  [default: 1]")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Seconds for a structure.")
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), help="GB that a worker may take.")
@click.option("--max-force", default=100.0, show_default=True, type=click.FloatRange(min=0), help="eV/Å; beyond it, a label is put aside.")
@click.option("--scheduler", help="Address of a Dask cluster, whose workers label instead (pip install '.[dask]').")
def label(
    structures: tuple[str, ...],
    teacher: str,
    arguments: tuple[str, ...],
    output: str,
    workers: int | None,
    timeout: float,
    memory: float | None,
    max_force: float,
    scheduler: str | None,
) -> None:
    """Energy, forces and, of crystals, stress of STRUCTURES (any format that ASE reads, or shards) by a TEACHER, appended to OUTPUT.

    A run that was killed goes on when the same is typed again; so does one with more structures. OUTPUT keeps elements, positions, cell
    and config_type of a structure, where it was read (origin) and the teacher (source); labels and arrays that it came with stay behind.

    A structure whose calculation fails, is not finite, takes too long or too much memory, or has a force beyond --max-force, is put into
    OUTPUT's neighbor *.failed.extxyz, with its reason, and the rest goes on. Delete that file to have them tried again.

    Exit status 0 where all is done, even if some were put aside; 1 where none of STRUCTURES has a label; 130 after Ctrl-C.
    """
    from flashace.teach.labelling import label as label_structures
    from flashace.teach.teachers import teacher as teacher_of
    from flashace.teach.workers import Cluster, Workers
    from flashace.train.log import progress_bar

    aside = str(Path(output).with_name(f"{Path(output).stem}.failed.extxyz"))
    for path in (output, aside):
        check_output("--output", path, *structures)
    taught = teacher_of(teacher, arguments)
    if scheduler is None:
        crew: Workers | Cluster = Workers(taught, workers or 1, timeout, memory)
    elif workers or memory:
        raise FlashACEError("--scheduler: expected neither --workers nor --memory; tell them to `dask worker` (--nworkers, --memory-limit)")
    else:
        crew = Cluster(scheduler, taught, timeout)
    console.print(
        f"teacher    {taught.source}" + (f": {taught.known.what}; {taught.known.licence}" if taught.known else ""), soft_wrap=True
    )
    with progress_bar(console) as bar:
        shown = _Shown(bar)
        try:
            summary = label_structures(structures, crew, output, max_force, shown.plan, shown.progress)
        except KeyboardInterrupt:
            bar.stop()
            console.print(f"interrupted; {shown.done} labels or failures more are saved. The same command goes on.")
            raise SystemExit(130) from None
    _tell(summary, output, aside)
    if not (summary.already or summary.labelled):
        raise SystemExit(1)


class _Shown:
    """How far it is: a bar on a terminal, and elsewhere a line every minute."""

    def __init__(self, bar: "Progress") -> None:
        self.bar, self.done, self.left = bar, 0, 0
        self.task = bar.add_task("looking at the structures", total=None)
        self.started = self.told = time.monotonic()

    def plan(self, summary: "Summary", left: int) -> None:
        parts = [
            f"{summary.frames} given",
            f"{summary.twice} of them twice" if summary.twice else "",
            f"{summary.already} labelled before" if summary.already else "",
            f"{summary.aside_before} put aside before" if summary.aside_before else "",
            f"{left} to label",
        ]
        console.print(f"structures {', '.join(filter(None, parts))}", soft_wrap=True)
        if summary.had_labels:
            console.print(f"           {summary.had_labels} come with labels of their own, which are left behind", soft_wrap=True)
        if summary.charged:
            console.print(
                f"           {summary.charged} have charges or magnetic moments, which the teacher does not hear of: "
                "they are labelled as neutral and without",
                soft_wrap=True,
            )
        self.left, self.started = left, time.monotonic()
        self.bar.update(self.task, description="labelling", total=left)

    def progress(self, done: int) -> None:
        self.done, now = done, time.monotonic()
        self.bar.update(self.task, completed=done)
        if not console.is_terminal and now - self.told > TOLD:
            self.told = now
            console.print(f"{done} of {self.left}, {(now - self.started) / done * (self.left - done) / 60:.0f} min to go")


def _tell(summary: "Summary", output: str, aside: str) -> None:
    console.print(f"labelled   {summary.labelled} in this run, {summary.already} before: {output}", soft_wrap=True)
    number = summary.aside.total()
    if number or summary.aside_before:
        console.print(f"put aside  {number} in this run, {summary.aside_before} before: {aside}", soft_wrap=True)
        for reason, count in summary.aside.most_common(REASONS):
            console.print(f"           {count} × {reason}", soft_wrap=True)
        if len(summary.aside) > REASONS:
            console.print(f"           and {len(summary.aside) - REASONS} reasons more, in that file")
    if summary.apart:
        console.print(
            f"energies   are free energies, whose derivative the forces are; the teacher's `energy` is up to {1e3 * summary.apart:.3g} "
            "meV/atom off (free_energy_minus_energy in the file): electrons that are smeared, or else a fault of the teacher",
            soft_wrap=True,
        )
