"""Averaged weights and frames that are not fitted in; errors, a score, and which weights become the model out."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from flashace.data.labels import LABELS
from flashace.data.lazy import MadeOnDemand, sample
from flashace.data.statistics import LossUnits
from flashace.evaluate.predict import error_rows, predict_each, predict_graphs
from flashace.potential.model import AttentionACE
from flashace.structure.graph import Graph
from flashace.train.batches import FrameSet
from flashace.train.clock import FEWEST_FRAMES, Clock
from flashace.train.prepare import ENOUGH_TO_CHOOSE
from flashace.train.ranks import Ranks

PROBE = 1.0  # s of predictions, from which the rest is foreseen
SURE = 3.0  # standard errors; earlier weights have the lowest score of all by choice, so two would come by luck


class Validation:
    """The averaged `model` on the frames for validation. `best` are its weights with the lowest score so far.

    `weights` [3] are those of the loss terms in the last stage of the fit.
    """

    def __init__(self, model: AttentionACE, valid: FrameSet, weights: Sequence[float], units: LossUnits, ranks: Ranks) -> None:
        self.model, self.valid, self.weights, self.units, self.ranks = model, valid, weights, units, ranks
        self.best_score, self.best = math.inf, self.current()

    def current(self) -> dict[str, torch.Tensor]:
        """A copy of the weights."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def errors(self) -> dict[str, Any]:
        """`errors_of` the frames for validation."""
        return self.errors_of(self.valid)

    def errors_of(self, some: FrameSet) -> dict[str, Any]:
        """Of all these frames together: the last row of `ErrorTable`, on every rank."""
        predictions = self.predict(some.graphs)
        return self.ranks.from_first(error_rows(some.frames, predictions)[-1] if self.ranks.first else {})

    def score(self, errors: dict[str, Any]) -> float:
        """The loss of the last stage, from root mean square errors in meV."""
        rmse = [(errors[f"{label}_rmse"] or 0.0) / 1e3 / self.units[label] for label in LABELS]
        return sum(w * r**2 for w, r in zip(self.weights, rmse, strict=True))

    def is_better(self, score: float) -> bool:
        """Whether no score was lower so far; then these weights are the best."""
        better = score < self.best_score
        if better:
            self.best_score, self.best = score, self.current()
        return better

    def predict(self, graphs: Sequence[Graph]) -> Iterable[dict[str, Any]]:
        """`predict_each`; complete on the first rank, and shared between all of them."""
        rank, size = self.ranks.rank, self.ranks.size
        if size == 1:
            return predict_each(self.model, graphs)
        own = MadeOnDemand(lambda i: graphs[rank + i * size], len(range(rank, len(graphs), size)))
        predictions: list[dict[str, Any]] = [{}] * len(graphs)
        for first, found in enumerate(self.ranks.gather(predict_graphs(self.model, own))):
            predictions[first::size] = found
        return predictions

    def seconds_per_frame(self, graphs: Sequence[Graph]) -> float:
        """What a prediction takes on the first rank, from PROBE seconds of them."""
        few = sample(graphs, FEWEST_FRAMES)
        begin = now = Clock.now()
        done = 0
        while done < len(few) and now - begin < PROBE:
            list(predict_each(self.model, [few[done * 7919 % len(few)]]))  # a prime: spread over all from the first on
            now, done = Clock.now(), done + 1
        return self.ranks.from_first((now - begin) / done)

    def choose(self, valid: FrameSet) -> str:
        """Give the model the weights of the end, or earlier ones that are better beyond doubt; returns which and why.

        A score over few frames says little, and the lowest of a hundred scores is low by luck: the earlier weights count as better where
        the validation frames say so one by one.
        """
        last = self.current()
        if all(torch.equal(weight, last[name]) for name, weight in self.best.items()):
            return "of the end, averaged; no earlier ones had a better validation score"
        scores = []
        for weights in (self.best, last):
            self.model.load_state_dict(weights, strict=True)
            predictions = self.predict(valid.graphs)
            pairs = zip(valid.frames, predictions, strict=True) if self.ranks.first else ()
            scores.append(np.array([self.score(error_rows([frame], [predicted])[-1]) for frame, predicted in pairs]))
        earlier, why = self.ranks.from_first(earlier_is_better(*scores))
        self.model.load_state_dict(self.best if earlier else last, strict=True)
        return f"{'of the best validation score' if earlier else 'of the end'}, averaged; {why}"


def earlier_is_better(earlier: np.ndarray, last: np.ndarray) -> tuple[bool, str]:
    """Whether frames tell that the first of two sets of weights is better, from the score of each frame [B] with both, and why.

    A paired t test over frames: B ≥ ENOUGH_TO_CHOOSE, and the mean difference above SURE standard errors. Scores that are not finite
    are worse than any.
    """
    if not np.isfinite(last).all():
        return True, "those of the end are not finite"
    if len(last) == 0:
        return False, "there are no validation frames to choose by"
    if len(last) < ENOUGH_TO_CHOOSE:
        return False, f"{len(last)} validation frames are too few to choose by ({ENOUGH_TO_CHOOSE} would do)"
    gain = last - earlier
    error = gain.std(ddof=1) / len(gain) ** 0.5
    sure = gain.mean() / error if error > 0 else 0.0
    return sure > SURE, f"on {len(gain)} validation frames earlier ones are better by {sure:.1f} standard errors ({SURE:g} are asked for)"
