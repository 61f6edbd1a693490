"""Training and validation frames in; how uncertain a model is of its energies and forces, and how well that holds, out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from flashace.data.frames import LabelKeys, Labelled, content_hash, isolated_atom_energies
from flashace.data.shards import read_data
from flashace.data.split import split_of
from flashace.errors import FlashACEError
from flashace.potential.derivatives import predict
from flashace.potential.model import AttentionACE
from flashace.potential.uncertainty import MIN_FRAMES, ForceLaw, Uncertainty, calibrate, calibrate_forces, calibrate_with_fitted
from flashace.structure.graph import Graph

MOST_STAND_INS = 200  # training frames that stand in for others, evenly drawn
Frames = tuple[Sequence[Labelled], Sequence[Graph]]  # and the graph of each


def estimate_uncertainty(model: AttentionACE, train: Frames, valid: Frames, before: Uncertainty | None = None) -> Uncertainty:
    """From the features of the training frames and the errors on validation frames; those without an energy do not count.

    Where there are fewer than MIN_FRAMES of the latter, training frames stand in for the missing ones, each as if it were left out
    (`calibrate_with_fitted`, `calibrate_forces`). `before` is what the model had that the fit started from: its frames count as fitted.
    Raises FlashACEError where nothing can be known: no frame has an energy, or none that differs from the predicted one.
    """
    D, device = model.num_features, model.embedding.device
    of_structures, of_atoms = torch.zeros(2, D, D, dtype=torch.float64, device=device)
    if before is not None:
        of_structures += before.energy.covariance.to(device)
        of_atoms += before.atoms.covariance.to(device)
    held_out = [(features, error) for _, features, error in last_layer(model, valid)]
    forces = _force_errors(model, valid)
    stand_ins: list[tuple[Tensor, float]] = []
    every = math.ceil(len(train[0]) / MOST_STAND_INS)
    for i, (_, features, error) in enumerate(last_layer(model, train)):
        per_atom = features.mean(0)  # as in the loss, which has energies per atom
        of_structures += torch.outer(per_atom, per_atom)
        of_atoms += features.T @ features
        if len(held_out) < MIN_FRAMES and i % every == 0:
            stand_ins.append((features, error))
    fitted_forces = _force_errors(model, train, every) if len(forces) < MIN_FRAMES else []
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
    of_forces = calibrate_forces(of_atoms, _joined(forces, of_atoms), _joined(fitted_forces, of_atoms), len(forces))
    atoms = calibrate(of_atoms, rows, owner, errors, weights, None if of_forces is None else of_forces.ridge)
    law = None
    if of_forces is not None:
        law = ForceLaw(of_forces.scale / atoms.alpha**of_forces.exponent, of_forces.exponent, of_forces.largest)
    largest, largest_mean = atoms(rows).max().item(), atoms(sums / sizes.unsqueeze(1)).max().item()
    return Uncertainty(energy, atoms, len(held_out), largest, len(stand_ins), law, largest_mean)


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
    errors = [1e3 * np.array([[(p["energy"] - f.energy) / len(f.atoms)]]) for f, p in known]
    return _rows([f for f, _ in known], errors, [1e3 * np.array([p["energy_uncertainty"] / len(f.atoms)]) for f, p in known])


def force_calibration_rows(frames: Sequence[Labelled], predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same of forces, in meV/Å: rmse, z and the parts within σ and 2 σ are of components, rank is of the length of the error and the σ
    of each atom. Atoms alone, which have no force, do not count.
    """
    known = [(f, p) for f, p in zip(frames, predictions, strict=True) if f.forces is not None and p.get("forces_uncertainty") is not None]
    sigmas = [1e3 * np.asarray(p["forces_uncertainty"]) for _, p in known]
    errors = [1e3 * (p["forces"] - f.forces)[sigma > 0] for (f, p), sigma in zip(known, sigmas, strict=True)]
    return _rows([f for f, _ in known], errors, [sigma[sigma > 0] for sigma in sigmas])


def _rows(frames: Sequence[Labelled], errors: Sequence[np.ndarray], sigmas: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Of each frame: errors [R, components] and σ [R]."""
    types = sorted({f.config_type for f in frames})
    rows = []
    for name in [*(types if len(types) > 1 else []), None]:
        own = [i for i, f in enumerate(frames) if name is None or f.config_type == name]
        if sum(len(sigmas[i]) for i in own):
            error, sigma = (np.concatenate([values[i] for i in own]) for values in (errors, sigmas))
            rows.append({"config_type": "all" if name is None else name, "frames": len(own), **_calibration(error, sigma)})
    return rows


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


def _force_errors(model: AttentionACE, labelled: Frames, every: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Of each frame, or each so many-th, that has forces and an energy: features [N, D] and mean square error [N] of a component."""
    frames, graphs = labelled
    found = []
    for i in range(0, len(frames), every):
        frame = frames[i]
        if frame.energy is not None and frame.forces is not None:
            predicted = predict(model.with_features, graphs[i].to(model.embedding.device), model.dtype)
            errors = predicted.forces - torch.as_tensor(frame.forces, device=predicted.forces.device)
            found.append((cast(Tensor, predicted.features).double(), errors.square().mean(1)))
    return found


def _joined(found: Sequence[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Features [R, D] and squares [R] of all; like a covariance where there are none."""
    features, squares = zip((like[:0], like[:0, 0]), *found, strict=True)
    return torch.cat(features), torch.cat(squares)


def _calibration(errors: np.ndarray, sigmas: np.ndarray) -> dict[str, Any]:
    """Of errors [R, components] and σ [R]."""
    z = errors / sigmas[:, None]
    ranks = [rankdata(values) for values in (np.linalg.norm(errors, axis=1), sigmas)]
    tells = len(z) > 2 and all(np.ptp(rank) > 0 for rank in ranks)
    return {
        "rmse": _rms(errors),
        "uncertainty": _rms(sigmas),
        "z": _rms(z),
        "within_1": float((abs(z) < 1).mean()),
        "within_2": float((abs(z) < 2).mean()),
        "rank": float(np.corrcoef(ranks)[0, 1]) if tells else None,
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
