"""The structures of one step in, their gradient out: in as many parts as are asked for, and as memory needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashace.potential.derivatives import EdgeBudget, is_out_of_memory
from flashace.train.loss import Batch, collate, label_counts
from flashace.train.ranks import ALONE, Ranks
from flashace.train.step import TrainStep


class MicroBatches:
    """Adds the gradient of a group of structures to the parameters, as if it were one batch, and returns what `TrainStep` does for that.

    At most `batch_size` structures and `budget` neighbour pairs are computed at once; a structure with more is divided in itself. Parts
    that run out of memory are halved, and the budget falls with them. `say` is called with one sentence when the first is divided.
    Of several `ranks` each calls with its own share of the group, which may be empty, and has the gradient of the whole in the end.
    """

    def __init__(
        self,
        step: TrainStep,
        batch_size: int,
        budget: EdgeBudget,
        device: torch.device,
        say: Callable[[str], object],
        ranks: Ranks = ALONE,
    ) -> None:
        self.step, self.batch_size, self.budget, self.device, self.say, self.ranks = step, batch_size, budget, device, say, ranks
        self.told = False

    def __call__(self, items: Sequence[Batch], weights: Tensor) -> Tensor:
        """weights [L] of the labels, in the order of the table."""
        counts = label_counts(items) if items else torch.zeros(len(weights), dtype=weights.dtype)
        self.ranks.add([counts])
        batches = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        errors = [self._add(part, counts, weights) for batch in batches for part in self._parts(batch)]
        total = torch.stack(errors).sum(0) if errors else weights.new_zeros(2, len(weights))
        self.ranks.add([*self.step.gradients(), total])
        return total

    def _parts(self, items: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
        """Neighbouring structures together, as many as the budget lets."""
        start, edges = 0, 0
        for i, item in enumerate(items):
            own = num_edges([item])
            if i > start and edges + own > self.budget.max_edges:
                self._tell(f"a batch has more than {self.budget.max_edges} neighbour pairs (max_edges_per_step)")
                yield items[start:i]
                start, edges = i, 0
            edges += own
        yield items[start:]

    def _add(self, items: Sequence[Batch], counts: Tensor, weights: Tensor) -> Tensor:
        batch, edges = replace(collate(items), counts=counts).to(self.device), num_edges(items)
        if edges > self.budget.max_edges and len(items) == 1:
            self._tell(f"a structure has more than {self.budget.max_edges} neighbour pairs (max_edges_per_step)")
            return self.step.in_parts(batch, weights, self.budget)
        try:
            return self.step(batch, weights)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        what = "a structure" if len(items) == 1 else f"{len(items)} structures"
        self._tell(f"no memory for {what} with {edges} neighbour pairs at once")
        self.budget.halve(edges)
        if len(items) == 1:
            return self.step.in_parts(batch, weights, self.budget)
        middle = len(items) // 2
        return self._add(items[:middle], counts, weights) + self._add(items[middle:], counts, weights)

    def _tell(self, reason: str) -> None:
        if not self.told:
            self.say(f"{reason}: such batches are computed in parts, with the same gradient")
        self.told = True


def num_edges(items: Sequence[Batch]) -> int:
    """Neighbour pairs of all items."""
    return sum(item.graph.edge_vec.shape[0] for item in items)
