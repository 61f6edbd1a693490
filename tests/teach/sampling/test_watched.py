"""Dynamics that ends where the model is unsure."""

import warnings

import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from flashace import FlashACE, FlashACEError
from flashace.potential.config import ModelConfig
from flashace.potential.model import AttentionACE
from flashace.potential.uncertainty import Rigidity, Uncertainty
from flashace.structure.coordination import Coordination
from flashace.teach.sampling.watched import Watched


@pytest.fixture
def task():
    atoms = bulk("Cu", cubic=True)
    return Watched(atoms, 300.0, 2.0, 1, 3, 100.0, 0, "own-0000", stop=1.0)


def test_it_ends_with_the_frame_outside_the_data_and_says_why_once(task):
    model = AttentionACE(ModelConfig(num_channels=8, hidden_dim=16, r_max=4.0, zbl=False), {"Cu": 0.0})
    one = torch.eye(model.num_features, dtype=torch.float64)
    model.uncertainty = Uncertainty(Rigidity(one, 1.0, 1e-3), Rigidity(one, 1.0, 1e-3), frames=10, largest=1.0)
    model.coordination = Coordination({"Cu-Cu": [0.0, 0.0]}, ["Cu"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the reason stands in the frame
        frames = task(FlashACE(model, kernel="plain"))
    assert len(frames) == 1
    assert "far fewer or far more neighbours" in frames[0].info["ended"]
    assert frames[0].get_forces().shape == (4, 3)


def test_only_our_models_know_how_unsure_they_are(task):
    with pytest.raises(FlashACEError, match="expected a model of FlashACE, got EMT"):
        task(EMT())
