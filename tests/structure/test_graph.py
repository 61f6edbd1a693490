"""Edges by their centres: of one structure, of several in a batch, and of a part."""

import pytest
import torch

from flashace.structure.graph import batch_graphs, take_part
from flashace.structure.neighbors import build_graph


def assert_edges_by_centre(graph):
    """`first` and `slots` say of each centre which edges are its own."""
    centre = graph.edge_index[0]
    num_edges, counts = len(centre), torch.bincount(centre, minlength=graph.num_centres)
    assert graph.first.tolist() == [0, *counts.cumsum(0).tolist()]
    assert graph.max_neighbors == max(1, int(counts.max()))
    for atom, slots in enumerate(graph.slots):
        own = torch.nonzero(centre == atom).flatten().tolist()
        assert slots.tolist() == own + [num_edges] * (graph.max_neighbors - len(own))


def test_each_centre_has_its_edges(each_structure):
    assert_edges_by_centre(build_graph(each_structure, 4.0))


# Batches


def test_structures_of_a_batch_do_not_see_each_other(structure):
    graphs = [build_graph(structure(name), 4.0) for name in ("wire", "atom", "sheared", "molecule")]
    batch = batch_graphs(graphs)
    assert batch.num_structures == 4
    assert (batch.structure[batch.edge_index[0]] == batch.structure[batch.edge_index[1]]).all()
    first = 0
    for b, graph in enumerate(graphs):
        atoms, edges = batch.structure == b, batch.structure[batch.edge_index[0]] == b
        torch.testing.assert_close(batch.numbers[atoms], graph.numbers)
        torch.testing.assert_close(batch.edge_index[:, edges] - first, graph.edge_index)
        torch.testing.assert_close(batch.edge_vec[edges], graph.edge_vec, rtol=0, atol=0)
        torch.testing.assert_close(batch.cell[b], graph.cell[0])
        first += len(graph.numbers)
    assert_edges_by_centre(batch)


def test_a_batch_of_batches_is_a_batch(structure):
    a, b, c = (build_graph(structure(name), 4.0) for name in ("wire", "atom", "sheared"))
    nested, flat = batch_graphs([batch_graphs([a, b]), c]), batch_graphs([a, b, c])
    for name in ("structure", "edge_index", "first", "slots", "cell", "numbers"):
        torch.testing.assert_close(getattr(nested, name), getattr(flat, name))


# Parts


@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 9), (4, 5), (10, 19), (12, 20)])
def test_a_part_is_a_graph_of_some_neighbourhoods(structure, first, last):
    """From an atom alone (4) to atoms of several structures."""
    whole = batch_graphs([build_graph(structure(name), 4.0) for name in ("wire", "atom", "crystal", "one atom per cell", "molecule")])
    part, atoms = take_part(whole, first, last)
    assert part.num_centres == last - first
    (i, j), own = part.edge_index, (whole.edge_index[0] >= first) & (whole.edge_index[0] < last)
    torch.testing.assert_close(atoms[i], whole.edge_index[0, own])
    torch.testing.assert_close(atoms[j], whole.edge_index[1, own])
    torch.testing.assert_close(part.edge_vec, whole.edge_vec[own], rtol=0, atol=0)
    for name in ("numbers", "structure"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[atoms])
    assert_edges_by_centre(part)


def test_all_of_a_graph_is_that_graph(each_structure):
    graph = build_graph(each_structure, 4.0)
    part, atoms = take_part(graph, 0, len(each_structure))
    assert part is graph
    assert atoms.tolist() == list(range(len(each_structure)))


@pytest.mark.parametrize("r_max", [0.5, 2.5, 3.5, 4.0])
def test_a_graph_within_a_shorter_cutoff_is_the_graph_of_that_cutoff(each_structure, r_max):
    found, expected = build_graph(each_structure, 4.0).within(r_max), build_graph(each_structure, r_max)
    for name in ("edge_index", "first", "slots", "numbers", "structure"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.edge_vec, expected.edge_vec, rtol=0, atol=1e-12)
