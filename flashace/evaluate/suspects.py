"""Labelled frames and what a fit predicts for them in; the few frames whose labels the fit contradicts most, with the reason, out.

How large errors are, the frames themselves say: two thirds of the frames of one kind are within σ, as the normal law has it. A frame is
suspicious where its error is more than three times as large as the largest of so many normal errors may be. The label may be wrong, or the
fit, of a frame that has no like: the reason says what was seen, not which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from flashace.data.frames import Labelled
from flashace.data.labels import LABELS, Label
from flashace.evaluate.report import three_digits, write_predictions

NAME = "suspects.extxyz"
MOST = 10  # that are named
FEWEST = 10  # frames of a kind, to know how large its errors are; kinds with less are judged together
CHANCE = 0.01  # that one of all frames of a kind has such an error, were the errors normal
MARGIN = 3.0  # and this times as large, since errors are not quite normal
EXPLAINED = 0.1  # of a label, squared, at most, that is left where another sign or unit explains it

Predicted = Mapping[str, tuple[Sequence[Labelled], Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class Suspect:
    """A frame, what the fit predicts for it, and how often its error has room in what is allowed (more than once)."""

    frame: Labelled
    prediction: Mapping[str, Any]
    part: str  # of the fit: train, validation
    times: float
    reason: str


def suspects(predicted: Predicted) -> list[Suspect]:
    """At most ten, the worst first, of {"train": (frames, predictions), …}; none where nothing stands out."""
    found = [suspect for part, (frames, predictions) in predicted.items() for suspect in _of_part(part, frames, predictions)]
    return sorted(found, key=lambda suspect: -suspect.times)[:MOST]


def write_suspects(path: Path, found: Sequence[Suspect]) -> None:
    """Extended XYZ of the frames with their labels, predictions (`flashace_…`), and in `info` `reason`, `origin`, `part` and `times`.

    Where there are none, there is no file, not even one of an earlier end of the fit.
    """
    if not found:
        path.unlink(missing_ok=True)
        return
    frames = []
    for suspect in found:
        atoms = suspect.frame.atoms.copy()
        atoms.calc = suspect.frame.atoms.calc
        told = {"reason": suspect.reason, "origin": str(suspect.frame.origin), "part": suspect.part, "times": round(suspect.times, 2)}
        atoms.info |= told
        frames.append(replace(suspect.frame, atoms=atoms))
    write_predictions(path, frames, [suspect.prediction for suspect in found])


def in_words(found: Sequence[Suspect], path: Path) -> str:
    """A line for the end of a fit."""
    if not found:
        return "suspects: none; no frame has a label that the fit contradicts far more than those of its kind"
    worst = found[0]
    number = f"{len(found)} frame{'' if len(found) == 1 else 's'}"
    return f"suspects: {number} with labels that the fit contradicts, in {path}; most of all {worst.frame.origin}: {worst.reason}"


def _of_part(part: str, frames: Sequence[Labelled], predictions: Sequence[Mapping[str, Any]]) -> list[Suspect]:
    reasons: dict[int, list[tuple[float, str]]] = {}
    for label in LABELS.values():
        sizes = {i: size for i, frame in enumerate(frames) if (size := _size(label, frame, predictions[i])) is not None}
        for members in _kinds({i: frames[i].config_type for i in sizes}):
            own = np.array([sizes[i] for i in members])
            sigma = float(np.quantile(own, 0.6827))
            bar = MARGIN * float(norm.isf(CHANCE / (2 * len(own)))) * sigma
            for i in (i for i in members if sizes[i] > bar > 0):
                reason = f"{_reason(label, frames[i], predictions[i])}; two thirds of {len(own)} frames are within {_number(label, sigma)}"
                reasons.setdefault(i, []).append((sizes[i] / bar, reason))
    found = []
    for i, each in reasons.items():
        each.sort(key=lambda one: -one[0])
        found.append(Suspect(frames[i], predictions[i], part, each[0][0], ". ".join(reason for _, reason in each)))
    return found


def _kinds(types: Mapping[int, str]) -> list[list[int]]:
    """The frames of each config_type, and together those of all that have few; without those that are too few even so."""
    of_type: dict[str, list[int]] = {}
    for i, name in types.items():
        of_type.setdefault(name, []).append(i)
    large = [members for members in of_type.values() if len(members) >= FEWEST]
    small = [i for members in of_type.values() if len(members) < FEWEST for i in members]
    return [members for members in (*large, small) if len(members) >= FEWEST]


def _errors(label: Label, frame: Labelled, prediction: Mapping[str, Any]) -> np.ndarray | None:
    """[R, C]: label less prediction, of each atom or of the structure; None where one of both is missing."""
    known, predicted = frame.label(label.name), prediction.get(label.name)
    if known is None or predicted is None:
        return None
    number = len(frame.atoms)
    off = label.components(known, number) - label.components(np.asarray(predicted, dtype=float), number)
    return np.asarray(off).reshape(number if label.per_atom else 1, -1)


def _size(label: Label, frame: Labelled, prediction: Mapping[str, Any]) -> float | None:
    """The error of the structure, or of that atom which has the largest."""
    off = _errors(label, frame, prediction)
    return None if off is None or not np.isfinite(off).all() else float(np.linalg.norm(off, axis=1).max())


def _reason(label: Label, frame: Labelled, prediction: Mapping[str, Any]) -> str:
    off = _errors(label, frame, prediction)
    assert off is not None
    size = np.linalg.norm(off, axis=1)
    if label.per_atom:
        atom = int(size.argmax())
        said = f"{label.name} of atom {atom} ({frame.atoms.symbols[atom]}) {_number(label, size[atom])} off the fit"
    elif label.rank == 0:
        said = f"{label.name} {_number(label, size[0])} {'above' if off[0, 0] > 0 else 'below'} the fit"
    else:
        said = f"{label.name} {_number(label, size[0])} off the fit"
    return said if label.rank == 0 else said + _as_if(label, frame, prediction)


def _as_if(label: Label, frame: Labelled, prediction: Mapping[str, Any]) -> str:
    """What would explain the label, where a factor does."""
    known, predicted = (np.asarray(values, dtype=float).ravel() for values in (frame.label(label.name), prediction[label.name]))
    factor = float(known @ predicted / max(predicted @ predicted, 1e-300))
    left = float(np.sum((known - factor * predicted) ** 2) / max(known @ known, 1e-300))
    if left > EXPLAINED or 0.8 < factor < 1.25:
        return ""
    return f", as if multiplied by {factor:.2g}"


def _number(label: Label, value: float) -> str:
    return f"{three_digits(1e3 * value)} {label.error_unit}"
