"""A structure and what a model says of it in; warnings and errors out, where nobody should rely on that."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.data import chemical_symbols

from flashace.errors import (
    CoordinationWarning,
    FreeAtomsWarning,
    PrecisionWarning,
    ShortDistanceWarning,
    UncertaintyWarning,
    UnfamiliarWarning,
)
from flashace.potential.model import AttentionACE
from flashace.structure.coordination import count_neighbours
from flashace.structure.differences import tiny_step
from flashace.structure.graph import Graph

CLEARLY_SHORTER = 0.95  # of the shortest distance in training; a shade below it is no news, and the one warning would be spent on it
UNLIKE = 3.0  # times what the mean atom of any frame in the calibration had; ordinary frames reach 2
ENERGY = {"energy", "free_energy"}


@contextmanager
def on_purpose() -> Iterator[None]:
    """Where somebody leaves the data on purpose, nobody is warned of it."""
    with warnings.catch_warnings():
        for known in (ShortDistanceWarning, CoordinationWarning, FreeAtomsWarning, UnfamiliarWarning):
            warnings.simplefilter("ignore", known)
        yield


class Guards:
    """Of one calculator, which warns once of each thing. They travel to other processes with it, and so hold nothing of the model's."""

    def __init__(self, model: AttentionACE) -> None:
        self.energy_of: Atoms | None = None  # the last structure, where its energy alone was asked for
        self._species, self._shortest = (table.cpu().numpy().copy() for table in (model.element_index, model.shortest))
        self._warned: set[type[Warning]] = set()

    def distances(self, model: AttentionACE, graph: Graph) -> None:
        """Once; and never for a model file that does not tell the distances of its training data."""
        if ShortDistanceWarning in self._warned or not len(graph.edge_vec):
            return
        i, j = graph.edge_index.numpy()
        species, vec = self._species[graph.numbers.numpy()], graph.edge_vec.numpy()
        shortest = self._shortest[species[i], species[j]]
        squares = np.einsum("ec,ec->e", vec, vec)
        shorter = np.flatnonzero(squares < (CLEARLY_SHORTER * shortest) ** 2)
        if not len(shorter):
            return
        closest = shorter[(squares[shorter] / shortest[shorter] ** 2).argmin()]
        distance, known = float(squares[closest]) ** 0.5, float(shortest[closest])
        a, b = sorted(graph.edge_index[:, closest].tolist())
        names = "-".join(chemical_symbols[z] for z in graph.numbers[[a, b]].tolist())
        seen = f"{known:.3f} Å is the shortest distance of such a pair"
        if known >= model.config.r_max:
            seen = f"no such pair is closer than {model.config.r_max:g} Å (r_max)"
        self._warn(
            ShortDistanceWarning,
            f"{names}: atoms {a} and {b} are {distance:.3f} Å apart; in the training data {seen}. Energy and forces are a guess here: look "
            "whether the structure is meant to be like this, or add such frames to the training data (this calculator warns once)",
        )

    def coordination(self, model: AttentionACE, graph: Graph, stops: bool) -> None:
        """Warns once of an atom with far fewer or far more neighbours than in training; where `stops`, it is an error each time.

        A model file that does not tell the range of its training data knows of none.
        """
        known = model.coordination
        if known is None or (CoordinationWarning in self._warned and not stops):
            return
        i, j = graph.edge_index.numpy()
        species, vec, c = self._species[graph.numbers.numpy()], graph.edge_vec.numpy(), model.config
        squares = np.einsum("ec,ec->e", vec, vec)
        numbers = count_neighbours(i, species[j], squares, len(species), len(known.least), c.r_max, c.envelope_exponent)
        outside = known.far_outside(numbers, species)
        if not len(outside):
            return
        found = known.farthest(outside[0], numbers[outside[0]], species[outside[0]])
        centre, neighbour = model.symbols[species[found.atom]], model.symbols[found.neighbour]
        message = (
            f"{len(outside)} of {len(species)} atoms have far fewer or far more neighbours than any in the training data, most of all atom "
            f"{found.atom} ({centre}): {found.number:.2f} neighbours {neighbour}, counted by the envelope, and {found.least:.2f} to "
            f"{found.most:.2f} in training. Energy and forces are a guess here: look whether the structure is meant to be like this, or "
            "add such frames to the training data"
        )
        if stops:
            raise CalculationFailed(f"stop_uncertainty: {message}")
        self._warn(CoordinationWarning, f"{message} (this calculator warns once)")

    def certain(self, energies: np.ndarray, thresholds: Mapping[str, float | None]) -> None:
        """Uncertainties of the energies of atoms [N] in eV, against `warn_uncertainty` and `stop_uncertainty`."""
        for name in ("stop_uncertainty", "warn_uncertainty"):
            threshold = thresholds[name]
            above = [] if threshold is None else np.flatnonzero(~(energies <= threshold)).tolist()  # NaN, too
            if not above:
                continue
            message = (
                f"{name}: {len(above)} of {len(energies)} atoms have energies uncertain by more than {threshold:g} eV: "
                f"atoms {above[:10]}{'…' if len(above) > 10 else ''}, most of all {energies.argmax()} ({energies.max():.3g} eV). Their "
                "neighbourhoods are unlike those that the model was fitted to: label this structure and add it to the data"
            )
            if name == "stop_uncertainty":
                raise CalculationFailed(message)
            self._warn(UncertaintyWarning, message)

    def familiar(self, mean: float, largest: float | None, stops: bool) -> None:
        """Warns once of a structure that is unlike the training as a whole, by σ of its mean atom and the largest in the calibration (eV);
        where `stops`, it is an error each time. A model file of older versions does not know the latter.
        """
        if largest is None or mean <= UNLIKE * largest:
            return
        message = (
            "this structure is unlike the training data as a whole: the energy of its mean atom is "
            f"{mean / largest:.1f} times as uncertain as in any frame of the calibration ({UNLIKE:g} times is far). Energy and forces are "
            "a guess here: look whether the structure is meant to be like this, or add such frames to the training data"
        )
        if stops:
            raise CalculationFailed(f"stop_uncertainty: {message}")
        self._warn(UnfamiliarWarning, f"{message} (this calculator warns once)")

    def precision(self, model: AttentionACE, atoms: Atoms, properties: Sequence[str]) -> None:
        """Once, where the energy alone is asked for, twice in a row, of structures a tiny step apart. Dynamics asks for forces too."""
        if PrecisionWarning in self._warned or model.dtype != torch.float32:
            return
        before, self.energy_of = self.energy_of, atoms if set(properties) <= ENERGY else None
        step = None if before is None or self.energy_of is None else tiny_step(before, atoms)
        if step is not None:
            self._warn(
                PrecisionWarning,
                f"dtype: float32 gives energies to a few 1e-6 eV, and the last two are of structures that differ by {step}. If their "
                'difference matters take dtype="float64", larger steps, get_hessian, or differences of forces and stress '
                "(docs/precision.md; this calculator warns once)",
            )

    def _warn(self, kind: type[Warning], message: str) -> None:
        if kind not in self._warned:
            warnings.warn(message, kind, stacklevel=3)
            self._warned.add(kind)  # not where the user has made an error of it


def check_finite(results: dict[str, Any], graph: Graph) -> None:
    """Raises CalculationFailed for results that are not finite."""
    broken = [name for name, value in results.items() if not np.isfinite(value).all()]
    if broken:
        per_atom = results.get("energies", next(iter(results.values())))  # energies: forces spread the NaN to all neighbours
        atoms = np.flatnonzero(~np.isfinite(per_atom).reshape(len(graph.numbers), -1).all(axis=1))
        distances = graph.edge_vec.norm(dim=1)
        shortest = f"{distances.min():.3g} Å" if len(distances) else "none"
        raise CalculationFailed(
            f"{', '.join(broken)}: expected finite numbers, got NaN or infinity "
            f"(first atoms {atoms[:5].tolist()}; shortest distance {shortest}). "
            "The structure is outside what a model can describe: look for atoms on top of each other, or a time step that is too long"
        )
