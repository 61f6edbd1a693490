"""Configuration in; frames, graphs, an untrained model and every decision that a fit makes by itself out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from flashace.calculator import choose_device, choose_dtype
from flashace.errors import FlashACEError
from flashace.graph import Graph, build_graph
from flashace.model import AttentionACE
from flashace.nn.readout import Readout
from flashace.train import statistics
from flashace.train.config import FitConfig
from flashace.train.data import LabelKeys, Labelled, LabelSummary, isolated_atom_energies, read_labelled, split
from flashace.train.metrics import UNITS

TYPICAL_STEPS = 40_000  # of a fit whose length is not given
MAX_FRAMES_TO_START, RIDGE = 500, 1e-4
TYPICAL_ATOMS = 75  # of a batch whose size is not given


@dataclass(frozen=True)
class Prepared:
    """All that training needs. `config` has every open choice filled in, so that it can be run again as it stands."""

    config: FitConfig
    labels: LabelSummary
    train: list[Labelled]
    valid: list[Labelled]
    references: statistics.ReferenceEnergies
    units: statistics.LossUnits
    device: torch.device
    dtype: torch.dtype

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The lower precision of mixed precision; None where it is not used."""
        used = self.config.train.use_amp and self.device.type == "cuda" and self.dtype == torch.float32
        return getattr(torch, self.config.train.amp_dtype) if used else None

    def decisions(self) -> list[tuple[str, str]]:
        """(what, decision) in the order in which they were made."""
        t, atoms = self.config.train, [len(frame.atoms) for frame in self.train]
        energies = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in self.references.values.items())
        share = f"the files {', '.join(t.valid)}" if t.valid else f"{t.valid_fraction:.0%} of the data, seed {t.seed}"
        length = f"{t.max_time:g} minutes" if t.epochs is None else f"{t.epochs} epochs"
        units = [f"{1e3 * getattr(self.units, name):.3g} {unit}" for name, unit in UNITS.items() if getattr(self.labels, name).used]
        length += f", at most {t.max_time:g} minutes" if t.epochs and t.max_time else ""
        batch = f"{t.batch_size} frames" + (f", {t.grad_accum_steps} batches per step" if t.grad_accum_steps > 1 else "")
        amp = f"{t.amp_dtype} for linear maps" if self.amp_dtype else "off"
        if t.use_amp and not self.amp_dtype:
            amp += f": use_amp has no effect on {self.device} in {t.dtype}"
        return [
            ("elements", ", ".join(self.references.values)),
            ("split", f"{len(self.train)} training and {len(self.valid)} validation frames ({share})"),
            ("size", f"{min(atoms)} to {max(atoms)} atoms per frame"),
            ("reference energies", f"{energies} eV, {self.references.origin}"),
            ("cutoff", f"{self.config.model.r_max:g} Å"),
            ("batch size", batch),
            ("length", length),
            ("loss units", ", ".join(units)),
            ("device, dtype", f"{self.device}, {t.dtype}; {torch.get_num_threads()} threads"),
            ("mixed precision", amp),
        ]


def prepare(config: FitConfig) -> Prepared:
    """Read the data and settle what the user left open. Raises FlashACEError for everything that cannot be fitted."""
    t = config.train
    device, dtype = choose_device(t.device), choose_dtype(t.dtype)
    if not t.data:
        raise FlashACEError("data: expected at least one file of labelled structures, got none; `flashace fit data.extxyz`")
    keys = LabelKeys(t.energy_key, t.forces_key, t.stress_key)
    frames, labels = read_labelled(t.data, keys)
    isolated, frames = isolated_atom_energies(frames)
    if t.valid:
        train, valid = frames, isolated_atom_energies(read_labelled(t.valid, keys)[0])[1]
    else:
        train, valid = split(frames, t.valid_fraction, t.seed)
    if not train or not valid:
        raise FlashACEError(f"expected training and validation frames, got {len(train)} and {len(valid)} (isolated atoms aside)")
    references = statistics.reference_energies([*train, *valid], *_given_energies(config, isolated))
    _same_elements(train, valid)
    num_atoms = float(np.mean([len(frame.atoms) for frame in train]))
    batch_size = t.batch_size or max(min(round(TYPICAL_ATOMS / num_atoms), len(train) // 10, 32), 2)
    epochs = t.epochs
    if epochs is None and t.max_time is None:
        epochs = min(max(round(TYPICAL_STEPS * batch_size * t.grad_accum_steps / len(train)), 10), 2000)
    settled = replace(
        t,
        batch_size=min(batch_size, len(train)),
        epochs=epochs,
    )
    units = statistics.loss_units(train)
    return Prepared(FitConfig(config.model, settled), labels, train, valid, references, units, device, dtype)


def build_graphs(frames: Sequence[Labelled], r_max: float, advance: Callable[[int], Any] = lambda done: None) -> list[Graph]:
    """One graph per frame; `advance` is called with 1 after each."""
    graphs = []
    for frame in frames:
        graphs.append(build_graph(frame.atoms, r_max))
        advance(1)
    return graphs


def make_model(prepared: Prepared, graphs: Sequence[Graph]) -> AttentionACE:
    """The untrained model; the seed of the configuration draws its weights and leaves torch's own random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(prepared.config.train.seed)
        model = AttentionACE(
            prepared.config.model,
            prepared.references.values,
            scale=prepared.units.forces,
            avg_num_neighbors=statistics.avg_num_neighbors(graphs),
            dtype=prepared.dtype,
        )
    return model.to(prepared.device)


def _given_energies(config: FitConfig, isolated: dict[str, float]) -> tuple[dict[str, float], str]:
    """Reference energies that the user gave, in one way only, and where they came from."""
    t = config.train
    given = {"isolated atoms in the data": isolated, "atomic_energies": t.atomic_energies or {}}
    if t.isolated_atoms:
        lone = [f for f in read_labelled(t.isolated_atoms, LabelKeys(t.energy_key), required=("energy",))[0] if len(f.atoms) == 1]
        given[t.isolated_atoms] = isolated_atom_energies([replace(f, config_type="isolated_atom") for f in lone])[0]
        if not given[t.isolated_atoms]:
            raise FlashACEError(f"{t.isolated_atoms}: expected frames with one atom and its energy, got none")
    found = {origin: energies for origin, energies in given.items() if energies}
    if t.atomic_energies and t.isolated_atoms:
        raise FlashACEError("`atomic_energies` and `isolated_atoms` contradict each other: give the reference energies in one way")
    for origin in (t.isolated_atoms, "atomic_energies", "isolated atoms in the data"):
        if origin in found:
            return found[origin], f"from {origin}"
    return {}, ""


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
    chosen = [(g, f) for g, f in zip(graphs, frames, strict=True) if f.energy is not None][:MAX_FRAMES_TO_START]
    features, targets = [], []
    states: list[torch.Tensor] = []
    linears = [readout.linear for readout in model.readouts if isinstance(readout, Readout)]
    hooks = [linear.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0])) for linear in linears]
    for linear in linears:
        linear.weight.data.zero_()
    with torch.no_grad():
        for graph, frame in chosen:
            states.clear()
            on_device = graph.with_edge_vec(graph.edge_vec.to(model.dtype)).to(model.embedding.device)
            missing = frame.energy - model(on_device).sum().item()
            element = model.element_index[on_device.numbers]
            n = element.shape[0]
            s = torch.cat(states, dim=-1).double()
            features.append((s[:n] - s[n:][element]).mean(0))
            targets.append(missing / n / model.scale)
    for hook in hooks:
        hook.remove()
    X, y = torch.stack(features).cpu(), torch.tensor(targets, dtype=torch.float64)
    gram = X @ X.T
    weights = X.T @ torch.linalg.solve(gram + RIDGE * gram.trace() / len(y) * torch.eye(len(y), dtype=torch.float64), y)
    for linear, weight in zip(linears, weights.split(model.config.hidden_dim), strict=True):
        linear.weight.data.copy_(weight.reshape_as(linear.weight))
