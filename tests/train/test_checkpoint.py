"""Checkpoints come back whole, appear whole, and execute nothing."""

import errno
import pickle
import resource
import signal
import zipfile
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


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_noticed(tmp_path, seed):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    place = seed * len(content) // 8 + 3
    content[place] ^= 1 << (seed % 8)
    path.write_bytes(content)
    with pytest.raises(FlashACEError, match=r"cannot be read, it is damaged or of another kind"):
        load_checkpoint(path)


def test_it_is_a_zip_file_that_torch_alone_reads_too(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["name"] == "β"
    with zipfile.ZipFile(tmp_path / "last.pt") as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"FlashACE checkpoint, sha256 ")


def test_checkpoints_of_earlier_versions_have_no_checksum(tmp_path):
    torch.save(STATE, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["name"] == "β"


def test_a_checksum_that_was_cut_away_is_missed(tmp_path):
    torch.save({"format": 2, **STATE}, tmp_path / "last.pt")
    with pytest.raises(FlashACEError, match="it lacks its checksum"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_full_disk_says_which_file_how_much_and_what_is_safe(tmp_path, monkeypatch):
    first, second = tmp_path / "step-000000001.pt", tmp_path / "step-000000002.pt"
    save_checkpoint(first, STATE)

    def full(path, content):
        path.open("wb").write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    message = (
        r"step-000000002\.pt: expected to write a checkpoint of 0\.0 MB, got: No space left on device \(.* MB are free on the disk\); "
    )
    with pytest.raises(FlashACEError, match=message + r".* the newest is step-000000001\.pt\. make room, then go on with"):
        save_checkpoint(second, STATE)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert load_checkpoint(first)["name"] == "β"


def test_a_limit_of_the_system_is_no_traceback(tmp_path):
    """RLIMIT_FSIZE, as a quota or a full disk: the first checkpoint fits, the second does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
    save_checkpoint(tmp_path / "step-000000001.pt", STATE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(FlashACEError, match=r"checkpoint of 0\.8 MB, got: File too large"):
            save_checkpoint(tmp_path / "step-000000002.pt", {**STATE, "more": torch.zeros(100_000, dtype=torch.float64)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.pt"]
