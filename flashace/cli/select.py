"""`flashace select`: a pool of structures and a model in, the frames worth labelling out."""

from typing import TYPE_CHECKING, Any

import click

from flashace.cli.shared import check_output, device_option, dtype_option
from flashace.cli.terminal import console
from flashace.errors import FlashACEError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ase import Atoms
    from rich.table import Table

    from flashace.teach.selection import Choice, Pool


@click.command()
@click.argument("pool", nargs=-1, required=True)
@click.option("--model", required=True, type=click.Path(), help="Model file or run folder, which says what is uncertain.")
@click.option("-n", "--num", required=True, type=click.IntRange(min=1), help="Frames to choose, at most.")
@click.option("-o", "--output", required=True, type=click.Path(), help="Extended XYZ for them.")
@click.option("--known", multiple=True, type=click.Path(), help="Frames with labels or on order, which MODEL was not fitted to.")
@click.option("--cut", type=click.FloatRange(min=0, min_open=True), help="Å: carve so much around the most uncertain atom out of each.")
@click.option("--max-force", default=100.0, show_default=True, type=click.FloatRange(min=0), help="eV/Å; frames beyond it are left out.")
@device_option
@dtype_option
def select(
    pool: tuple[str, ...],
    model: str,
    num: int,
    output: str,
    known: tuple[str, ...],
    cut: float | None,
    max_force: float,
    device: str,
    dtype: str,
) -> None:
    """The frames of POOL (trajectories and other files that ASE reads, or shards) whose labels would teach MODEL most.

    They are uncertain, and unlike each other and what MODEL was fitted to. Labels in POOL are neither needed nor kept. OUTPUT has the
    frames in the order of POOL.
    """
    from flashace.calculator import FlashACE
    from flashace.teach.selection import Selector, write_choice
    from flashace.train.log import progress_bar

    check_output("--output", output, model, *pool, *known)
    if not output.endswith((".extxyz", ".xyz")):
        raise FlashACEError(f"--output {output}: expected a name that ends in .extxyz, since that is what is written; correct it")
    selector = Selector(FlashACE(model, device=device, dtype=dtype), max_force, cut)
    with progress_bar(console) as bar:
        task = bar.add_task("looking at the pool", total=None)
        before: list[Atoms] = []
        ordered = selector.look(_kept(_structures(known), before), keep=False) if known else None
        found = selector.look(_structures(pool), advance=lambda: bar.advance(task))
    choice = selector.choose(found, num, ordered, before)
    for reason, number in found.left_out.items():
        console.print(f"{number} frames are left out: {reason}", soft_wrap=True)
    if not choice.chosen:
        raise FlashACEError(f"{', '.join(pool)}: expected frames to choose from, got none that differs from --known; name others")
    write_choice(output, choice)
    console.print(f"pool  {found.frames} frames with {found.atoms} atoms")
    console.print(_table(found, choice))
    _tell(found, choice, num, output)


def _structures(paths: tuple[str, ...]) -> "Iterator[Any]":
    from flashace.teach.labelling import read_structures

    yield from read_structures(paths)


def _kept(frames: "Iterator[Any]", where: "list[Atoms]") -> "Iterator[Any]":
    for atoms, origin in frames:
        where.append(atoms)
        yield atoms, origin


def _table(pool: "Pool", choice: "Choice") -> "Table":
    from rich.table import Table

    table = Table("uncertainty of an atom's energy", "meV", "", title="Root mean square over the pool", title_justify="left")
    table.columns[1].justify = table.columns[2].justify = "right"
    number = len(choice.chosen)
    for what, value in (
        ("largest of all", pool.largest),
        ("now", choice.before),
        (f"expected with these {number} labels", choice.after[-1]),
        (f"expected with {number} frames drawn by chance", choice.random),
    ):
        share = f"{value / choice.before:.0%}" if choice.before and value <= choice.before else ""
        table.add_row(what, f"{1e3 * value:.3g}", share)
    return table


def _tell(pool: "Pool", choice: "Choice", num: int, output: str) -> None:
    fallen = [choice.before**2 - after**2 for after in choice.after]
    half = next(n for n, fall in enumerate(fallen, 1) if fall >= 0.8 * fallen[-1])
    number = len(choice.chosen)
    if number > half:
        console.print(f"the first {half} of them do four fifths of it (`chosen` in the file is their rank)")
    if pool.not_kept:
        console.print(f"{pool.not_kept} frames, the least uncertain ones, could not be chosen: the pool is too large for the memory")
    if number < num:
        console.print(f"{num} were asked for, but no more than {number} differ from each other ({choice.alike} are nearly copies)")
    console.print("expected as far as the last layer of the model knows: see docs/active.md")
    carved = sum("carved" in candidate.atoms.info for candidate in choice.chosen)
    if carved:
        console.print(
            f"{carved} of them were carved out of larger ones; `carved` in the file says how, `intact` marks the atoms that feel no cut"
        )
    console.print(f"frames  {output}", soft_wrap=True)
