"""Training and validation frames in; how uncertain a model is of its energies, and how well that holds, out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from flashace.data.frames import LabelKeys, Labelled, content_hash, isolated_atom_energies
from flashace.data.shards import read_data
from flashace.data.split import split_of
from flashace.errors import FlashACEError
from flashace.potential.model import AttentionACE
from flashace.potential.uncertainty import MIN_FRAMES, Uncertainty, calibrate, calibrate_with_fitted
from flashace.structure.graph import Graph

MOST_STAND_INS = 200  # training frames that stand in for others, evenly drawn
Frames = tuple[Sequence[Labelled], Sequence[Graph]]  # and the graph of each


def estimate_uncertainty(model: AttentionACE, train: Frames, valid: Frames, before: Uncertainty | None = None) -> Uncertainty:
    """From the features of the training frames and the errors on validation frames; those without an energy do not count.

    Where there are fewer than MIN_FRAMES of the latter, training frames stand in for the missing ones, each as if it were left out
    (`calibrate_with_fitted`). `before` is what the model had that the fit started from: its frames count as fitted.
    Raises FlashACEError where nothing can be known: no frame has an energy, or none that differs from the predicted one.
    """
    D, device = model.num_features, model.embedding.device
    of_structures, of_atoms = torch.zeros(2, D, D, dtype=torch.float64, device=device)
    if before is not None:
        of_structures += before.energy.covariance.to(device)
        of_atoms += before.atoms.covariance.to(device)
    held_out = [(features, error) for _, features, error in last_layer(model, valid)]
    stand_ins: list[tuple[Tensor, float]] = []
    every = math.ceil(len(train[0]) / MOST_STAND_INS)
    for i, (_, features, error) in enumerate(last_layer(model, train)):
        per_atom = features.mean(0)  # as in the loss, which has energies per atom
        of_structures += torch.outer(per_atom, per_atom)
        of_atoms += features.T @ features
        if len(held_out) < MIN_FRAMES and i % every == 0:
            stand_ins.append((features, error))
    if not of_atoms.any():
        raise FlashACEError("uncertainty: expected training frames with energies and neighbours, got none")
    found = held_out + stand_ins
    errors = torch.tensor([error for _, error in found], dtype=torch.float64, device=device)
    sizes = torch.tensor([len(features) for features, _ in found], device=device)
    rows = torch.cat([features for features, _ in found])
    each = torch.arange(len(found), device=device)
    owner = each.repeat_interleave(sizes)
    sums = rows.new_zeros(len(found), D).index_add(0, owner, rows)
    if len(held_out) >= MIN_FRAMES:
        energy, weights = calibrate(of_structures, sums, each, errors), None
    else:
        n = len(held_out)
        energy, errors, weights = calibrate_with_fitted(of_structures, (sums[:n], errors[:n]), (sums[n:], errors[n:], sizes[n:]))
    atoms = calibrate(of_atoms, rows, owner, errors, weights)
    return Uncertainty(energy, atoms, frames=len(held_out), largest=atoms(rows).max().item(), left_out=len(stand_ins))


def calibration_sets(
    data: Sequence[str], valid: Sequence[str], keys: LabelKeys, provenance: Mapping[str, Any]
) -> tuple[Sequence[Labelled], Sequence[Labelled]]:
    """The frames that a model with this provenance was fitted to, and others: of `valid`, or those of `data` that the fit held out.

    Raises FlashACEError where `data` is not what the model was fitted to.
    """
    fitted = {"frames": 0, "sha256": "", **provenance.get("training_data", {})}
    train = isolated_atom_energies(read_data(data, keys)[0])[1]
    others: Sequence[Labelled] = []
    if 0 < fitted["frames"] < len(train):
        train, others = split_of(train, 1 - fitted["frames"] / len(train), provenance.get("seed", 0), fitted["sha256"])
    if content_hash(train) != fitted["sha256"]:
        raise FlashACEError(
            f"{', '.join(data)}: expected the {fitted['frames']} frames that the model was fitted to, with or without those that the fit "
            "held out, and found others; name the files of the fit in their order, and its keys"
        )
    return train, isolated_atom_energies(read_data(valid, keys, required=("energy",))[0])[1] if valid else others


def calibration_rows(frames: Sequence[Labelled], predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Predicted uncertainty against true errors, of frames with an energy: one row per config_type where there are several, and "all".

    A row has config_type and frames; rmse and uncertainty, the root mean squares of error and σ (meV/atom); z, the root mean square of
    error / σ; within_1 and within_2, the parts of the frames with an error below σ and 2 σ; and rank, Spearman's correlation of |error|
    and σ, both per atom (None for fewer than three frames). No rows where nothing was predicted or known.
    """
    known = [(f, p) for f, p in zip(frames, predictions, strict=True) if f.energy is not None and p.get("energy_uncertainty")]
    if not known:
        return []
    kinds = np.array([f.config_type for f, _ in known])
    errors, sigmas = 1e3 * np.array([((p["energy"] - f.energy) / len(f.atoms), p["energy_uncertainty"] / len(f.atoms)) for f, p in known]).T
    types = sorted(set(kinds.tolist())) if len(set(kinds.tolist())) > 1 else []
    rows = [_calibration_row(name, errors[kinds == name], sigmas[kinds == name]) for name in types]
    return [*rows, _calibration_row("all", errors, sigmas)]


def last_layer(model: AttentionACE, labelled: Frames) -> Iterator[tuple[Labelled, Tensor, float]]:
    """Each frame with an energy, the features [N, D] of its atoms in float64, and the error of its energy in eV."""
    frames, graphs = labelled
    for i, frame in enumerate(frames):
        if frame.energy is not None:
            graph = graphs[i]
            on_device = graph.with_edge_vec(graph.edge_vec.to(model.dtype)).to(model.embedding.device)
            with torch.no_grad():
                energies, features = model.with_features(on_device)
            yield frame, features.double(), energies.sum().item() - frame.energy


def _calibration_row(config_type: str, errors: np.ndarray, sigmas: np.ndarray) -> dict[str, Any]:
    z = errors / sigmas
    ranks = [rankdata(values) for values in (abs(errors), sigmas)]
    tells = len(z) > 2 and all(np.ptp(rank) > 0 for rank in ranks)
    return {
        "config_type": config_type,
        "frames": len(z),
        "rmse": _rms(errors),
        "uncertainty": _rms(sigmas),
        "z": _rms(z),
        "within_1": float((abs(z) < 1).mean()),
        "within_2": float((abs(z) < 2).mean()),
        "rank": float(np.corrcoef(ranks)[0, 1]) if tells else None,
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
