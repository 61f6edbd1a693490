"""Predictions and labels of frames in; mean absolute and root mean square errors per config_type, per source and over all out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flashace.data.frames import Labelled
from flashace.data.labels import LABELS, Label
from flashace.errors import FlashACEError

MOST_SOURCES = 20  # more of them are no sources of labels, but names of frames
UNITS = {name: label.error_unit for name, label in LABELS.items()}


class ErrorTable:
    """Errors of each label, component by component (`Label.components`): of energy per atom (meV/atom), of force components (meV/Å) and of
    the six stress components (meV/Å³).

    A frame counts once in the energy, three times per atom in the forces and six times in the stress; a label that it
    does not have is not counted.
    """

    def __init__(self) -> None:
        self._all = _Group()
        self._by_type: dict[str, _Group] = {}
        self._by_source: dict[str, _Group] = {}

    def add(self, labelled: Labelled, predicted: Mapping[str, Any]) -> None:
        """Counts one frame, of which this was predicted: energy (eV, total), forces [N, 3] (eV/Å), stress [3, 3] (eV/Å³).

        Raises FlashACEError where a label has no prediction or one of another shape.
        """
        errors = {}
        for name, label in LABELS.items():
            known = labelled.label(name)
            if known is not None:
                errors[name] = 1000 * _error(label, labelled, np.asarray(known), predicted.get(name))
        groups = [self._all, self._by_type.setdefault(labelled.config_type, _Group())]
        source = str(labelled.atoms.info.get("source", ""))
        if source in self._by_source or len(self._by_source) <= MOST_SOURCES:  # of many names, not all are kept
            groups.append(self._by_source.setdefault(source, _Group()))
        for group in groups:
            group.add(errors)

    def rows(self) -> list[dict[str, Any]]:
        """One row per config_type, where there are several; one per `source` of the frames' info, where there are several; last, "all".

        A row has config_type, frames and, of each label, energy_mae, energy_rmse and so on; an error is None where no frame has that label.
        """
        types = sorted(self._by_type) if len(self._by_type) > 1 else []
        sources = sorted(self._by_source) if 1 < len(self._by_source) <= MOST_SOURCES else []
        of_sources = [self._by_source[name].row(f"source: {name or '(none)'}") for name in sources]
        return [*(self._by_type[name].row(name) for name in types), *of_sources, self._all.row("all")]


@dataclass
class _Group:
    frames: int = 0
    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    absolute: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LABELS, 0.0))
    squared: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LABELS, 0.0))

    def add(self, errors: dict[str, np.ndarray]) -> None:
        self.frames += 1
        for label, error in errors.items():
            self.count[label] += error.size
            self.absolute[label] += float(np.abs(error).sum())
            self.squared[label] += float(np.square(error).sum())

    def row(self, config_type: str) -> dict[str, Any]:
        row: dict[str, Any] = {"config_type": config_type, "frames": self.frames}
        for label, count in self.count.items():
            row[f"{label}_mae"] = self.absolute[label] / count if count else None
            row[f"{label}_rmse"] = (self.squared[label] / count) ** 0.5 if count else None
        return row


def _error(label: Label, labelled: Labelled, known: np.ndarray, predicted: Any) -> np.ndarray:
    got = None if predicted is None else np.asarray(predicted, dtype=float)
    if got is None or got.shape != known.shape:
        came = "no prediction" if got is None else f"shape {got.shape}"
        raise FlashACEError(
            f"{labelled.origin}: {label.name}: expected a prediction of shape {known.shape}, got {came}; "
            "evaluate every label that the frame has"
        )
    return label.components(got - known, len(labelled.atoms))
