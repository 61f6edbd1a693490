"""Configuration in; frames, graphs, an untrained model and every decision that a fit makes by itself out."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flashace.calculator import choose_device, choose_dtype
from flashace.check.before_fit import Looked, look
from flashace.data import statistics
from flashace.data.frames import LabelKeys, Labelled, LabelSummary, isolated_atom_energies
from flashace.data.labels import LABELS
from flashace.data.lazy import chained
from flashace.data.shards import read_data
from flashace.data.split import frames_in_both, split, split_of
from flashace.errors import FlashACEError
from flashace.evaluate.metrics import UNITS
from flashace.potential.model_file import NO_FREE_ATOMS, config_of, told_free_atoms
from flashace.train.checkpoint import Start, checkpoints_in, read_start
from flashace.train.config import FitConfig, TrainConfig, load_config
from flashace.train.pretrained import start_for, take_shape, weights_of_end
from flashace.train.references import reference_energies
from flashace.train.replay import Replay, drawn_in_an_epoch, read_replay
from flashace.train.sparse import STRETCHED, least_distances

TYPICAL_STEPS, TO_FINISH = 40_000, 2_000  # of a fit whose length is not given, and of one that finishes a pretrained model
SIZE_NAMES = "num_layers", "l_max", "correlation", "hidden_dim", "num_channels"
ENOUGH_TO_CHOOSE = 10  # validation frames by which earlier weights may be taken instead of the last
TYPICAL_ATOMS = 75  # of a batch whose size is not given


@dataclass(frozen=True)
class Prepared:
    """All that training needs. `config` has every open choice filled in, so that it can be run again as it stands."""

    config: FitConfig
    labels: LabelSummary
    train: Sequence[Labelled]
    valid: Sequence[Labelled]
    references: statistics.ReferenceEnergies
    units: statistics.LossUnits
    device: torch.device
    dtype: torch.dtype
    start: Start | None = None
    looked: Looked | None = None  # at the labels
    replay: Replay = field(default_factory=Replay)

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The lower precision of mixed precision; None where it is not used."""
        used = self.config.train.use_amp and self.device.type == "cuda" and self.dtype == torch.float32
        return getattr(torch, self.config.train.amp_dtype) if used else None

    def decisions(self) -> list[tuple[str, str]]:
        """(what, decision) in the order in which they were made."""
        t, m, atoms = self.config.train, self.config.model, [len(frame.atoms) for frame in self.train]
        energies = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in self.references.values.items())
        share = f"the files {', '.join(t.valid)}" if t.valid else f"{t.valid_fraction:.0%} of each kind of frames, seed {t.seed}"
        if 0 < len(self.valid) < ENOUGH_TO_CHOOSE:
            share += "; too few to choose weights by, which are those of the end then; valid_fraction: 0 fits all frames"
        length = f"{t.max_time:g} minutes" if t.epochs is None else f"{t.epochs} epochs"
        units = [f"{1e3 * self.units[name]:.3g} {unit}" for name, unit in UNITS.items() if self.labels.counts[name].used]
        length += f", at most {t.max_time:g} minutes" if t.epochs and t.max_time else ""
        start = [] if self.start is None else [("start", self._start_in_words(self.start))]
        batch = f"{t.batch_size} frames" + (f", {t.grad_accum_steps} batches per step" if t.grad_accum_steps > 1 else "")
        shape = t.size if t.pretrained is None else f"that of {t.pretrained}"
        amp = f"{t.amp_dtype} for linear maps" if self.amp_dtype else "off"
        if t.use_amp and not self.amp_dtype:
            amp += f": use_amp has no effect on {self.device} in {t.dtype}"
        return [
            *start,
            *([] if self.looked is None else [("check", self.looked.words())]),
            ("elements", ", ".join(self.references.values)),
            ("split", f"{len(self.train)} training and {len(self.valid)} validation frames ({share})"),
            *([("replay", self.replay.in_words(drawn_in_an_epoch(t, len(self.train))))] if self.replay.train else []),
            ("size", f"{min(atoms)} to {max(atoms)} atoms per frame"),
            ("reference energies", f"{energies} eV, {self.references.origin}{'' if self.references.free_atoms else '. ' + NO_FREE_ATOMS}"),
            *self._low_density_in_words(),
            ("model", f"{shape}: " + ", ".join(f"{name} {getattr(m, name)}" for name in SIZE_NAMES)),
            ("cutoff", f"{m.r_max:g} Å"),
            ("batch size", batch),
            ("neighbour lists", "built once" if t.precompute_neighbors else "built again for every batch"),
            ("length", length),
            ("loss units", ", ".join(units)),
            ("device, dtype", f"{self.device}, {t.dtype}; {torch.get_num_threads()} threads"),
            ("mixed precision", amp),
        ]

    def _low_density_in_words(self) -> list[tuple[str, str]]:
        weight = self.config.train.free_atoms_weight
        if not (self.references.free_atoms and weight):
            return []
        symbols, r_max = list(self.references.values), self.config.model.r_max
        nearest = least_distances(symbols).min(axis=1)
        lonely = [symbol for symbol, near in zip(symbols, nearest, strict=True) if near >= r_max]
        if len(lonely) == len(symbols):
            return [("low density", f"not taught: within r_max, no two elements have room for {STRETCHED:g} Å beyond their bonds")]
        but = f", but for {', '.join(lonely)}, which have no room within r_max" if lonely else ""
        return [("low density", f"atoms {STRETCHED:g} Å beyond their bonds are taught as free atoms, with a weight of {weight:g}{but}")]

    def _start_in_words(self, start: Start) -> str:
        t = self.config.train
        if t.pretrained is not None and start.state is None:
            return f"pretrained: {start.path}{start.told}"
        parts = {"optimizer": t.resume_load_optimizer, "schedule": t.resume_load_scheduler, "gradient scaler": t.resume_load_scaler}
        return f"{', '.join(['weights', *(name for name, loaded in parts.items() if loaded)])} of {start.path}"


def prepare(config: FitConfig, restart: Path | None = None, tell: Callable[[str], Any] = lambda message: None) -> Prepared:
    """Read the data and settle what the user left open. Raises FlashACEError for everything that cannot be fitted.

    `restart` is the run folder of an interrupted fit that goes on: all of its newest checkpoint comes back, where it has one.
    `tell` hears what the user should know.
    """
    config, start, goes_on = _start(config, restart, tell)
    t = config.train
    device, dtype = choose_device(t.device), choose_dtype(t.dtype)
    data = _read(t, look_at_labels=t.check == "leave_out" or (t.check != "off" and restart is None))
    resumed = start if goes_on else None  # with its own frames and reference energies
    train, valid = _sets(data, t, resumed, tell)
    if start is not None and t.pretrained is not None and resumed is None:
        start, references = start_for(start, t, data.isolated, chained(train, valid))
        replay = read_replay(t, start, chained(train, valid), None)
    else:
        if start is not None:
            config = replace(config, model=replace(config.model, bounded=config_of(start.model).bounded))  # or its weights mean nothing
            _check_start(start, config, statistics.elements_of(train))
        references = _references(t, data, chained(train, valid), start, resumed)
        replay = Replay() if resumed is None else read_replay(t, resumed, [], (resumed.state or {}).get("replay", {}))
    known = frames_in_both(replay.train, valid)
    if known:
        tell(
            f"replay: {len(known)} of {len(valid)} validation frames are among the old frames too, {known[0]} the first: "
            "with the same labels there, their errors tell nothing about others"
        )
    return Prepared(
        config=FitConfig(config.model, _settled(t, train, valid)),
        labels=data.labels,
        train=train,
        valid=valid,
        references=references,
        units=statistics.loss_units(train),
        device=device,
        dtype=dtype,
        start=start,
        looked=data.looked,
        replay=replay,
    )


class _Data(NamedTuple):
    """What the files have."""

    frames: Sequence[Labelled]
    given: Sequence[Labelled]  # for validation, in files of their own
    labels: LabelSummary
    isolated: dict[str, float]  # eV, of the atoms alone among `frames`
    looked: Looked | None


def _read(t: TrainConfig, look_at_labels: bool) -> _Data:
    if not t.data:
        raise FlashACEError("data: expected at least one file of labelled structures, got none; `flashace fit data.extxyz`")
    keys = LabelKeys(**{label: getattr(t, f"{label}_key") for label in LABELS})
    frames, labels = read_data(t.data, keys)
    isolated, frames = isolated_atom_energies(frames)
    given = isolated_atom_energies(read_data(t.valid, keys)[0])[1] if t.valid else []
    looked = None
    if look_at_labels:
        looked = look(chained(frames, given), labels, t.check == "leave_out", t.max_time)
        frames, given = looked.without(frames), looked.without(given)
    return _Data(frames, given, labels, isolated, looked)


def _sets(data: _Data, t: TrainConfig, resumed: Start | None, tell: Callable[[str], Any]) -> tuple[Sequence[Labelled], Sequence[Labelled]]:
    """The frames to fit and those to validate with."""
    train, valid = data.frames, data.given
    if t.valid:
        _check_apart(train, valid, t, tell)
    elif t.valid_fraction == 0:
        _check_without_validation(t)
    elif resumed is not None and resumed.state is not None:
        train, valid = split_of(train, t.valid_fraction, t.seed, resumed.state["schedule"]["order"]["training frames"])
    else:
        train, valid = split(train, t.valid_fraction, t.seed)
    if not train or not (valid or t.valid_fraction == 0):
        raise FlashACEError(f"expected training and validation frames, got {len(train)} and {len(valid)} (isolated atoms aside)")
    _same_elements(train, valid)
    return train, valid


def _references(
    t: TrainConfig, data: _Data, frames: Sequence[Labelled], start: Start | None, resumed: Start | None
) -> statistics.ReferenceEnergies:
    if resumed is None:
        return reference_energies(t, data.isolated, frames, start)
    free_atoms = told_free_atoms(resumed.model.get("free_atoms"), resumed.reference_energies)
    return statistics.ReferenceEnergies(resumed.model["atomic_energies"], resumed.reference_energies, free_atoms)


def _settled(t: TrainConfig, train: Sequence[Labelled], valid: Sequence[Labelled]) -> TrainConfig:
    """The options with sizes and length filled in, where they were left open."""
    num_atoms = float(np.mean([len(frame.atoms) for frame in train]))
    batch_size = t.batch_size or max(min(round(TYPICAL_ATOMS / num_atoms), len(train) // 10, 32), 2)
    epochs = t.epochs
    if epochs is None and t.max_time is None:
        frames = len(train) + drawn_in_an_epoch(t, len(train))
        steps = TYPICAL_STEPS if t.pretrained is None else TO_FINISH
        epochs = min(max(round(steps * batch_size * t.grad_accum_steps / frames), 10), 2000)
    return replace(
        t,
        batch_size=min(batch_size, len(train)),
        epochs=epochs,
        precompute_neighbors=t.precompute_neighbors and isinstance(train, list) and isinstance(valid, list),
    )


def _check_without_validation(t: TrainConfig) -> None:
    deciding = {"early_stopping": t.early_stopping is not None, "lr_scheduler plateau": t.lr_scheduler == "plateau"}
    asked = " and ".join(name for name, given in deciding.items() if given)
    if asked:
        raise FlashACEError(f"valid_fraction: 0 leaves no frames for validation, by which {asked} would decide; leave one out")


def _start(config: FitConfig, restart: Path | None, tell: Callable[[str], Any]) -> tuple[FitConfig, Start | None, bool]:
    """What `pretrained` or `resume_from` names, or what the run to go on with has, with the options with which that comes back; and
    whether it is the latter."""
    t = config.train
    if restart is not None and checkpoints_in(restart / t.checkpoint_dir):
        t = replace(t, resume_load_optimizer=True, resume_load_scheduler=True, resume_load_scaler=True)
        return replace(config, train=t), read_start(restart / t.checkpoint_dir, tell), True
    if restart is not None:
        tell(f"{restart}: no checkpoint yet, so this fit starts from the beginning")
    if t.pretrained is not None:
        path, model = Path(t.pretrained), Path(t.pretrained) / "model.pt"
        start = weights_of_end(read_start(model if model.is_file() else _checkpoint_place(path), tell))
        return take_shape(config, start), start, False
    return config, None if t.resume_from is None else read_start(_checkpoint_place(Path(t.resume_from)), tell), False


def _checkpoint_place(path: Path) -> Path:
    """For a run folder, the folder of its checkpoints, or its model where these were deleted."""
    if not (path / "config.yaml").is_file():
        return path
    folder = path / load_config(path / "config.yaml", {}).train.checkpoint_dir
    return folder if checkpoints_in(folder) else path / "model.pt"


def _check_start(start: Start, config: FitConfig, elements: list[str]) -> None:
    theirs, ours = asdict(config_of(start.model)), asdict(config.model)
    other = [f"{name} {theirs.get(name)} there and {value} here" for name, value in ours.items() if theirs.get(name) != value]
    if list(start.model["atomic_energies"]) != elements and config.train.pretrained is None:  # which keeps elements that the data lacks
        other.append(f"elements {', '.join(start.model['atomic_energies'])} there and {', '.join(elements)} here")
    if other:
        raise FlashACEError(f"{start.path}: expected a checkpoint of the model to be fitted, got {'; '.join(other)}")


def _check_apart(train: Sequence[Labelled], valid: Sequence[Labelled], t: TrainConfig, tell: Callable[[str], Any]) -> None:
    """Frames that are fitted validate nothing: raises FlashACEError where all of them are; tells where some are."""
    both = frames_in_both(train, valid)
    same_shards = not isinstance(valid, list) and Path(t.data[0]).resolve() == Path(t.valid[0]).resolve()
    if same_shards or len(both) == len(valid) > 0:
        raise FlashACEError(
            f"{', '.join(t.valid)}: expected frames to validate with, got frames that are all fitted too; leave out --valid, "
            "so that a part of the data is held out, or say --valid-fraction 0 to fit all frames"
        )
    if both:
        tell(f"{len(both)} of {len(valid)} validation frames are fitted too, {both[0]} the first: their errors tell nothing about others")


def _same_elements(train: Sequence[Labelled], valid: Sequence[Labelled]) -> None:
    unseen = set(statistics.elements_of(valid)) - set(statistics.elements_of(train))
    if unseen:
        raise FlashACEError(
            f"elements: {', '.join(sorted(unseen))} occur in the validation frames only, so nothing could be learned about them; "
            "add training frames with them, or choose another --seed"
        )
