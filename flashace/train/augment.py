"""Training items in, the same items turned at random out: neighbours stay neighbours, so their lists are reused."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flashace.train.loss import Batch


def random_rotation(seed: int, epoch: int, index: int) -> Tensor:
    """[3, 3] in float64, uniform over SO(3); it depends on its arguments alone, so that a resumed fit meets the same ones."""
    purpose = 1  # keeps these numbers apart from those that order the frames of an epoch
    rng = np.random.default_rng([seed, epoch, index, purpose])
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return torch.from_numpy(q * np.linalg.det(q))


def rotate(batch: Batch, rotation: Tensor) -> Batch:
    """Everything with a direction turned by `rotation` [3, 3] (columns are the turned axes): v -> R v for positions, lattice vectors, edge
    vectors and forces, σ -> R σ Rᵀ for the stress."""

    def turn(vectors: Tensor) -> Tensor:
        return vectors @ rotation.T.to(vectors)

    graph = batch.graph
    turned = replace(graph, cell=turn(graph.cell), edge_vec=turn(graph.edge_vec))
    return replace(batch, graph=turned, forces=turn(batch.forces), stress=turn(turn(batch.stress).mT))
