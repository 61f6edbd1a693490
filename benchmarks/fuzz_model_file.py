"""A model file in, thousands of damaged and hostile ones made of it, and what the reader does with each.

    python benchmarks/fuzz_model_file.py --files 10000

It may load a file or refuse it with FlashACEError; anything else is a failure, and so are 20 s, memory for a model that the file does
not hold, code that runs, and a process that dies. Exit status 1 on a failure; the file is kept then.
"""

import argparse
import collections
import copy
import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from ase import Atoms
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save

from flashace.cli.main import main as flashace
from flashace.errors import FlashACEError
from flashace.potential import model_file
from flashace.structure.neighbors import build_graph

SAMPLE = Path(__file__).parents[1] / "tests/potential/model_files/format-1.pt"
MEMORY = 2 * 2**30  # bytes that a reader of a file of kilobytes may take
SECONDS = 20
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 7, 10**6, 10**9, 10**18, 10**400, 0.5, -2.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"),
    "", "x", "1", "Si", "[/x]", "\ud800", "x" * 5000, [], [1], {}, {"a": 1}, [[[[1]]]],
)  # fmt: skip
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64,
    torch.float8_e4m3fn, torch.complex64,
)  # fmt: skip
Parts = tuple[dict[str, Any], dict[str, torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--sample", type=Path, default=SAMPLE, help="a small model file, the smaller the better")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    campaign(list(KINDS), partial(attack, options.sample), options.files, options.seed)


def campaign(kinds: list[str], attack: Callable[[range], list[tuple[str, str]]], files: int, seed: int) -> NoReturn:
    """Run `attack` on so many seeds, a thousand to a process; print what became of each kind of damage, and exit."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    failures: list[str] = []
    chunk = 1000
    for first in range(0, files, chunk):
        seeds = range(seed + first, seed + min(first + chunk, files))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # a crash takes this process, not the report
            try:
                for kind, verdict in pool.submit(attack, seeds).result():
                    counts[kind, verdict if verdict in ("loaded", "refused") else "FAILED"] += 1
                    failures += [] if verdict in ("loaded", "refused") else [f"{kind}: {verdict}"]
            except BrokenProcessPool:
                failures.append(f"the process died at one of the seeds {seeds.start} to {seeds.stop - 1}")
        print(f"{seeds.stop - seed} files, {len(failures)} failures", file=sys.stderr, flush=True)
    table = Table("what was done to the file", "files", "refused", "loaded", "failed")
    for kind in [*kinds, None]:
        row = [
            sum(n for (of, v), n in counts.items() if v == verdict and kind in (of, None)) for verdict in ("refused", "loaded", "FAILED")
        ]
        table.add_row(kind or "all", *map(str, (sum(row), *row)))
    Console(width=140).print(table)
    print(*failures[:20], sep="\n")
    raise SystemExit(bool(failures))


def attack(sample: Path, seeds: range) -> list[tuple[str, str]]:
    """For each seed the kind of damage and the verdict: loaded, refused, or what went wrong and where the file is."""
    limit_memory()
    whole, verdicts = sample.read_bytes(), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            path, marker = Path(folder) / "mutant.pt", Path(folder) / "executed"
            kind, content = mutant(whole, seed, marker)
            path.write_bytes(content)
            with within_seconds():
                verdict = judge(path)
            if marker.exists():
                verdict = "code was executed"
                marker.unlink()
            if verdict not in ("loaded", "refused"):
                kept = Path(tempfile.gettempdir()) / f"mutant-{seed}.pt"
                kept.write_bytes(content)
                verdict += f" ({kept})"
            verdicts.append((kind, verdict))
    return verdicts


def limit_memory() -> None:
    """Of this process, to MEMORY more than it has now."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, soft))


@contextmanager
def within_seconds() -> Iterator[None]:
    """Raises TooLong inside when SECONDS are over."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


class TooLong(BaseException):
    """Nothing that a reader catches."""


def _too_long(*_: Any) -> None:
    raise TooLong


def judge(path: Path) -> str:
    """loaded, refused, or what went wrong. A file that loads is used on a pair of atoms, and shown by `flashace info`."""
    try:
        with torch.random.fork_rng(devices=[]):
            model_file.read_header(path)
            model = model_file.load_model(path, torch.float64)
            model(build_graph(Atoms([model.symbols[0]] * 2, [[0, 0, 0], [0.9, 0.8, 0.7]]), model.config.r_max))
            CliRunner().invoke(flashace, ["info", str(path)], catch_exceptions=False)
        return "loaded"
    except FlashACEError as error:
        str(error).encode()  # what cannot be printed is no message
        return "a model was built that does not fit into memory" if "allocate" in str(error) else "refused"
    except (Exception, TooLong) as error:  # noqa: BLE001 - that is what we are looking for
        return f"{type(error).__name__}: {error}"


def mutant(whole: bytes, seed: int, marker: Path) -> tuple[str, bytes]:
    """The kind of damage, one after the other, and the damaged file. Code in it would create `marker`."""
    kind = list(KINDS)[seed % len(KINDS)]
    return kind, KINDS[kind](whole, np.random.default_rng(seed), marker)


# --- damage of bytes ---


def bits_flipped(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    damaged = bytearray(whole)
    for place in rng.integers(len(whole), size=rng.integers(1, 9)):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def bits_flipped_in_the_header(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    return bits_flipped(whole[:end], rng, marker) + whole[end:]


def truncated(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return whole[: rng.integers(len(whole))]


def wrong_header_length(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    length = struct.unpack("<Q", whole[:8])[0]
    lies = [0, 1, length - 1, length + 1, length + 8, len(whole), 10**8, 2**31, 2**63, 2**64 - 1, int(rng.integers(2**62))]
    return struct.pack("<Q", lies[rng.integers(len(lies))]) + whole[8:]


def pieces_moved(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    """A piece is cut out, doubled, zeroed, replaced by noise or put elsewhere."""
    a, b = sorted(rng.integers(len(whole), size=2))
    piece = (b"", 2 * whole[a:b], bytes(b - a), rng.bytes(b - a), whole[:b])[rng.integers(5)]
    return whole[:a] + piece + whole[b:]


def wrong_table_of_tensors(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    """Shapes, dtypes and places of tensors that are not those of the data."""
    length = struct.unpack("<Q", whole[:8])[0]
    table = json.loads(whole[8 : 8 + length])
    name = list(table)[rng.integers(1, len(table))]
    field = ("dtype", "shape", "data_offsets")[rng.integers(3)]
    size = int(10 ** rng.uniform(0, 18))
    table[name][field] = (NASTY[rng.integers(len(NASTY))], [size, size], [0, size], "F64", "I8", [2**63, 2**63])[rng.integers(6)]
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


# --- damage of content, with a digest that fits ---


def header_rewritten(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    """Values anywhere in our header are replaced, deleted or added."""
    header, tensors = _parts(whole)
    for _ in range(rng.integers(1, 4)):
        place: Any = header
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[rng.integers(len(keys))]
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
                break
            place = place[key]
        value = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
        if isinstance(place, dict) and rng.random() < 0.2:
            place[str(NASTY[rng.integers(len(NASTY))])] = value
        elif isinstance(place, dict) and rng.random() < 0.2:
            del place[key]
        else:
            place[key] = value
        if not header:
            break
    return _file(header, tensors)


def giant_sizes(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    """A configuration of a model that no memory holds or no time builds."""
    header, tensors = _parts(whole)
    numbers = [name for name, value in header["config"].items() if isinstance(value, int | float) and not isinstance(value, bool)]
    for name in rng.choice(numbers, size=rng.integers(1, 4), replace=False):
        header["config"][str(name)] = int(10 ** rng.uniform(1, 12))
    return _file(header, tensors)


def wrong_tensors(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    header, tensors = _parts(whole)
    name = list(tensors)[rng.integers(len(tensors))]
    tensor = tensors.pop(name)
    broken = tensor.clone().view(-1)
    broken[rng.integers(len(broken))] = (float("nan"), float("inf"))[rng.integers(2)]
    size = int(10 ** rng.uniform(0, 5))
    replaced: dict[str, torch.Tensor | None] = {
        "missing": None,
        "dtype": tensor.to(DTYPES[rng.integers(len(DTYPES))]),
        "flat": tensor.reshape(-1).clone(),
        "scalar": torch.tensor(1.0),
        "empty": tensor.new_zeros(0),
        "larger": tensor.new_zeros(size),
        "dimensions": tensor.reshape(1, *tensor.shape).clone(),
        "not finite": broken.view(tensor.shape),
    }
    chosen = list(replaced)[rng.integers(len(replaced))]
    if replaced[chosen] is not None:
        tensors[name] = replaced[chosen]  # type: ignore[assignment]
    if rng.random() < 0.2:
        tensors[f"more.{rng.integers(9)}"] = torch.zeros(3)
    return _file(header, tensors)


def nested_deeply(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    header, tensors = _parts(whole)
    depth = int(10 ** rng.uniform(1, 6))
    header["provenance"] = "HERE"
    opening, closing = (("[", "]"), ('{"a":', "}"))[rng.integers(2)]
    inside = opening * depth + ("1" + closing * depth if rng.random() < 0.8 else "")
    header["sha256"] = model_file._digest(header, tensors)
    return save(tensors, metadata={"flashace": json.dumps(header).replace('"HERE"', inside)})


# --- what is no model file at all ---


def foreign(whole: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    """Other programs' files, and pickles that would run code."""
    zipped, saved, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, zipped)
    torch.save(_Bomb(marker), saved, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps(_Bomb(marker)))
        z.writestr("archive/version", "3\n")
    size = int(rng.integers(5000))
    return (
        b"",
        zipped.getvalue(),
        saved.getvalue(),
        archive.getvalue(),
        pickle.dumps(_Bomb(marker)),
        rng.bytes(size),
        bytes(size),
        b"2\nLattice=\n" * size,
        save({"weight": torch.zeros(size)}),
        save(
            {"weight": torch.zeros(2)}, metadata={"flashace": str(NASTY[rng.integers(len(NASTY))])[:100].encode(errors="replace").decode()}
        ),
        save({"weight": torch.zeros(2)}, metadata={"flashace": '{"format": 1}'}),
        b"\x7fELF" + rng.bytes(size),
        b"PK\x03\x04" + rng.bytes(size),
        b"\x1f\x8b" + rng.bytes(size),
        b"#!/bin/sh\ntouch " + str(marker).encode(),
    )[rng.integers(15)]


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int]]:
        return os.open, (str(self.marker), os.O_CREAT | os.O_WRONLY)


def _parts(whole: bytes) -> Parts:
    """Our header and the tensors."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(whole)
        with safe_open(file.name, framework="pt") as opened:
            return json.loads(opened.metadata()["flashace"]), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _file(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    header.pop("sha256", None)
    header["sha256"] = model_file._digest(header, tensors)
    return save(tensors, metadata={"flashace": json.dumps(header)})


KINDS: dict[str, Callable[[bytes, np.random.Generator, Path], bytes]] = {
    made.__name__.replace("_", " "): made
    for made in (
        bits_flipped, bits_flipped_in_the_header, truncated, wrong_header_length, pieces_moved, wrong_table_of_tensors,
        header_rewritten, giant_sizes, wrong_tensors, nested_deeply, foreign,
    )
}  # fmt: skip


if __name__ == "__main__":
    main()
