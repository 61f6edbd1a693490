"""Configuration in; frames, graphs, an untrained model and every decision that a fit makes by itself out."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashace.calculator import choose_device, choose_dtype
from flashace.check.before_fit import Looked, look
from flashace.data import statistics
from flashace.data.frames import LabelKeys, Labelled, LabelSummary, frames_in_both, isolated_atom_energies, split, split_of
from flashace.data.lazy import chained
from flashace.data.shards import read_data
from flashace.errors import FlashACEError
from flashace.evaluate.metrics import UNITS
from flashace.nn.readout import Readout
from flashace.potential.derivatives import EdgeBudget
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import NO_FREE_ATOMS, bound_of, config_of, told_free_atoms
from flashace.structure.coordination import Coordination
from flashace.structure.graph import Graph, Part
from flashace.train.checkpoint import Start, checkpoints_in, read_start
from flashace.train.config import FitConfig, TrainConfig, load_config
from flashace.train.sparse import STRETCHED

TYPICAL_STEPS = 40_000  # of a fit whose length is not given
MAX_FRAMES_TO_START, RIDGE = 500, 1e-4
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
        units = [f"{1e3 * getattr(self.units, name):.3g} {unit}" for name, unit in UNITS.items() if getattr(self.labels, name).used]
        length += f", at most {t.max_time:g} minutes" if t.epochs and t.max_time else ""
        start = [] if self.start is None else [("start", self._start_in_words(self.start))]
        batch = f"{t.batch_size} frames" + (f", {t.grad_accum_steps} batches per step" if t.grad_accum_steps > 1 else "")
        amp = f"{t.amp_dtype} for linear maps" if self.amp_dtype else "off"
        if t.use_amp and not self.amp_dtype:
            amp += f": use_amp has no effect on {self.device} in {t.dtype}"
        return [
            *start,
            *([] if self.looked is None else [("check", self.looked.words())]),
            ("elements", ", ".join(self.references.values)),
            ("split", f"{len(self.train)} training and {len(self.valid)} validation frames ({share})"),
            ("size", f"{min(atoms)} to {max(atoms)} atoms per frame"),
            ("reference energies", f"{energies} eV, {self.references.origin}{'' if self.references.free_atoms else '. ' + NO_FREE_ATOMS}"),
            *self._low_density_in_words(),
            ("model", f"{t.size}: " + ", ".join(f"{name} {getattr(m, name)}" for name in SIZE_NAMES)),
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
        return [("low density", f"atoms {STRETCHED:g} Å beyond their bonds are taught as free atoms, with a weight of {weight:g}")]

    def _start_in_words(self, start: Start) -> str:
        t = self.config.train
        parts = {"optimizer": t.resume_load_optimizer, "schedule": t.resume_load_scheduler, "gradient scaler": t.resume_load_scaler}
        return f"{', '.join(['weights', *(name for name, loaded in parts.items() if loaded)])} of {start.path}"


def prepare(config: FitConfig, restart: Path | None = None, tell: Callable[[str], Any] = lambda message: None) -> Prepared:
    """Read the data and settle what the user left open. Raises FlashACEError for everything that cannot be fitted.

    `restart` is the run folder of an interrupted fit that goes on: all of its newest checkpoint comes back, where it has one.
    `tell` hears what the user should know.
    """
    config, start = _start(config, restart, tell)
    t = config.train
    device, dtype = choose_device(t.device), choose_dtype(t.dtype)
    if not t.data:
        raise FlashACEError("data: expected at least one file of labelled structures, got none; `flashace fit data.extxyz`")
    keys = LabelKeys(t.energy_key, t.forces_key, t.stress_key)
    frames, labels = read_data(t.data, keys)
    isolated, frames = isolated_atom_energies(frames)
    given = isolated_atom_energies(read_data(t.valid, keys)[0])[1] if t.valid else []
    looked = None
    if t.check == "leave_out" or (t.check != "off" and restart is None):
        looked = look(chained(frames, given), labels, t.check == "leave_out")
        frames, given = looked.without(frames), looked.without(given)
    if t.valid:
        train, valid = frames, given
        _check_apart(train, valid, t, tell)
    elif t.valid_fraction == 0:
        _check_without_validation(t)
        train, valid = frames, []
    elif start is not None and start.state is not None and restart is not None:
        train, valid = split_of(frames, t.valid_fraction, t.seed, start.state["schedule"]["order"]["training frames"])
    else:
        train, valid = split(frames, t.valid_fraction, t.seed)
    if not train or not (valid or t.valid_fraction == 0):
        raise FlashACEError(f"expected training and validation frames, got {len(train)} and {len(valid)} (isolated atoms aside)")
    _same_elements(train, valid)
    if start is not None:
        config = replace(config, model=replace(config.model, bounded=config_of(start.model).bounded))  # its weights mean nothing otherwise
        _check_start(start, config, statistics.elements_of(train))
    if start is not None and restart is not None:
        free_atoms = told_free_atoms(start.model.get("free_atoms"), start.reference_energies)
        references = statistics.ReferenceEnergies(start.model["atomic_energies"], start.reference_energies, free_atoms)
    else:
        references = _reference_energies(config, isolated, chained(train, valid), start)
    num_atoms = float(np.mean([len(frame.atoms) for frame in train]))
    batch_size = t.batch_size or max(min(round(TYPICAL_ATOMS / num_atoms), len(train) // 10, 32), 2)
    epochs = t.epochs
    if epochs is None and t.max_time is None:
        epochs = min(max(round(TYPICAL_STEPS * batch_size * t.grad_accum_steps / len(train)), 10), 2000)
    settled = replace(
        t,
        batch_size=min(batch_size, len(train)),
        epochs=epochs,
        precompute_neighbors=t.precompute_neighbors and isinstance(train, list) and isinstance(valid, list),
    )
    units = statistics.loss_units(train)
    return Prepared(FitConfig(config.model, settled), labels, train, valid, references, units, device, dtype, start, looked)


def _check_without_validation(t: TrainConfig) -> None:
    deciding = {"early_stopping": t.early_stopping is not None, "lr_scheduler plateau": t.lr_scheduler == "plateau"}
    asked = " and ".join(name for name, given in deciding.items() if given)
    if asked:
        raise FlashACEError(f"valid_fraction: 0 leaves no frames for validation, by which {asked} would decide; leave one out")


def _start(config: FitConfig, restart: Path | None, tell: Callable[[str], Any]) -> tuple[FitConfig, Start | None]:
    """What `resume_from` names, or what the run to go on with has; and the options with which it comes back."""
    t = config.train
    if restart is not None and checkpoints_in(restart / t.checkpoint_dir):
        t = replace(t, resume_load_optimizer=True, resume_load_scheduler=True, resume_load_scaler=True)
        return replace(config, train=t), read_start(restart / t.checkpoint_dir, tell)
    if restart is not None:
        tell(f"{restart}: no checkpoint yet, so this fit starts from the beginning")
    return config, None if t.resume_from is None else read_start(_checkpoint_place(Path(t.resume_from)), tell)


def _checkpoint_place(path: Path) -> Path:
    """For a run folder, the folder of its checkpoints, or its model where these were deleted."""
    if not (path / "config.yaml").is_file():
        return path
    folder = path / load_config(path / "config.yaml", {}).train.checkpoint_dir
    return folder if checkpoints_in(folder) else path / "model.pt"


def _check_start(start: Start, config: FitConfig, elements: list[str]) -> None:
    theirs, ours = asdict(config_of(start.model)), asdict(config.model)
    other = [f"{name} {theirs.get(name)} there and {value} here" for name, value in ours.items() if theirs.get(name) != value]
    if list(start.model["atomic_energies"]) != elements:
        other.append(f"elements {', '.join(start.model['atomic_energies'])} there and {', '.join(elements)} here")
    if other:
        raise FlashACEError(f"{start.path}: expected a checkpoint of the model to be fitted, got {'; '.join(other)}")


def make_model(prepared: Prepared, graphs: Sequence[Graph]) -> AttentionACE:
    """The model that training starts with, without the energies of `start_readouts`; a fit that resumes has the weights of its checkpoint.

    The seed of the configuration draws the others, and torch's own random state is left alone.
    Raises FlashACEError where no atom has a neighbour.
    """
    if not any(graph.edge_vec.shape[0] for graph in graphs):
        raise FlashACEError(
            f"r_max={prepared.config.model.r_max:g} Å: no atom of the training frames has a neighbour within it; raise --r-max"
        )
    start = prepared.start
    c = prepared.config.model
    # None of a model that does not know its own
    before = {} if start is None else start.model.get("shortest_distances")
    counted = {} if start is None else start.model.get("coordination")
    bound = statistics.energy_bound(prepared.train, prepared.references.values)
    elements = list(prepared.references.values)
    found = statistics.neighbour_statistics(graphs, elements, c.r_max, c.envelope_exponent, before or {}, counted or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(prepared.config.train.seed)
        model = AttentionACE(
            c,
            prepared.references.values,
            scale=prepared.units.forces if start is None else start.model["scale"],
            avg_num_neighbors=found.average if start is None else start.model["avg_num_neighbors"],
            dtype=prepared.dtype,
            shortest_distances=None if before is None else found.shortest,
            energy_bound=bound if start is None else max(bound, bound_of(start.model)),
            free_atoms=prepared.references.free_atoms,
        )
    if counted is not None:
        model.coordination = Coordination(found.coordination, model.symbols)
    if start is not None:
        model.load_state_dict(start.weights, strict=True)
    return model.to(prepared.device)


def _reference_energies(
    config: FitConfig, isolated: dict[str, float], frames: Sequence[Labelled], start: Start | None
) -> statistics.ReferenceEnergies:
    """E0 in the one way that holds; two ways that say different things are an error, and no way at all means least squares."""
    t = config.train
    ways: dict[str, dict[str, float]] = {}
    if start is not None and t.use_checkpoint_energy_shift:
        ways[f"{start.path} (use_checkpoint_energy_shift)"] = start.model["atomic_energies"]
    if t.energy_shift_per_atom is not None:
        ways["energy_shift_per_atom"] = dict.fromkeys(statistics.elements_of(frames), t.energy_shift_per_atom)
    if t.atomic_energies:
        ways["atomic_energies"] = t.atomic_energies
    if t.isolated_atoms:
        ways[t.isolated_atoms] = _energies_of_file(t.isolated_atoms, t.energy_key)
    if t.solve_atomic_energies:
        ways["solve_atomic_energies"] = {}
    elif isolated:
        ways["isolated atoms in the data"] = isolated
    first, *others = ways or {"": {}}
    for other in others:
        _same_energies(first, ways[first], other, ways[other])
    found = statistics.reference_energies(frames, ways.get(first, {}), f"from {first}")
    if not isolated and not t.isolated_atoms and start is not None and t.use_checkpoint_energy_shift:
        return replace(found, free_atoms=told_free_atoms(start.model.get("free_atoms"), start.reference_energies))
    return found if t.energy_shift_per_atom is None or isolated or t.isolated_atoms else replace(found, free_atoms=False)


def _same_energies(one: str, energies: dict[str, float], other: str, other_energies: dict[str, float]) -> None:
    tolerance = 1e-4  # eV; the same numbers, printed with fewer digits
    mend = "give the reference energies in one way"
    if one.endswith("(use_checkpoint_energy_shift)"):
        mend = (
            f"to take those of `{other}`, to which the model then adapts, say --no-use-checkpoint-energy-shift "
            f"(use_checkpoint_energy_shift: false); to keep those of the model, leave out `{other}`"
        )
    if not energies or not other_energies:
        raise FlashACEError(f"`{one}` and `{other}` contradict each other: {mend}")
    for symbol in energies.keys() & other_energies.keys():
        if abs(energies[symbol] - other_energies[symbol]) > tolerance:
            raise FlashACEError(
                f"`{one}` and `{other}` contradict each other: {energies[symbol]} and {other_energies[symbol]} eV for {symbol}; {mend}"
            )


def _energies_of_file(path: str, energy_key: str | None) -> dict[str, float]:
    lone = [f for f in read_data(path, LabelKeys(energy_key), required=("energy",))[0] if len(f.atoms) == 1]
    if not lone:
        raise FlashACEError(f"{path}: expected frames with one atom and its energy, got none")
    return isolated_atom_energies([replace(f, config_type="isolated_atom") for f in lone])[0]


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


def start_readouts(model: AttentionACE, graphs: Sequence[Graph], frames: Sequence[Labelled]) -> None:
    """Let the linear readouts of the untrained network meet the energies of the training frames as well as they can (ridge regression).

    With true isolated-atom energies as reference, frames are bound by several eV per atom: the fit would spend its first epochs on that
    constant, with gradients far larger than any that follow.
    """
    known = ((i, len(f.atoms), f.energy) for i, f in enumerate(frames) if f.energy is not None)
    chosen = list(islice(known, MAX_FRAMES_TO_START))
    features, targets = [], []
    states: list[torch.Tensor] = []
    linears = [readout.linear for readout in model.readouts if isinstance(readout, Readout)]
    hooks = [linear.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0])) for linear in linears]
    for linear in linears:
        linear.weight.data.zero_()
    budget = EdgeBudget.of(model.embedding.device)

    def energy_and_features(part: Part) -> torch.Tensor:
        states.clear()
        energies = model(part.graph)
        n, s = energies.shape[0], torch.cat(states, dim=-1).double()
        element = model.element_index[part.graph.numbers[:n]]
        return torch.cat([energies.sum().unsqueeze(0), (s[:n] - s[n:][element]).sum(0)])

    with torch.no_grad():
        for i, n, energy in chosen:
            graph = graphs[i]
            on_device = graph.with_edge_vec(graph.edge_vec.to(model.dtype)).to(model.embedding.device)
            total = torch.stack([found for _, found in budget.each_part(on_device, energy_and_features)]).sum(0)
            features.append(total[1:] / n)
            targets.append((energy - total[0].item()) / n / model.scale)
    for hook in hooks:
        hook.remove()
    if not any(feature.any() for feature in features):
        return
    X, y = torch.stack(features).cpu(), torch.tensor(targets, dtype=torch.float64)
    gram = X @ X.T
    weights = X.T @ torch.linalg.solve(gram + RIDGE * gram.trace() / len(y) * torch.eye(len(y), dtype=torch.float64), y)
    for linear, weight in zip(linears, weights.split(model.config.hidden_dim), strict=True):
        linear.weight.data.copy_(weight.reshape_as(linear.weight))
