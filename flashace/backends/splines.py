"""Model in; the edge functions of its layers as splines that are fine enough out. Every kernel takes its edge functions from here."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from flashace.errors import FlashACEError
from flashace.nn.edge_functions import tabulate
from flashace.nn.layer import Layer
from flashace.potential.model import TRUSTED, AttentionACE

INTERVALS = 128, 256, 512, 1024  # one after the other; twice as many have errors that are 64 times smaller
LARGEST_ERROR = 1e-7  # of the largest value of a layer's edge functions
DEGREE = 5  # so many coefficients more than intervals (`tabulate`)
MOST_MEMORY = 1e9  # bytes; some 28 elements with the default sizes


class Splines(NamedTuple):
    """Of all layers, with the same number of intervals."""

    tables: list[Tensor]  # as by `tabulate`
    intervals: int
    error: float  # in units of the largest value of a layer's edge functions


def splines_of(model: AttentionACE) -> Splines:
    """Fine enough for forces to some 10⁻⁶ of the largest (docs/model.md).

    Raises FlashACEError where they would not fit into the memory: too many elements, or curves too sharp to be followed.
    """
    c, layers = model.config, [cast(Layer, layer) for layer in model.layers]
    width, pairs = sum(layers[0].edge_functions.sizes), len(model.e0) ** 2
    # where the network looks (`never_closer`); without ZBL everywhere, and nobody knows what below a tenth of the cutoff
    looks = 0.95 * TRUSTED * model.shortest * c.zbl
    least = torch.where(looks > 0, looks, 0.1 * c.r_max)
    for intervals in INTERVALS:
        size = pairs * (intervals + DEGREE) * 2 * width * c.num_layers * model.embedding.element_size()
        if size > MOST_MEMORY:
            raise FlashACEError(
                f"kernel: the splines of {pairs} pairs of elements with {intervals} intervals would take {size / 1e9:.1f} GB, more than "
                f"{MOST_MEMORY / 1e9:g}; use the plain path, or a model of fewer elements or smoother radial functions"
            )
        curves = [(layer.edge_functions, model.radial_basis, c.r_max, c.envelope_exponent, least) for layer in layers]
        found = [tabulate(*layer, intervals) for layer in curves]
        worst = max(error for _, error in found)
        if not worst > LARGEST_ERROR:  # weights that are not finite are for others to name
            return Splines([table for table, _ in found], intervals, worst)
    raise FlashACEError(
        f"kernel: expected edge functions that splines can follow, got some that {intervals} intervals miss by {worst:.1e} of the largest; "
        "use the plain path, or a model with fewer or wider radial functions"
    )
