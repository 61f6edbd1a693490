"""Neighbour lists: the same ones from several processes, or again at each access."""

from dataclasses import fields

import pytest
import torch

from flashace.data import graphs as neighbors
from flashace.data.frames import read_labelled
from flashace.data.graphs import build_graphs, fresh_graphs
from flashace.structure.graph import Graph


def equal(one, other):
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for a, b in zip(one, other, strict=True) for f in fields(Graph))


@pytest.fixture
def frames(data_file):
    return read_labelled(data_file)[0]


def test_fresh_graphs_are_the_same_and_new_each_time(frames):
    fresh = fresh_graphs(frames, 3.0)
    assert equal(list(fresh), build_graphs(frames, 3.0))
    assert fresh[0] is not fresh[0]
    assert equal(fresh[2:4], fresh[:4][2:])
    with pytest.raises(IndexError):
        fresh[len(frames)]


@pytest.mark.slow
def test_several_processes_build_the_same(frames, monkeypatch):
    done = []
    alone = build_graphs(frames, 3.0)
    for name, value in {"PROBE": 0.0, "PARALLEL_PAYS": 0.0, "CHUNK": 3}.items():
        monkeypatch.setattr(neighbors, name, value)
    monkeypatch.setattr(neighbors, "num_workers", lambda: 2)
    started = []
    plain = neighbors._build_in_parallel
    monkeypatch.setattr(neighbors, "_build_in_parallel", lambda s, r: started.append(len(s)) or plain(s, r))
    assert equal(build_graphs(frames, 3.0, done.append), alone)
    assert started == [len(frames) - 1]
    assert sum(done) == len(frames)
