"""`Graph` in, `Prediction` out: what every way to evaluate a model is."""

from abc import ABC, abstractmethod

import torch

from flashace.potential.derivatives import EdgeBudget, Prediction, add_parts
from flashace.structure.graph import Graph


class Backend(ABC):
    """A model, ready to be evaluated."""

    bounds_memory = False  # whether it goes through a few atoms at a time by itself
    device: torch.device

    @abstractmethod
    def evaluate(self, graph: Graph, features: bool = False) -> Prediction:
        """Everything that follows from a graph on `device`, with the model's last-layer features where asked for."""

    def predict(self, graph: Graph, budget: EdgeBudget | None, features: bool = False) -> Prediction:
        """The same of a graph on any device, with the memory of one part of it at a time; None is all at once."""
        graph = graph.to(self.device)
        if budget is None:
            return self.evaluate(graph, features)
        return add_parts(lambda part: self.evaluate(part, features), graph, budget)
