"""Which weights become the model."""

import numpy as np
import pytest
import torch

from flashace.train.batches import FrameSet
from flashace.train.ranks import ALONE
from flashace.train.validation import Validation, earlier_is_better


def test_a_choice_by_frames_knows_how_well_they_can_tell():
    rng = np.random.default_rng(0)
    last = rng.lognormal(size=50)
    assert earlier_is_better(0.5 * last, last)[0]
    assert not earlier_is_better(0.5 * last[:4], last[:4])[0]
    assert not earlier_is_better(np.full(4, 1.0), np.full(4, 1.0))[0]
    assert earlier_is_better(np.full(4, 1.0), np.full(4, np.nan))[0]
    by_luck = [earlier_is_better(rng.lognormal(size=20), rng.lognormal(size=20))[0] for _ in range(1000)]
    assert np.mean(by_luck) < 0.01


@pytest.fixture
def validation(make_model):
    """Of a model that nobody else has, without frames."""
    return Validation(make_model(num_layers=1), FrameSet([], []), [1.0, 2.0, 4.0], {"energy": 0.1, "forces": 2.0, "stress": 0.05}, ALONE)


def test_a_score_is_the_loss_of_errors_in_mev(validation):
    errors = {"energy_rmse": 100.0, "forces_rmse": 4000.0, "stress_rmse": None}
    assert validation.score(errors) == pytest.approx(1.0 * 1.0 + 2.0 * 4.0)


def test_the_best_weights_are_kept_and_nan_is_never_best(validation):
    start = validation.current()
    for score, better in ((3.0, True), (3.0, False), (float("nan"), False), (4.0, False), (2.0, True)):
        with torch.no_grad():
            validation.model.embedding.add_(1.0)
        assert validation.is_better(score) is better
        assert validation.best_score == (2.0 if score == 2.0 else 3.0)
    torch.testing.assert_close(validation.best["embedding"], start["embedding"] + 5.0)
