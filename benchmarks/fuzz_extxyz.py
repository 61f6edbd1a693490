"""Files of extended XYZ in, thousands of damaged ones made of them, and what `flashace check` does with each.

    python benchmarks/fuzz_extxyz.py --files 4000

It may read a file or refuse it with one error; a traceback, a signal, 20 s and memory beyond 2 GiB are failures. What was read must be
right: every line that is not empty belongs to a frame, and the numbers are those of the text. Exit status 1 on a failure; the file is kept.
"""

import argparse
import gzip
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from click.testing import CliRunner
from fuzz_model_file import TooLong, bits_flipped, campaign, limit_memory, pieces_moved, truncated, within_seconds

from flashace.cli.main import main as flashace
from flashace.data.frames import read_labelled
from flashace.errors import FlashACEError

SAMPLE = Path(__file__).parents[1] / "examples/data/sic.extxyz"
FRAMES = 6  # of the sample: too few for the linear fit, which has seen no damage by then
NASTY = (
    "nan", "NaN", "inf", "-inf", "1e300", "-1e300", "1e-300", "1e999", "0", "-0", "-1", "1000000000000", "9" * 30, "1_0", "0x10", "T", "F",
    "", "D", "Si1", "X", "si", "Qq", "200", "\x00", "\ufeff", "é", "١", "[/x]", "{}", '"', "'", "=", "\\", "_JSON {", "_JSON [1]",
    "x" * 5000,
)  # fmt: skip
KEYS = (
    "energy", "REF_energy", "free_energy", "stress", "virial", "REF_stress", "REF_virial", "forces", "REF_forces", "pbc", "Lattice",
    "Properties", "config_type", "config_weight", "dipole", "magmoms", "uid", "numbers", "positions", "energies", "stresses", "",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    campaign(list(KINDS), partial(attack, options.sample), options.files, options.seed)


def attack(sample: Path, seeds: range) -> list[tuple[str, str]]:
    """For each seed the kind of damage and the verdict: loaded, refused, or what went wrong and where the file is."""
    limit_memory()
    whole, verdicts = beginning(sample), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            kind, content = mutant(whole, seed)
            path = Path(folder) / ("mutant.xyz.gz" if kind == "packed and damaged" else "mutant.xyz")
            path.write_bytes(content)
            try:
                with within_seconds():
                    verdict = judge(path)
            except TooLong:
                verdict = "took too long"
            if verdict not in ("loaded", "refused"):
                kept = Path(tempfile.gettempdir()) / f"{seed}-{path.name}"
                kept.write_bytes(content)
                verdict += f" ({kept})"
            verdicts.append((kind, verdict))
    return verdicts


def judge(path: Path) -> str:
    """loaded, refused, or what went wrong."""
    try:
        frames, _ = read_labelled(path, required=())
        refused = ""
    except FlashACEError as error:
        refused = str(error)
    except Exception as error:  # noqa: BLE001 - that is what we are looking for
        return f"the reader: {type(error).__name__}: {error}"
    done = CliRunner().invoke(flashace, ["check", str(path)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"flashace check: {type(done.exception).__name__}: {done.exception}"
    if refused:
        return "refused" if len(refused) < 1000 + len(str(path)) else f"an error of {len(refused)} characters"
    if done.exit_code and "surely wrong" not in done.output:
        return (
            "refused" if done.output.splitlines()[-1].startswith("Error: ") else f"flashace check ends without a word: {done.output[-200:]}"
        )
    return "loaded" if path.suffix == ".gz" else _difference([frame.atoms for frame in frames], path) or "loaded"


def _difference(frames: list[Atoms], path: Path) -> str:
    """Between what was read and the text, in words; "" where there is none."""
    raw = path.read_bytes()
    text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    place = 0
    for i, atoms in enumerate(frames):
        while not lines[place].strip():
            place += 1
        if int(lines[place]) != len(atoms):
            return f"frame {i} has {len(atoms)} atoms, line {place + 1} says {lines[place]}"
        rows = [line.split() for line in lines[place + 2 : place + 2 + len(atoms)]]
        if "species:S:1:pos:R:3" in lines[place + 1]:
            symbols, positions = [row[0].capitalize() for row in rows], np.array([row[1:4] for row in rows], float)
            if [atomic_numbers[s] for s in symbols] != atoms.numbers.tolist() or not np.array_equal(positions, atoms.positions):
                return f"frame {i}: other atoms than in the text"
        place += 2 + len(atoms)
        while place < len(lines) and lines[place].lstrip().startswith("VEC"):
            place += 1
    left = [line for line in lines[place:] if line.strip()]
    return f"{len(left)} lines were not read, the first of them {left[0][:60]!r}" if left else ""


def beginning(sample: Path) -> bytes:
    """The first frames of a file."""
    lines = sample.read_text().splitlines(keepends=True)
    end = 0
    for _ in range(FRAMES):
        end += 2 + int(lines[end])
    return "".join(lines[:end]).encode()


def mutant(whole: bytes, seed: int) -> tuple[str, bytes]:
    """The kind of damage, one after the other, and the damaged file."""
    kind = list(KINDS)[seed % len(KINDS)]
    return kind, KINDS[kind](whole, np.random.default_rng(seed))


# --- damage of bytes ---


def packed_and_damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    packed = gzip.compress(whole)
    return (truncated, bits_flipped)[rng.integers(2)](packed, rng, Path())


def other_encodings(whole: bytes, rng: np.random.Generator) -> bytes:
    text = whole.decode().replace("config_type=", "note=Å config_type=", 1)
    encoding = ("utf-16", "utf-8-sig", "latin-1", "utf-16-le", "utf-32", "cp037")[rng.integers(6)]
    ends = ("\n", "\r\n", "\r", "\n\r", "\x0b", "\u2028")[rng.integers(6)]
    return text.replace("\n", ends).encode(encoding, "replace")


# --- damage of lines and words ---


def lines_moved(whole: bytes, rng: np.random.Generator) -> bytes:
    """Lines are doubled, lost, emptied or exchanged."""
    lines = whole.splitlines(keepends=True)
    for _ in range(rng.integers(1, 4)):
        i, j = rng.integers(len(lines), size=2)
        kind = rng.integers(5)
        if kind == 0:
            lines.insert(i, lines[j])
        elif kind == 1:
            del lines[i]
        elif kind == 2:
            lines[i] = (b"\n", b"   \n", b"# remark\n", b"VEC1 1 2 3\n", b"\x00\n")[rng.integers(5)]
        elif kind == 3:
            lines[i], lines[j] = lines[j], lines[i]
        else:
            lines.insert(i, b"\n" * int(rng.integers(1, 4)))
    return b"".join(lines)


def files_joined(whole: bytes, rng: np.random.Generator) -> bytes:
    """As `cat` does it, with what stands between and after."""
    between = (b"", b"\n", b"\n\n", b" \n", b"end\n", b"\x1a", b"\xef\xbb\xbf", b"0\n\n", b"---\n")
    return b"".join(whole + between[rng.integers(len(between))] for _ in range(rng.integers(1, 4)))


def words_replaced(whole: bytes, rng: np.random.Generator) -> bytes:
    """Numbers, symbols and keys, anywhere."""
    lines = [line.split(" ") for line in whole.decode().split("\n")]
    for _ in range(rng.integers(1, 4)):
        line = lines[rng.integers(len(lines))]
        line[rng.integers(len(line))] = NASTY[rng.integers(len(NASTY))]
    return "\n".join(map(" ".join, lines)).encode()


def numbers_of_atoms(whole: bytes, rng: np.random.Generator) -> bytes:
    lines = whole.decode().split("\n")
    heads = [i for i, line in enumerate(lines) if line.strip().isdigit()]
    for i in rng.choice(heads, size=rng.integers(1, 3)):
        lies = (*NASTY, str(int(rng.integers(20))), str(int(10 ** rng.uniform(0, 18))), f"+{lines[i]}", f"{lines[i]}.0", f"0{lines[i]}")
        lines[i] = lies[rng.integers(len(lies))]
    return "\n".join(lines).encode()


def keys_and_values(whole: bytes, rng: np.random.Generator) -> bytes:
    """The line of keys gets others, twice the same, values of other kinds and shapes, and quotes that do not end."""
    lines = whole.decode().split("\n")
    places = [i for i, line in enumerate(lines) if "Properties=" in line]
    for i in rng.choice(places, size=rng.integers(1, 4)):
        key, size = KEYS[rng.integers(len(KEYS))], int(rng.integers(12))
        numbers = " ".join(NASTY[rng.integers(11)] if rng.random() < 0.1 else f"{x:.3f}" for x in rng.normal(size=size))
        value = (f'"{numbers}"', NASTY[rng.integers(len(NASTY))], f'"{numbers}', f"[{numbers}]", f"{{{numbers}}}")[rng.integers(5)]
        lines[i] = f"{lines[i]} {key}={value}" if rng.random() < 0.5 else f"{key}={value} {lines[i]}"
    return "\n".join(lines).encode()


def columns(whole: bytes, rng: np.random.Generator) -> bytes:
    """`Properties` says other things than the rows have."""
    lines = whole.decode().split("\n")
    places = [i for i, line in enumerate(lines) if "Properties=" in line]
    for i in rng.choice(places, size=rng.integers(1, 3)):
        before, _, rest = lines[i].partition("Properties=")
        fields = rest.split(" ")[0].split(":")
        j = rng.integers(len(fields))
        changed = (
            NASTY[rng.integers(len(NASTY))],
            "R",
            "I",
            "S",
            "L",
            "1",
            "3",
            "9",
            KEYS[rng.integers(len(KEYS))],
            "move_mask",
            "Z",
            "pos",
        )
        fields[j] = changed[rng.integers(len(changed))]
        lines[i] = f"{before}Properties={':'.join(fields)}{rest[len(rest.split(' ')[0]) :]}"
    return "\n".join(lines).encode()


def lattices(whole: bytes, rng: np.random.Generator) -> bytes:
    """Cells that have collapsed, are giant, lie in a plane or are not there; and no pbc, or some."""
    lines = whole.decode().split("\n")
    places = [i for i, line in enumerate(lines) if "Lattice=" in line]
    for i in rng.choice(places, size=rng.integers(1, 4)):
        cell = rng.normal(size=(3, 3)) * 10.0 ** rng.uniform(-320, 308) if rng.random() < 0.5 else rng.integers(-1, 2, (3, 3)) * 4.0
        before, _, rest = lines[i].partition('Lattice="')
        lattice = f'Lattice="{" ".join(map(str, cell.ravel()))}"' if rng.random() < 0.8 else ""
        pbc = ("", 'pbc="F F F"', 'pbc="T F T"', "pbc=T", 'pbc="1 1"', "pbc=x")[rng.integers(6)]
        lines[i] = f"{before}{lattice} {rest.partition(chr(34))[2].replace(chr(112) + 'bc=', 'was=')} {pbc}"
    return "\n".join(lines).encode()


def giants(whole: bytes, rng: np.random.Generator) -> bytes:
    """One line, or one number, of many megabytes."""
    size = int(10 ** rng.uniform(5, 7.5))
    lines = whole.splitlines(keepends=True)
    i = rng.integers(len(lines))
    lines[i] = (b"x" * size, b"9" * size, b"1 " * (size // 2), b'a="' + b"1 " * (size // 20) + b'"', b"[" * (size // 10))[
        rng.integers(5)
    ] + b"\n"
    return b"".join(lines)


def foreign(whole: bytes, rng: np.random.Generator) -> bytes:
    """What is no extended XYZ at all, under its name."""
    size = int(rng.integers(1, 3000))
    return (
        b"", b"\n" * size, rng.bytes(size), bytes(size), b"%PDF-1.7\n" + rng.bytes(size), b"\x7fELF" + rng.bytes(size),
        b"\x1f\x8b" + rng.bytes(size), b"PK\x03\x04" + rng.bytes(size), b"<html></html>", b"[1, 2]", b'{"1": {"cell": 3}}', b"1\n", b"1",
        b"0\n\n" * size, b"- of UlmASE-Trajectory", b"2\nLattice=\n" * size, b"SQLite format 3\x00" + rng.bytes(size),
        b"ITEM: TIMESTEP\n0\n", b"&control\n/\n", b"version https://git-lfs\n",
    )[rng.integers(20)]  # fmt: skip


KINDS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    **{made.__name__.replace("_", " "): partial(made, marker=Path()) for made in (bits_flipped, truncated, pieces_moved)},
    **{
        made.__name__.replace("_", " "): made
        for made in (
            packed_and_damaged, other_encodings, lines_moved, files_joined, words_replaced, numbers_of_atoms, keys_and_values, columns,
            lattices, giants, foreign,
        )
    },
}  # fmt: skip


if __name__ == "__main__":
    main()
