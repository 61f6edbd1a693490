"""What surrounds a calculator in a program, against the numbers that it gives by itself."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from flashace import FlashACE, evaluate_many
from flashace.potential.model_file import save_model
from flashace.surroundings import undisturbed


@contextmanager
def switched(write, value, usual):
    write(value)
    try:
        yield
    finally:
        write(usual)


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu"),
    "default device": lambda: switched(torch.set_default_device, "meta", None),
    "device": lambda: torch.device("meta"),
    "float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "matrix products": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "numpy raises": lambda: np.errstate(all="raise"),
}


@pytest.mark.filterwarnings("ignore::flashace.ShortDistanceWarning")
@pytest.mark.parametrize("kernel", ["compiled", "plain"])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_surrounds_a_calculator_changes_nothing(make_model, structure, tmp_path, name, kernel):
    """Neither numbers of one that was there before, nor one that is made inside, nor any of them afterwards."""
    for seed in (1, 2):
        save_model(tmp_path / f"{seed}.pt", make_model(seed=seed, num_layers=1, shortest_distances={"C-Si": 1.7}), {})
    atoms, options = structure("crystal"), {"device": "cpu", "kernel": kernel}
    before = FlashACE(tmp_path / "1.pt", **options)
    expected = before.get_property("forces", atoms)
    with SURROUNDINGS[name]():
        before.reset()
        inside = before.get_property("forces", atoms)
        made = FlashACE(tmp_path / "2.pt", **options)
        made_inside = made.get_property("forces", atoms)
        (many,) = evaluate_many([atoms], tmp_path / "1.pt")
        made.get_property("stresses", atoms)
    twin = FlashACE(tmp_path / "2.pt", **options)
    assert twin.model is made.model
    made.reset()
    outside = [calculator.get_property("forces", atoms) for calculator in (made, twin)]
    del made, twin
    fresh = FlashACE(tmp_path / "2.pt", **options).get_property("forces", atoms)
    same = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(inside, expected, **same)
    np.testing.assert_allclose(many["forces"], expected, rtol=0, atol=1e-4)
    for found in (made_inside, *outside):
        np.testing.assert_allclose(found, fresh, **same)


def test_settings_of_the_process_come_back():
    """Also when the evaluation fails."""

    @undisturbed
    def fails():
        assert torch.get_default_dtype() == torch.float32
        assert not torch.is_anomaly_enabled()
        raise ArithmeticError

    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autograd.set_detect_anomaly(True), pytest.raises(ArithmeticError):
            fails()
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
