"""Optimizers, schedule and the average of the weights."""

from itertools import pairwise

import pytest
import torch
from torch.optim import AdamW

from flashace.train.config import TrainConfig
from flashace.train.optim.muon import Muon
from flashace.train.optim.schedule import Schedule, learning_rate_factor, loss_weights, make_average, make_optimizers

MODELS = [{}, {"radial_basis_type": "gaussian", "radial_trainable": True}, {"num_layers": 3, "correlation": 1, "num_heads": 1}]


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("options", MODELS, ids=str)
def test_every_parameter_belongs_to_exactly_one_optimizer(make_model, optimizer, options):
    model = make_model(**options)
    taken = [id(p) for o in make_optimizers(model, TrainConfig(optimizer=optimizer)) for p in parameters_of(o)]
    assert sorted(taken) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_muon_has_the_matrices_inside_the_layers_and_adamw_the_rest(make_model):
    model = make_model(radial_trainable=True)
    adamw, muon = make_optimizers(model, TrainConfig(optimizer="muon"))
    assert (type(adamw), type(muon)) == (AdamW, Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, rest = ({names[id(p)] for p in parameters_of(o)} for o in (muon, adamw))
    assert all(name.startswith("layers.") for name in matrices)
    assert all(min(model.get_parameter(name).shape[-2:]) > 1 for name in matrices)
    for part in ("attention.query.weight", "edge_functions.out.weight", "feed_forward.out.weight", "mix_basis.weights.0"):
        assert f"layers.1.{part}" in matrices
    for name in ("embedding", "radial_basis.raw_spacing", "readouts.0.hidden.weight", "layers.0.edge_functions.centre"):
        assert name in rest
    for part in ("scale_scalars", "attention.query.bias", "product.contractions.0.weight"):
        assert f"layers.0.{part}" in rest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_moves_every_parameter_against_its_gradient(make_model, optimizer, dtype):
    model = make_model(dtype=dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, dtype=dtype, generator=torch.Generator().manual_seed(p.numel()))
    for o in make_optimizers(model, TrainConfig(optimizer=optimizer, learning_rate=1e-2)):
        o.step()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert ((before[name] - p.detach()) * p.grad).sum() > 0, name


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


# The average


def test_the_average_of_what_does_not_move_is_itself(make_model):
    model = make_model()
    average = make_average(model, 0.99)
    for _ in range(5):
        average.update_parameters(model)
    for name, p in average.module.named_parameters():
        torch.testing.assert_close(p, model.get_parameter(name), rtol=0, atol=1e-15)


def test_the_average_lies_between_and_is_not_the_model(make_model):
    """A convex mean of what it has seen; young ones forget their start."""
    model = make_model(num_layers=1)
    average = make_average(model, 0.999)
    start = model.embedding.detach().clone()
    seen = []
    for step in range(1, 41):
        model.embedding.data.copy_(start + step)
        average.update_parameters(model)
        seen.append((average.module.embedding - start).mean().item())
    assert seen == sorted(seen)
    assert all(0 < mean <= step for step, mean in enumerate(seen, start=1))
    assert 20 < seen[-1] < 40
    assert (model.embedding == start + 40).all()


def test_no_decay_is_no_average(make_model):
    model = make_model()
    average = make_average(model, 0.0)
    for step in range(3):
        model.embedding.data.fill_(float(step))
        average.update_parameters(model)
    assert (average.module.embedding == 2.0).all()


def test_the_average_keeps_reference_energies_and_precision(make_model):
    model = make_model(dtype=torch.float32)
    average = make_average(model, 0.9)
    average.update_parameters(model)
    assert average.module.atomic_energies.dtype == torch.float64
    assert (average.module.atomic_energies == model.atomic_energies).all()


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


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weight_decay_is_for_the_matrices_alone(make_model, optimizer):
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for o in make_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1)):
        o.step()
    smaller = {name for name, p in model.named_parameters() if (p != before[name]).any()}
    _, muon = make_optimizers(model, TrainConfig(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    assert smaller == {names[id(p)] for p in parameters_of(muon)}
    assert all(torch.allclose(p, 0.95 * before[name]) for name, p in model.named_parameters() if name in smaller)
