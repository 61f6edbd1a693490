"""Frames of a teacher in; a model that has learned them, in a run folder of its own, out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from flashace.data.extxyz import read_extxyz
from flashace.train.checkpoint import checkpoints_in
from flashace.train.clock import Clock
from flashace.train.config import FitConfig, load_config
from flashace.train.loop import fit
from flashace.train.prepare import prepare

ATOMS = 720_000  # that a fit looks at where no time is given: 16 epochs of 3,000 small molecules, or 28 of 400 cells of silicon
FEWEST_EPOCHS, MOST_EPOCHS = 8, 200
VALID = 0.05  # of a teacher's frames, which are many


def learn(
    data: Sequence[Path],
    like: FitConfig,
    folder: Path,
    console: Console,
    minutes: float | None = None,
    start: Path | None = None,
    epochs: int | None = None,
) -> Path | None:
    """model.pt of `folder`, fitted to the frames in `data`; None where Ctrl-C or SIGTERM came first, with everything saved.

    An interrupted one goes on with the `minutes` that it began with, of which it has spent some.

    The shape of the model, seed, precision and device are those of `like`; data, labels, reference energies and length are not. `start` is
    a model to go on from. The length is `minutes`, or else `epochs`, or what suits the number of atoms. What is there is not made twice: a
    whole fit is taken as it is.
    """
    model = folder / "model.pt"
    if model.exists():
        return model
    goes_on = bool(checkpoints_in(folder / "checkpoints"))
    if goes_on:
        minutes = load_config(folder / "config.yaml", {}).train.max_time
    if minutes is None and epochs is None:
        epochs = epochs_for(sum(len(atoms) for path in data for atoms in read_extxyz(path)))
    prepared = prepare(_options(data, like, epochs, minutes, start), folder if goes_on else None, console.print)
    ended = fit(prepared, folder, console, resume=goes_on, overwrite=not goes_on, started=Clock.now())
    return model if ended else None


def epochs_for(num_atoms: int) -> int:
    """The length of a fit to so many atoms whose length is not given: a student's, and one that starts from a student."""
    return min(max(round(ATOMS / num_atoms), FEWEST_EPOCHS), MOST_EPOCHS)


def _options(data: Sequence[Path], like: FitConfig, epochs: int | None, minutes: float | None, start: Path | None) -> FitConfig:
    train = replace(
        like.train,
        data=tuple(map(str, data)),
        valid=(),
        valid_fraction=VALID,
        isolated_atoms=None,
        atomic_energies=None,
        energy_shift_per_atom=None,
        solve_atomic_energies=False,
        energy_key=None,
        forces_key=None,
        stress_key=None,
        check="off",  # what a teacher has said is not to be doubted: its floor was measured
        output=None,
        epochs=epochs if minutes is None else None,
        max_time=minutes,
        batch_size=None,
        checkpoint_dir="checkpoints",
        checkpoint_interval=1,
        resume_from=None,
        pretrained=None if start is None else str(start),
        replay=(),
        use_checkpoint_energy_shift=True,
        early_stopping=None,
    )
    return replace(like, train=train)
