"""Frames in, graphs out: all of them once, by several processes where that pays, or each one anew whenever it is asked for."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from ase import Atoms

from flashace.data.frames import Labelled
from flashace.data.lazy import MadeOnDemand
from flashace.errors import FlashACEError
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph

PROBE = 1.0  # s of building in this process, from which the rest is foreseen
PARALLEL_PAYS = 20.0  # s ahead; other processes take some seconds to start
CHUNK = 32  # frames handed to a process at once


def build_graphs(frames: Sequence[Labelled], r_max: float, advance: Callable[[int], Any] = lambda done: None) -> list[Graph]:
    """One graph per frame, the same ones however many processes build them; `advance` is called with the number just done."""
    graphs: list[Graph] = []
    begin = time.monotonic()
    for frame in frames:
        graphs.append(build_graph(frame.atoms, r_max))
        advance(1)
        seconds = time.monotonic() - begin
        ahead = seconds / len(graphs) * (len(frames) - len(graphs))
        if seconds > PROBE and ahead > PARALLEL_PAYS and num_workers() > 1:
            break
    for graph in _build_in_parallel([frame.atoms for frame in frames[len(graphs) :]], r_max):
        graphs.append(graph)
        advance(1)
    return graphs


def fresh_graphs(frames: Sequence[Labelled], r_max: float) -> Sequence[Graph]:
    """The same graphs, built again at each access and kept nowhere."""
    return MadeOnDemand(lambda i: build_graph(frames[i].atoms, r_max), len(frames))


def num_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build_in_parallel(structures: list[Atoms], r_max: float) -> Iterator[Graph]:
    if not structures:
        return
    bare = [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in structures]
    chunks = [bare[i : i + CHUNK] for i in range(0, len(bare), CHUNK)]
    workers = min(num_workers(), len(chunks))
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _use_one_thread) as pool:
            for built in pool.map(_arrays, chunks, [r_max] * len(chunks)):
                yield from (Graph(*map(torch.from_numpy, arrays)) for arrays in built)
    except BrokenProcessPool as error:
        raise FlashACEError(
            "neighbour lists: a worker process ended unexpectedly. In a script of your own, call the fit below "
            '`if __name__ == "__main__":`; where memory ran out, say `precompute_neighbors: false`'
        ) from error


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _arrays(structures: list[Atoms], r_max: float) -> list[list[np.ndarray]]:
    """The fields of each graph as arrays: tensors would travel through shared memory, of which containers have little."""
    graphs = [build_graph(atoms, r_max) for atoms in structures]
    return [[getattr(graph, f.name).numpy() for f in fields(Graph)] for graph in graphs]
