"""A kernel on trial: it is trusted when it has given what the plain path gives, for this model and on this machine."""

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from ase import Atoms
from torch import Tensor

from flashace.derivatives import Prediction, predict
from flashace.errors import FlashACEError
from flashace.graph import Graph, build_graph
from flashace.model import AttentionACE

TOLERANCE = 1e-3  # of the largest force, and of the largest energy that an atom has from its neighbours; rounding stays far below


class Trial(NamedTuple):
    """Largest errors at a few atoms, and what they are errors of: largest force, and largest energy of an atom beyond that it has alone."""

    energy_error: float  # eV
    force_error: float  # eV/Å
    energy: float  # eV
    force: float  # eV/Å


def check_kernel(model: AttentionACE, evaluate: Callable[[Graph], Prediction]) -> Trial:
    """How far energies and forces of a few atoms of all elements are from those of the plain path.

    Raises FlashACEError where that is more than rounding and splines explain.
    """
    graph = _cluster(model).to(model.embedding.device)
    plain, found = predict(model, graph, model.dtype), evaluate(graph)
    alone = model.atomic_energies[model.element_index[graph.numbers]]
    errors = _largest(found.energies - plain.energies), _largest(found.forces - plain.forces)
    trial = Trial(*errors, _largest(plain.energies - alone), _largest(plain.forces))
    for name, error, largest in (("energies", errors[0], trial.energy), ("forces", errors[1], trial.force)):
        if not error <= TOLERANCE * largest + 1e-6 and math.isfinite(largest):  # weights that are not finite are for others to name
            raise FlashACEError(
                f"kernel: expected the {name} of the plain path on {graph.edge_vec.device}, got some that differ by {error:.3g}, where the "
                f"largest is {largest:.3g} (eV and Å); use the plain path, and report this with the output of `flashace info`"
            )
    return trial


def _cluster(model: AttentionACE) -> Graph:
    """All elements, some twelve atoms or more on a rattled grid whose spacing is half the cutoff."""
    symbols = model.symbols * (-(-12 // len(model.symbols)))
    side = math.ceil(len(symbols) ** (1 / 3))
    grid = np.array(list(product(range(side), repeat=3)))[: len(symbols)]
    rattled = grid + np.random.default_rng(0).uniform(-0.05, 0.05, grid.shape)
    return build_graph(Atoms(symbols, rattled * 0.5 * model.config.r_max), model.config.r_max)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())
