"""The schedule of learning rate and loss weights."""

from itertools import pairwise

import pytest
import torch

from flashace.train.config import TrainConfig
from flashace.train.optim.schedule import Schedule, learning_rate_factor, loss_weights


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5])
def test_the_schedule_rises_falls_and_ends(warmup):
    t = torch.linspace(0, 1, 2001).tolist()
    factors = [learning_rate_factor(p, warmup) for p in t]
    assert all(0 < f <= 1 for f in factors)
    assert max(factors) == pytest.approx(1.0, abs=1e-3)
    peak = factors.index(max(factors))
    assert t[peak] == pytest.approx(warmup, abs=1e-3)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] < 0.02
    if warmup:
        assert factors[0] < 0.05
    jumps = [abs(a - b) for a, b in pairwise(factors)]
    assert max(jumps) < 0.06


def test_the_last_stage_weighs_the_energy_more():
    for progress, energy in ((0.0, 0.1), (0.4999, 0.1), (0.5, 3.0), (0.8999, 3.0), (0.9, 1000.0), (1.0, 1000.0)):
        assert loss_weights(progress, TrainConfig()).tolist() == pytest.approx([energy, 1.0, 1.0])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_weight_is_a_number_or_a_schedule(index):
    name = ("energy_weight", "forces_weight", "stress_weight")[index]
    for progress in (0.0, 0.5, 1.0):
        assert loss_weights(progress, TrainConfig(**{name: 3.5}))[index] == 3.5
    config = TrainConfig(**{name: {0.5: 7.0, 0.0: 2.0, 0.9: 0.0}})
    for progress, weight in ((0.0, 2.0), (0.49, 2.0), (0.5, 7.0), (0.89, 7.0), (0.9, 0.0), (1.0, 0.0)):
        assert loss_weights(progress, config)[index] == weight


# The schedule hears the validations


def test_cosine_is_the_default_and_constant_stays(make_model):
    cosine, constant = (
        Schedule(TrainConfig(learning_rate=2.0)),
        Schedule(TrainConfig(learning_rate=2.0, lr_scheduler="constant", warmup=0.1)),
    )
    for progress in (0.0, 0.01, 0.3, 1.0):
        assert cosine.learning_rate(progress) == 2.0 * learning_rate_factor(progress, 0.02)
    assert [constant.learning_rate(p) for p in (0.05, 0.1, 0.5, 1.0)] == pytest.approx([1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(("patience", "factor"), [(0, 0.5), (2, 0.1), (3, 0.5)])
def test_plateau_is_torchs(patience, factor):
    schedule = Schedule(TrainConfig(learning_rate=1.0, warmup=0.0, lr_scheduler="plateau", lr_patience=patience, lr_factor=factor))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=0.0, eps=0.0)
    scores = torch.randn(60, generator=torch.Generator().manual_seed(0)).tolist()
    for score in scores:
        schedule.validated(score)
        theirs.step(score)
        assert schedule.learning_rate(0.5) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert schedule.learning_rate(0.5) < 1.0


@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_other_schedules_hear_no_scores(kind):
    schedule = Schedule(TrainConfig(lr_scheduler=kind, lr_patience=0))
    before = schedule.learning_rate(0.5)
    for _ in range(5):
        schedule.validated(1.0)
    assert schedule.learning_rate(0.5) == before


def test_a_fit_ends_early_only_where_it_is_told_to():
    never, third = Schedule(TrainConfig()), Schedule(TrainConfig(early_stopping=3))
    ends = []
    for score in (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, float("nan"), 5.0, 0.5):
        never.validated(score), third.validated(score)
        ends.append(third.ends)
    assert ends == [False] * 7 + [True, False]
    assert not never.ends


def test_a_schedule_comes_back_as_it_was():
    config = TrainConfig(lr_scheduler="plateau", lr_patience=1, early_stopping=4)
    one, other = Schedule(config), Schedule(config)
    scores = (3.0, 4.0, 4.0, 4.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0)
    for i, score in enumerate(scores):
        one.validated(score)
        if i == 5:
            other.load_state_dict(one.state_dict())
        if i > 5:
            other.validated(score)
            assert (one.learning_rate(0.5), one.ends) == (other.learning_rate(0.5), other.ends)
    assert one.ends
