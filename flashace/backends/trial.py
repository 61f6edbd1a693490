"""A kernel on trial: it is trusted when it has given what the plain path gives, for this model and on this machine."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
from ase import Atoms
from torch import Tensor

from flashace.errors import FlashACEError
from flashace.potential.derivatives import Prediction, predict
from flashace.potential.model import AttentionACE
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph
from flashace.surroundings import exact_products

TOLERANCE = 1e-3  # of the largest force, and of the largest energy that an atom has from its neighbours; rounding stays far below


def check_kernel(model: AttentionACE, evaluate: Callable[[Graph], Prediction]) -> None:
    """Raises FlashACEError where energies or forces of a few atoms of all elements are not those of the plain path."""
    graph = _cluster(model).to(model.embedding.device)
    with exact_products():
        plain, found = predict(model, graph, model.dtype), evaluate(graph)
    alone = model.atomic_energies[model.element_index[graph.numbers]]
    for name, error, largest in (
        ("energies", _largest(found.energies - plain.energies), _largest(plain.energies - alone)),
        ("forces", _largest(found.forces - plain.forces), _largest(plain.forces)),
    ):
        if not error <= TOLERANCE * largest + 1e-6 and math.isfinite(largest):  # weights that are not finite are for others to name
            raise FlashACEError(
                f"kernel: expected the {name} of the plain path on {graph.edge_vec.device}, got some that differ by {error:.3g}, where the "
                f"largest is {largest:.3g} (eV and Å); use the plain path, and report this with the output of `flashace info`"
            )


def _cluster(model: AttentionACE) -> Graph:
    """All elements, some twelve atoms or more on a rattled grid whose spacing is half the cutoff."""
    symbols = model.symbols * (-(-12 // len(model.symbols)))
    side = math.ceil(len(symbols) ** (1 / 3))
    grid = np.array(list(product(range(side), repeat=3)))[: len(symbols)]
    rattled = grid + np.random.default_rng(0).uniform(-0.05, 0.05, grid.shape)
    return build_graph(Atoms(symbols, rattled * 0.5 * model.config.r_max), model.config.r_max)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())
