"""Which optimizer has which weights, and what it does with them."""

from typing import get_args

import pytest
import torch
from torch.optim import AdamW

from flashace.train.config import TrainConfig
from flashace.train.optim.muon import Muon
from flashace.train.optim.optimizers import MOMENTS, OPTIMIZERS
from flashace.train.optim.update import make_optimizers

MODELS = [{}, {"radial_basis_type": "gaussian", "radial_trainable": True}, {"num_layers": 3, "correlation": 1, "num_heads": 1}]


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_every_optimizer_can_be_asked_for():
    """The options of a fit know them without importing torch."""
    assert set(get_args(TrainConfig.__annotations__["optimizer"])) == set(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
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
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_kept_of_each_weight_is_what_a_checkpoint_expects(make_model, optimizer):
    model = make_model(num_layers=1)
    optimizers = make_optimizers(model, TrainConfig(optimizer=optimizer))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for o in optimizers:
        o.step()
        for p, kept in o.state.items():
            expected = {name: p.shape if shape is None else shape for name, shape in MOMENTS[type(o).__name__].items()}
            assert {name: moment.shape for name, moment in kept.items()} == expected
