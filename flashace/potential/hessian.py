"""A strictly local model and a graph in; the second derivatives of the energy by the positions out."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flashace.potential.derivatives import EdgeBudget
from flashace.structure.graph import Graph, Part

PER_EDGE = 8  # times the memory of a backward pass that a neighbour pair takes here: the graph of that pass, and what it is asked for


def hessian(energies: Callable[[Graph], Tensor], graph: Graph, dtype: torch.dtype, budget: EdgeBudget) -> Tensor:
    """H [3N, 3N] eV/Å² = ∂²E/∂R∂R in float64, for one structure; rows and columns go through x, y, z of atom after atom.

    The energy of an atom depends on its neighbours alone, so its own second derivatives are a block as large as its neighbourhood. The
    blocks of all atoms come from the same backward passes: the k-th other atom near each centre moves along x, y and z in turn, and the
    slopes of all edges of that centre answer. That is 3 passes for each of the atoms near the centre which has most of them, however large
    the structure is. What the centre itself does follows: E_i does not change where all of its atoms move alike.

    Parts take an eighth of the edges of `budget` each, which bounds the memory besides H. Edge vectors enter the model in `dtype`.
    """
    n = len(graph.numbers)
    H = torch.zeros(3 * n, 3 * n, dtype=torch.float64)
    blocks = H.view(n, 3, n, 3).permute(0, 2, 1, 3)
    for _, found in EdgeBudget(max(budget.max_edges // PER_EDGE, 1)).each_part(graph, lambda part: _answers(energies, part, dtype)):
        for mover, centre, neighbour, answer in found:
            for row, column, value in (
                (neighbour, mover, answer),
                (centre, mover, -answer),
                (neighbour, centre, -answer),
                (centre, centre, answer),
            ):
                blocks.index_put_((row, column), value, accumulate=True)
    return H.add_(H.T.clone()).div_(2)  # they differ by rounding


class _Answers(NamedTuple):
    """Of A edges, those of the centres that have a k-th other atom near them."""

    mover: Tensor  # [A] the atom that moves
    centre: Tensor  # [A]
    neighbour: Tensor  # [A]
    slopes: Tensor  # [A, 3, 3] eV/Å², ∂(∂E/∂r_ij)/∂R of the mover


def _answers(energies: Callable[[Graph], Tensor], part: Part, dtype: torch.dtype) -> list[_Answers]:
    """For each k."""
    graph, (centre, neighbour) = part.graph, part.atoms[part.graph.edge_index]
    others, place = _others(graph.edge_index[0], centre, neighbour, graph.num_centres)
    if not others.shape[1]:
        return []
    edge_vec = graph.edge_vec.detach().to(dtype).requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(energies(graph.with_edge_vec(edge_vec)).sum(), edge_vec, create_graph=True)
    found = []
    for k in range(others.shape[1]):
        columns = []
        for axis in range(3):
            moves = torch.zeros_like(g)
            moves[:, axis] = place == k
            columns.append(torch.autograd.grad(g, edge_vec, moves, retain_graph=True)[0])
        mover = others[graph.edge_index[0], k]
        there = (mover >= 0).nonzero().squeeze(1)
        slopes = torch.stack(columns, dim=2)[there].double()
        found.append(_Answers(*(x.cpu() for x in (mover[there], centre[there], neighbour[there], slopes))))
    return found


def _others(own: Tensor, centre: Tensor, neighbour: Tensor, num_centres: int) -> tuple[Tensor, Tensor]:
    """The atoms other than itself near each centre [C, K], filled up with -1; and for each edge the place of its neighbour there, -1 for an
    image of the centre, which moves with it. Of E edges: `own` [E] counts the centres from 0, `centre` and `neighbour` are atoms."""
    place = torch.full_like(own, -1)
    apart = (centre != neighbour).nonzero().squeeze(1)
    pairs, which = torch.stack([own[apart], neighbour[apart]]).unique(dim=1, return_inverse=True)
    counts = torch.bincount(pairs[0], minlength=num_centres)
    k = torch.arange(pairs.shape[1], device=own.device) - (counts.cumsum(0) - counts)[pairs[0]]
    others = own.new_full((num_centres, int(counts.max())), -1)
    others[pairs[0], k] = pairs[1]
    place[apart] = k[which]
    return others, place
