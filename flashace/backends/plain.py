"""The model and autograd, as a backend."""

from flashace.backends.backend import Backend
from flashace.potential.derivatives import Prediction, predict
from flashace.potential.model import AttentionACE
from flashace.structure.graph import Graph
from flashace.surroundings import exact_products


class Plain(Backend):
    """Exact to the last digits, on any device, and the test of every other backend."""

    def __init__(self, model: AttentionACE) -> None:
        self.model, self.device = model, model.embedding.device

    def evaluate(self, graph: Graph, features: bool = False) -> Prediction:
        with exact_products():
            return predict(self.model.with_features if features else self.model, graph, self.model.dtype)
