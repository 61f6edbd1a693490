"""Files of older labels in; frames to mix into the fit of a pretrained model, with the zero of energy of its data, out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flashace.data import statistics
from flashace.data.frames import LabelKeys, Labelled, isolated_atom_energies
from flashace.data.labels import LABELS
from flashace.data.shards import read_data
from flashace.data.sources import NO_KEY
from flashace.data.split import split
from flashace.errors import FlashACEError
from flashace.train.checkpoint import Start
from flashace.train.config import TrainConfig
from flashace.train.pretrained import zero_of

MOST_VALIDATED = 100  # of the old frames, at each validation
Shifts = dict[str, dict[str, float]]  # source -> element -> eV that its frames got for each atom


@dataclass(frozen=True)
class Replay:
    """Old frames to train with and to validate with; `shifts` took them to the zero of energy of the new ones."""

    train: list[Labelled] = field(default_factory=list)
    valid: list[Labelled] = field(default_factory=list)
    shifts: Shifts = field(default_factory=dict)

    def in_words(self, drawn: int) -> str:
        """`drawn`: how many are in an epoch."""
        shifts = (
            f"{source}: " + ", ".join(f"{symbol} {energy:+.4f}" for symbol, energy in its.items()) for source, its in self.shifts.items()
        )
        held_out = f", {len(self.valid)} others are validated" if self.valid else ""
        return f"{drawn} of {len(self.train)} old frames in each epoch, drawn anew{held_out}; energies shifted by (eV) {'; '.join(shifts)}"


def source_of(frame: Labelled) -> str:
    """Of its labels: what its `info["source"]` says, or the name of its file."""
    return str(frame.atoms.info.get("source") or frame.origin.file)


def by_source(frames: Sequence[Labelled]) -> dict[str, list[int]]:
    """The indices of the frames of each source."""
    found: dict[str, list[int]] = {}
    for i, frame in enumerate(frames):
        found.setdefault(source_of(frame), []).append(i)
    return found


def drawn_in_an_epoch(t: TrainConfig, num_new: int) -> int:
    """How many old frames go with so many new ones."""
    return round(num_new * t.replay_fraction / (1 - t.replay_fraction)) if t.replay else 0


def read_replay(t: TrainConfig, start: Start, new: Sequence[Labelled], shifts: Mapping[str, Mapping[str, float]] | None) -> Replay:
    """The frames of the option `replay`. Each source has a zero of energy of its own: the reference energies with which the model to
    start from has its frames right (`zero_of`). Those of the `new` frames take their place.

    `shifts` are those of an interrupted fit. Raises FlashACEError for elements that neither the model nor the new data has.
    """
    if not t.replay:
        return Replay()
    frames = _read(t)
    unknown = set(statistics.elements_of(frames)) - start.model["atomic_energies"].keys()
    if unknown:
        raise FlashACEError(
            f"replay: {', '.join(t.replay)}: expected elements of the model or of the data, got {', '.join(sorted(unknown))} too; "
            "leave out the frames with them"
        )
    sources = by_source(frames)
    if shifts is None:
        zero = zero_of(start, new).values
        shifts = {source: _shift(zero, start, [frames[i] for i in its]) for source, its in sources.items()}
    if shifts.keys() != sources.keys():
        raise FlashACEError(
            f"replay: expected the sources of the interrupted fit, {', '.join(shifts)}, got {', '.join(sources)}; bring the files back"
        )
    shifted = [_shifted(frame, shifts[source_of(frame)]) for frame in frames]
    fraction = min(t.valid_fraction, MOST_VALIDATED / len(shifted))
    train, valid = split(shifted, fraction, t.seed) if fraction > 0 and len(shifted) > 1 else (shifted, [])
    return Replay(list(train), list(valid), {source: dict(its) for source, its in shifts.items()})


def _read(t: TrainConfig) -> list[Labelled]:
    """Labels are found as in a file without options; those that the fit leaves out are left out here too."""
    keys = LabelKeys(**{label: NO_KEY for label in LABELS if getattr(t, f"{label}_key") == NO_KEY})
    frames = [frame for file in t.replay for frame in isolated_atom_energies(read_data(file, keys)[0])[1]]
    if not frames:
        raise FlashACEError(f"replay: {', '.join(t.replay)}: expected labelled structures, got isolated atoms alone; name others")
    return frames


def _shift(zero: Mapping[str, float], start: Start, frames: Sequence[Labelled]) -> dict[str, float]:
    own = zero_of(start, frames).values
    return {symbol: zero[symbol] - own[symbol] for symbol in statistics.elements_of(frames)}


def _shifted(frame: Labelled, shift: Mapping[str, float]) -> Labelled:
    if frame.energy is None:
        return frame
    return replace(frame, energy=frame.energy + sum(shift[symbol] for symbol in frame.atoms.symbols))
