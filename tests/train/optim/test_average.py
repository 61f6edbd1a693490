"""The average of the weights."""

import torch

from flashace.train.optim.average import make_average


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
