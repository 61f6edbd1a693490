"""Checkpoints come back whole, appear whole, and execute nothing."""

import pickle
from pathlib import Path

import pytest
import torch

from flashace.errors import FlashACEError
from flashace.train.checkpoint import load_checkpoint, save_checkpoint

STATE = {"weights": {"a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3)}, "position": [3, 1], "best": float("inf"), "name": "β"}


def test_the_state_comes_back(tmp_path):
    path = tmp_path / "deep/er/last.pt"
    save_checkpoint(path, {"weights": torch.zeros(1)})
    save_checkpoint(path, STATE)
    found = load_checkpoint(path)
    assert torch.equal(found["weights"]["a"], STATE["weights"]["a"])
    assert (found["position"], found["best"], found["name"]) == ([3, 1], float("inf"), "β")
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_a_missing_checkpoint_says_what_to_name(tmp_path):
    with pytest.raises(FlashACEError, match=r"expected a checkpoint at .*last.pt, found none; name the run folder"):
        load_checkpoint(tmp_path / "last.pt")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint was executed",))


FOREIGN = {"empty": b"", "text": b"text", "trap": pickle.dumps(Trap(), 2), "no path": pickle.dumps(Path, 2)}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_refused(tmp_path, kind):
    (tmp_path / "last.pt").write_bytes(FOREIGN[kind])
    with pytest.raises(FlashACEError, match=r"last\.pt: this checkpoint cannot be read"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("part", [0.1, 0.6, 0.99])
def test_half_a_checkpoint_is_refused(tmp_path, part):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(FlashACEError, match="cannot be read"):
        load_checkpoint(path)
