"""A run folder and a folder of shards in, thousands of damaged ones made of them, and what their readers do with each.

    python benchmarks/fuzz_run_folder.py --files 4000

A reader may give the right result or refuse with FlashACEError; anything else is a failure: a traceback, 20 s, code that runs, a process
that dies, and bytes that were changed and taken without a word. Checkpoints that are read go on for a step, a validation and a checkpoint.
Exit status 1 on a failure.
"""

import argparse
import copy
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from fuzz_model_file import (
    DTYPES,
    NASTY,
    TooLong,
    bits_flipped,
    campaign,
    foreign,
    limit_memory,
    pieces_moved,
    truncated,
    within_seconds,
)
from rich.console import Console

from flashace.data.frames import LabelKeys, content_hash
from flashace.data.shards import MANIFEST, Shards, convert
from flashace.data.statistics import elements_of
from flashace.errors import FlashACEError
from flashace.evaluate import report
from flashace.train import loop
from flashace.train.checkpoint import _sealed, read_start
from flashace.train.config import load_config, make_config, write_config
from flashace.train.prepare import _check_start, prepare

OPTIONS = {
    "r_max": 3.0, "num_radial": 4, "hidden_dim": 8, "num_channels": 2, "key_dim": 2, "edge_hidden_dim": 8, "num_layers": 1, "l_max": 1,
    "correlation": 2, "epochs": 4, "batch_size": 2, "device": "cpu", "dtype": "float64", "compile": False,
}  # fmt: skip
BYTES = (bits_flipped, truncated, pieces_moved, foreign)
Random = np.random.Generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    campaign(list(KINDS), attack, options.files, options.seed)


def attack(seeds: range) -> list[tuple[str, str]]:
    """For each seed the kind of damage and the verdict: loaded, refused, or what went wrong."""
    with tempfile.TemporaryDirectory() as place:
        sample = Sample(Path(place))
        limit_memory()
        return [sample.attack(seed) for seed in seeds]


class Sample:
    """A fit that was interrupted in its third epoch, and shards of its data; made in a second, and damaged in copies."""

    def __init__(self, place: Path) -> None:
        self.place, self.marker = place, place / "executed"
        self.data, self.run = place / "data.extxyz", place / "run"
        write(self.data, _frames())
        config = make_config({**OPTIONS, "data": [str(self.data)]})
        self.prepared = prepare(config)
        self.run.mkdir()
        trainer = loop.Trainer(self.prepared, self.run, Console(quiet=True), 0.0)
        for _ in range(2):
            for indices in trainer.batches.of_epoch(trainer.course.epoch):
                trainer.train_on(indices, trainer.progress())
            trainer.course.epoch, trainer.course.position = trainer.course.epoch + 1, 0
            trainer.validate()
        trainer.session.save()
        write_config(self.run / "config.yaml", self.prepared.config)
        (self.checkpoint,) = trainer.folder.checkpoints.glob("step-*.pt")
        self.shards = convert([self.data], place / "shards").folder
        self.truth = {"checkpoint": _digest(read_start(self.checkpoint).state), "shards": _shards_read(Shards(self.shards))}

    def attack(self, seed: int) -> tuple[str, str]:
        """The kind of damage, one after the other, and the verdict."""
        kind = list(KINDS)[seed % len(KINDS)]
        self.marker.unlink(missing_ok=True)
        copies = self.place / "copy"
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        try:
            with within_seconds(), torch.random.fork_rng(devices=[]):
                verdict = KINDS[kind](self, copies, np.random.default_rng(seed)) or "loaded"
        except FlashACEError:
            verdict = "refused"
        except (Exception, TooLong) as error:  # noqa: BLE001 - that is what we are looking for
            verdict = f"{type(error).__name__}: {error} (seed {seed})"
        return kind, "code was executed" if self.marker.exists() else verdict

    # --- checkpoints ---

    def checkpoint_bytes(self, copies: Path, rng: Random) -> str | None:
        """Flipped, cut, moved, and other programs' files: the state is the same, or the file is refused."""
        path = copies / self.checkpoint.name
        path.write_bytes(BYTES[rng.integers(len(BYTES))](self.checkpoint.read_bytes(), rng, self.marker))
        start = read_start(path)
        return None if _digest(start.state) == self.truth["checkpoint"] else "bytes that were changed were taken without a word"

    def checkpoint_newest_is_damaged(self, copies: Path, rng: Random) -> str | None:
        """The one before is taken, and the user hears of it."""
        (copies / "step-000000001.pt").write_bytes(self.checkpoint.read_bytes())
        content = BYTES[rng.integers(len(BYTES))](self.checkpoint.read_bytes(), rng, self.marker)
        (copies / "step-000000002.pt").write_bytes(content)
        told: list[str] = []
        start = read_start(copies, told.append)
        right = _digest(start.state) == self.truth["checkpoint"] and (start.path.name.endswith("2.pt") or len(told) == 1)
        return None if right else "another state was taken"

    def checkpoint_content(self, copies: Path, rng: Random) -> None:
        """Keys removed, types exchanged, other shapes, with a checksum that fits."""
        self._go_on_from(copies, _saved(_rewritten(self._state(), rng), seal=True))

    def checkpoint_of_an_older_version(self, copies: Path, rng: Random) -> None:
        """The same without a checksum, as earlier versions wrote it."""
        state = self._state()
        del state["format"], state["schedule"]["ended"], state["schedule"]["length"]
        self._go_on_from(copies, _saved(_rewritten(state, rng), seal=False))

    def checkpoint_schedule(self, copies: Path, rng: Random) -> None:
        state = self._state()
        state["schedule"] = _rewritten(state["schedule"], rng)
        self._go_on_from(copies, _saved(state, seal=True))

    def _state(self) -> dict[str, Any]:
        return torch.load(self.checkpoint, weights_only=True)

    def _go_on_from(self, copies: Path, content: bytes) -> None:
        path = copies / self.checkpoint.name
        path.write_bytes(content)
        start = read_start(path)
        config = self.prepared.config
        t = replace(config.train, resume_load_optimizer=True, resume_load_scheduler=True, resume_load_scaler=True)
        prepared = replace(self.prepared, config=replace(config, train=t), start=start)
        _check_start(start, prepared.config, elements_of(prepared.train))
        trainer = loop.Trainer(prepared, copies, Console(quiet=True), 0.0)
        trainer.log.write()
        for indices in trainer.batches.of_epoch(trainer.course.epoch)[trainer.course.position :][:1]:
            trainer.train_on(indices, trainer.progress())
        trainer.validate()
        trainer.session.save()

    # --- what else stands in a run folder ---

    def config_bytes(self, copies: Path, rng: Random) -> None:
        whole = (self.run / "config.yaml").read_bytes()
        self._prepare(copies, BYTES[rng.integers(len(BYTES))](whole, rng, self.marker))

    def config_content(self, copies: Path, rng: Random) -> None:
        options, text = yaml.safe_load((self.run / "config.yaml").read_text()), "epochs: x"
        with suppress(yaml.YAMLError, UnicodeError):  # what YAML cannot write
            text = yaml.safe_dump(_rewritten(options, rng), allow_unicode=bool(rng.integers(2)))
        self._prepare(copies, text.encode("utf-8", "surrogatepass"))

    def _prepare(self, copies: Path, content: bytes) -> None:
        (copies / "config.yaml").write_bytes(content)
        (copies / "checkpoints").mkdir()
        shutil.copy(self.checkpoint, copies / "checkpoints")
        prepare(load_config(copies / "config.yaml", {}), copies).decisions()

    def metrics(self, copies: Path, rng: Random) -> None:
        whole = (self.run / "metrics.csv").read_bytes()
        content = BYTES[rng.integers(len(BYTES))](whole, rng, self.marker)
        (copies / "metrics.csv").write_bytes(content if rng.random() < 0.7 else _cell_exchanged(whole, rng))
        report.learning_curve(copies / "metrics.csv", copies / "curve.png")

    # --- shards ---

    def shards_bytes(self, copies: Path, rng: Random) -> str | None:
        """Of any array: the frames are the same, or the folder is refused."""
        folder, array = self._shards(copies, rng)
        content = array.read_bytes()
        head, tail = (content, b"") if rng.random() < 0.5 else (content[:128], content[128:])  # the header is most of a small file
        array.write_bytes(BYTES[rng.integers(len(BYTES))](head, rng, self.marker) + tail)
        return self._same(Shards(folder))

    def shards_without_checksums(self, copies: Path, rng: Random) -> None:
        """As earlier versions wrote them: what is no frame is refused."""
        folder, array = self._shards(copies, rng)
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["crc32"]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        content = array.read_bytes()
        array.write_bytes(content[:128] + rng.bytes(len(content) - 128))
        _shards_read(Shards(folder))

    def shards_cut_off_while_open(self, copies: Path, rng: Random) -> str | None:
        folder, array = self._shards(copies, rng)
        shards = Shards(folder)
        with array.open("rb+") as file:
            file.truncate(rng.integers(len(array.read_bytes())))
        return self._same(shards)

    def manifest_bytes(self, copies: Path, rng: Random) -> None:
        folder, _ = self._shards(copies, rng)
        whole = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).write_bytes(BYTES[rng.integers(len(BYTES))](whole, rng, self.marker))
        _shards_read(Shards(folder))

    def manifest_content(self, copies: Path, rng: Random) -> None:
        folder, _ = self._shards(copies, rng)
        manifest = _rewritten(json.loads((folder / MANIFEST).read_text()), rng)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        _shards_read(Shards(folder))

    def _shards(self, copies: Path, rng: Random) -> tuple[Path, Path]:
        folder = Path(shutil.copytree(self.shards, copies / "shards"))
        arrays = sorted(folder.glob("*.npy"))
        return folder, arrays[rng.integers(len(arrays))]

    def _same(self, shards: Shards) -> str | None:
        return None if _shards_read(shards) == self.truth["shards"] else "bytes that were changed were taken without a word"


KINDS: dict[str, Callable[[Sample, Path, Random], str | None]] = {
    made.__name__.replace("_", " "): made
    for made in (
        Sample.checkpoint_bytes, Sample.checkpoint_newest_is_damaged, Sample.checkpoint_content, Sample.checkpoint_of_an_older_version,
        Sample.checkpoint_schedule, Sample.config_bytes, Sample.config_content, Sample.metrics, Sample.shards_bytes,
        Sample.shards_without_checksums, Sample.shards_cut_off_while_open, Sample.manifest_bytes, Sample.manifest_content,
    )
}  # fmt: skip


def _frames() -> list[Any]:
    rng, frames = np.random.default_rng(0), []
    for _ in range(8):
        atoms = bulk("Cu", a=3.6) * (2, 1, 1)
        atoms.positions += rng.normal(scale=0.1, size=(2, 3))
        emt = EMT()
        emt.calculate(atoms, ["energy", "forces", "stress"])
        atoms.calc = SinglePointCalculator(atoms, **{name: emt.results[name] for name in ("energy", "forces", "stress")})
        frames.append(atoms)
    return frames


def _shards_read(shards: Shards) -> tuple[Any, ...]:
    """All that a fit reads of them."""
    shards.check(LabelKeys(), ("energy", "forces"))
    return content_hash(shards), [(frame.origin, frame.config_type) for frame in shards], shards.summary()


def _saved(state: Any, seal: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return _sealed(buffer.getvalue()) if seal else buffer.getvalue()


def _digest(value: Any) -> str:
    """A text that differs where anything in the state does."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{_digest(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_digest, value)) + "]"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{list(value.shape)}{value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex()}"
    return repr(value)


def _rewritten(content: Any, rng: Random) -> Any:
    """Up to three places anywhere: a key removed or renamed, a value exchanged, a tensor of another kind."""
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                return content
            key = keys[rng.integers(len(keys))]
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.15:
                break
            place = place[key]
        chance = rng.random()
        if isinstance(place, dict) and chance < 0.25:
            del place[key]
        elif isinstance(place, dict) and chance < 0.3:
            place[f"{key}x" if isinstance(key, str) else key + 1000] = place.pop(key)
        elif isinstance(place[key], torch.Tensor) and chance < 0.8:
            place[key] = _another_tensor(place[key], rng)
        else:
            place[key] = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
    return content


def _another_tensor(tensor: torch.Tensor, rng: Random) -> Any:
    tensor = tensor.detach()
    broken = tensor.double().clone().reshape(-1)
    broken[:1] = (float("nan"), float("inf"), 1e300, -1.0)[rng.integers(4)]
    made: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: tensor.to(DTYPES[rng.integers(len(DTYPES))]),
        lambda: tensor.reshape(-1).clone(),
        lambda: torch.tensor(1.0),
        lambda: tensor.new_zeros(0),
        lambda: tensor.new_zeros(int(10 ** rng.uniform(0, 5))),
        lambda: tensor.reshape(1, *tensor.shape).clone(),
        lambda: broken.reshape(tensor.shape).to(tensor.dtype),
        lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"),
        lambda: tensor.new_zeros(1).expand(10**15),
        lambda: torch.nn.Parameter(tensor.double()),
    )
    return made[rng.integers(len(made))]()


def _cell_exchanged(csv: bytes, rng: Random) -> bytes:
    lines = [line.split(b",") for line in csv.splitlines()]
    line = lines[rng.integers(len(lines))]
    words = (b"", b"x", b"nan", b"inf", b"-1", b"1e999", b'"', b"\x00", b"\xff", b"1,2", b"epoch")
    line[rng.integers(len(line))] = words[rng.integers(len(words))]
    return b"\r\n".join(b",".join(line) for line in lines)


if __name__ == "__main__":
    main()
