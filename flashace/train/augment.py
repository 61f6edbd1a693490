"""Training items in, the same items turned at random out: neighbours stay neighbours, so their lists are reused."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flashace.data.labels import LABELS
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
    vectors and forces, σ -> R σ Rᵀ for the stress, and so on by the rank of each label."""

    def turn(vectors: Tensor) -> Tensor:
        return vectors @ rotation.T.to(vectors)

    graph = batch.graph
    turned = replace(graph, cell=turn(graph.cell), edge_vec=turn(graph.edge_vec))
    by_rank = {0: lambda x: x, 1: turn, 2: lambda x: turn(turn(x).mT)}
    return replace(batch, graph=turned, labels={name: by_rank[LABELS[name].rank](x) for name, x in batch.labels.items()})
