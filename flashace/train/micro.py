"""The structures of one step in, their gradient out: in as many parts as are asked for, and as memory needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashace.errors import FlashACEError
from flashace.train.loss import Batch, collate, label_counts
from flashace.train.step import TrainStep


class MicroBatches:
    """Adds the gradient of a group of structures to the parameters, as if it were one batch, and returns its loss terms [3].

    At most `batch_size` structures and `max_edges` neighbour pairs are computed at once (a structure with more is alone). A part that runs
    out of memory is halved, and `max_edges` falls with it. `say` is called with one sentence when the first part is divided.
    """

    def __init__(self, step: TrainStep, batch_size: int, max_edges: int, device: torch.device, say: Callable[[str], object]) -> None:
        self.step, self.batch_size, self.max_edges, self.device, self.say = step, batch_size, max_edges, device, say
        self.told = False

    def __call__(self, items: Sequence[Batch], weights: Tensor) -> Tensor:
        """weights [3] of energy, forces and stress."""
        counts = label_counts(items)
        batches = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        return torch.stack([self._add(part, counts, weights) for batch in batches for part in self._parts(batch)]).sum(0)

    def _parts(self, items: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
        """Neighbouring structures together, as many as `max_edges` lets."""
        start, edges = 0, 0
        for i, item in enumerate(items):
            own = item.graph.edge_vec.shape[0]
            if i > start and edges + own > self.max_edges:
                self._tell(f"a batch has more than {self.max_edges} neighbour pairs (max_edges_per_step)")
                yield items[start:i]
                start, edges = i, 0
            edges += own
        yield items[start:]

    def _add(self, items: Sequence[Batch], counts: Tensor, weights: Tensor) -> Tensor:
        try:
            return self.step(replace(collate(items), counts=counts).to(self.device), weights)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        edges = sum(item.graph.edge_vec.shape[0] for item in items)
        if len(items) == 1:
            raise FlashACEError(
                f"one structure of {int(items[0].num_atoms)} atoms and {edges} neighbour pairs does not fit into the memory of "
                f"{self.device}; leave it out, or make r_max, num_layers or num_channels smaller"
            )
        self._tell(f"{len(items)} structures with {edges} neighbour pairs do not fit into the memory")
        self.max_edges = min(self.max_edges, max(edges // 2, 1))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(items) // 2
        return self._add(items[:middle], counts, weights) + self._add(items[middle:], counts, weights)

    def _tell(self, reason: str) -> None:
        if not self.told:
            self.say(f"{reason}: such batches are computed in parts, with the same gradient")
        self.told = True


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an exception for GPUs and a sentence for CPUs."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
