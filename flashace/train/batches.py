"""Frames and their graphs in; the training items of each step out, as the seed orders and turns them."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from flashace.data.frames import Labelled, content_hash
from flashace.data.graphs import build_graphs, fresh_graphs
from flashace.data.lazy import MadeOnDemand, chained, sample, take
from flashace.structure.graph import Graph
from flashace.train.augment import random_rotation, rotate
from flashace.train.config import TrainConfig
from flashace.train.log import progress_bar
from flashace.train.loss import Batch, make_item
from flashace.train.ranks import Ranks, shares
from flashace.train.replay import drawn_in_an_epoch


class FrameSet(NamedTuple):
    """Labelled frames, and the graph of each."""

    frames: Sequence[Labelled]
    graphs: Sequence[Graph]

    def sample(self, most: int) -> "FrameSet":
        """All of them, or `most`, evenly drawn."""
        return FrameSet(sample(self.frames, most), sample(self.graphs, most))

    def and_then(self, others: "FrameSet") -> "FrameSet":
        """These, and the others after them."""
        return FrameSet(chained(self.frames, others.frames), chained(self.graphs, others.graphs))

    def only(self, indices: Sequence[int]) -> "FrameSet":
        """Those of them."""
        return FrameSet(take(self.frames, np.array(indices)), take(self.graphs, np.array(indices)))


def with_graphs(sets: Sequence[Sequence[Labelled]], r_max: float, keep: bool, ranks: Ranks, console: Console) -> list[FrameSet]:
    """The graphs of several sets: built now, once per machine, where they are to be kept; otherwise whenever they are asked for."""
    if not keep:
        return [FrameSet(frames, fresh_graphs(frames, r_max)) for frames in sets]
    with progress_bar(console) as bar:
        task = bar.add_task("neighbour lists", total=sum(map(len, sets)))

        def build(frames: Sequence[Labelled]) -> Sequence[Graph]:
            return build_graphs(frames, r_max, lambda n: bar.advance(task, n))

        return [FrameSet(frames, ranks.build_once(build, frames) if frames else []) for frames in sets]


class Batches:
    """The training frames, and of the `replay` some, step by step. What a step meets depends on seed and epoch alone, so that a resumed
    fit meets the same."""

    def __init__(self, train: FrameSet, config: TrainConfig, dtype: torch.dtype, ranks: Ranks, replay: FrameSet | None = None) -> None:
        self.train, self.replay, self.config, self.ranks = train, replay or FrameSet([], []), config, ranks
        self.both = both = train.and_then(self.replay) if self.replay.frames else train
        self.drawn = drawn_in_an_epoch(config, len(train.frames))  # of the replay, in an epoch
        items = MadeOnDemand(lambda i: make_item(both.graphs[i], both.frames[i], dtype), len(both.frames))
        self.items: Sequence[Batch] = list(items) if config.precompute_neighbors else items
        self.size = int(config.batch_size or 1) * config.grad_accum_steps  # frames of a step
        self.per_epoch = math.ceil((len(train.frames) + self.drawn) / self.size)

    @cached_property
    def content_hash(self) -> str:
        """That of the training frames."""
        return content_hash(self.train.frames)

    def of_epoch(self, epoch: int) -> list[list[int]]:
        """The frames of each step, those of the replay counted after the others."""
        new, purpose = np.arange(len(self.train.frames)), 3  # keeps these numbers apart from the others that are drawn for this epoch
        old = np.random.default_rng([self.config.seed, epoch, purpose]).permutation(len(self.replay.frames))
        frames = np.concatenate([new, len(new) + np.resize(old, self.drawn)]).astype(int)
        order = frames[np.random.default_rng([self.config.seed, epoch]).permutation(len(frames))].tolist()
        return [order[i : i + self.size] for i in range(0, len(order), self.size)]

    def own(self, indices: Sequence[int], epoch: int) -> list[Batch]:
        """Of the frames of a step those that this rank computes, turned where `random_rotation` says so."""
        mine = self._share(indices)
        items = [self.items[i] for i in mine]
        if self.config.random_rotation:
            turns = (random_rotation(self.config.seed, epoch, i) for i in mine)
            items = [rotate(item, turn) for item, turn in zip(items, turns, strict=True)]
        return items

    def order(self) -> dict[str, Any]:
        """What decides which frames the next step meets."""
        t = self.config
        return {
            "training frames": self.content_hash,
            **({"replay": content_hash(self.replay.frames)} if self.replay.frames else {}),
            "batch_size": t.batch_size,
            "grad_accum_steps": t.grad_accum_steps,
            "seed": t.seed,
        }

    def _share(self, indices: Sequence[int]) -> Sequence[int]:
        """About as many neighbour pairs (or atoms, without lists) as every other rank has."""
        if self.ranks.size == 1:
            return indices
        precomputed, (frames, graphs) = self.config.precompute_neighbors, self.both
        sizes = [len(graphs[i].edge_vec) if precomputed else len(frames[i].atoms) for i in indices]
        return [indices[i] for i in shares(sizes, self.ranks.size)[self.ranks.rank]]
