"""Files of extended XYZ as people make them, and as disks and editors damage them."""

import gzip
import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.io import read, write

from flashace.data.extxyz import LONGEST_LINE, read_extxyz
from flashace.errors import FlashACEError

ATOMS = "Si 0 0 0\nSi 1 1 1\n"
FRAME = f'2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 energy=-1.5\n{ATOMS}'


def frames_of(path: Path, text: str | bytes) -> list:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_extxyz(path))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.extxyz"


def test_frames_are_those_of_ase(path, make_frames):
    write(path, make_frames(4))
    for ours, theirs in zip(read_extxyz(path), read(path, ":"), strict=True):
        assert ours == theirs
        assert ours.info == theirs.info
        for name in ("energy", "forces", "stress"):
            np.testing.assert_array_equal(ours.calc.results[name], theirs.calc.results[name])


@pytest.mark.parametrize(
    "text",
    [
        f"{FRAME}\n{FRAME}",  # cat a.xyz b.xyz, with an empty line at the end of a
        f"\n\n{FRAME}   \n\t\n{FRAME}\n\n",
        (FRAME * 2).replace("\n", "\r\n"),
        (FRAME * 2).replace("\n", "\r"),
        (FRAME * 2).rstrip(),
        b"\xef\xbb\xbf" + (FRAME * 2).encode(),
        (FRAME * 2).encode("utf-16"),
    ],
)
def test_empty_lines_line_ends_and_byte_order_marks_change_nothing(path, text):
    frames = frames_of(path, text)
    assert [len(atoms) for atoms in frames] == [2, 2]
    assert [atoms.get_potential_energy() for atoms in frames] == [-1.5, -1.5]


def test_packed_files_and_plain_xyz_are_read(tmp_path):
    (tmp_path / "data.xyz.gz").write_bytes(gzip.compress(FRAME.encode()))
    assert len(list(read_extxyz(tmp_path / "data.xyz.gz"))) == 1
    assert len(frames_of(tmp_path / "plain.xyz", f"2\nfrom a program\n{ATOMS}2\n\nSi 0 0 0 0.5\nSi 1 1 1 0.5\n")) == 2


def test_a_cell_below_the_atoms_is_read(path):
    (atoms, other) = frames_of(path, f"2\nremark\n{ATOMS}VEC1 3 0 0\nVEC2 0 3 0\nVEC3 0 0 3\n{FRAME}")
    assert atoms.cell.lengths().tolist() == [3, 3, 3]
    assert other.cell.lengths().tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FRAME}1000000000000\n{ATOMS}", "#1, line 8: expected 1000000000000 atoms in frame 1, got 1 before the end"),
        (f"1000000000000\n\n{ATOMS}", "#0, line 5: expected 1000000000000 atoms in frame 0, got 2 before the end of the file"),
        ("9" * 30, "#0, line 1: expected the number of atoms of frame 0, got '999"),
        (f"{FRAME}-1\n\n", "#1, line 5: expected the number of atoms of frame 1, got '-1'"),
        (f"{FRAME}# end\n", "#1, line 5: expected the number of atoms of frame 1, got '# end'"),
        (
            FRAME.replace("2\n", "1\n", 1),
            "#1, line 4: expected the number of atoms of frame 1, got 'Si 1 1 1'; look whether the frame before",
        ),
        (FRAME.replace("2\n", "3\n", 1) + FRAME, "#0, line 5: expected 4 columns of atom 3 of 3, got '2'"),
        (FRAME.replace("Si 1 1 1", ""), "#0, line 4: expected 4 columns of atom 2 of 2, got ''"),
        (FRAME.replace("1 1 1", "1 1 1 1"), "#0, line 4: expected 4 columns of atom 2 of 2, got 'Si 1 1 1 1'"),
        (FRAME.replace("Properties=", "Propertis=").replace("1 1 1", "1 1 1 1"), "columns, since there is no Properties, got 'Si 1 1 1 1'"),
        (FRAME.replace("pos:R:3", "pos:R:1000000000"), "#0, line 3: expected 1000000001 columns of atom 1 of 2, got 'Si 0 0 0'"),
        (FRAME.replace("pos:R:3", "at:R:3"), "#0, line 2: .*Properties=species:S:1:at:R:3: no pos"),
        (FRAME.replace("pos:R:3", "pos:R"), "not name:type:columns"),
        (
            FRAME.replace("4 0 0 0 4", "4 0 0"),
            "#0, line 2: expected keys and values of extended XYZ, got ValueError: Got info item Lattice",
        ),
        (FRAME.replace("Si 1", "D 1"), "#0, line 1: .*got the element 'D'; D is an isotope: write H"),
        (FRAME.replace("Si 1", "Si1 1"), "#0, line 1: .*got the element 'Si1'; write Si, without what follows it"),
        (FRAME.replace("Si 1", "Qq 1"), "got the element 'Qq'; write the symbols of elements, or their numbers as Z:I:1"),
        (FRAME.replace("Si 1", "Si x"), "#0, line 1: expected a frame of extended XYZ from here on, got ValueError: could not convert"),
        (FRAME.replace("energy", "Å").encode("latin1"), "#0, line 2: expected text in UTF-8, got bytes that are none; convert it: `iconv"),
        ((FRAME.encode("utf-16") + b"\x00"), "data.extxyz#.*: expected"),
        (FRAME.replace("energy=-1.5", f'extra="_JSON {"[" * 10**5}"'), "#0, line 2: .*RecursionError"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(path, text, message):
    with pytest.raises(FlashACEError, match=message):
        frames_of(path, text)


def test_a_giant_line_is_refused_at_once(path):
    path.write_bytes(b"2\n" + b"x" * (3 * LONGEST_LINE))
    began = time.process_time()
    with pytest.raises(FlashACEError, match="line 2: expected lines of less than 2000000 characters"):
        list(read_extxyz(path))
    assert time.process_time() - began < 2


def test_damaged_files_are_read_rightly_or_refused(tmp_path, monkeypatch):
    """The first files of benchmarks/fuzz_extxyz.py, which goes on for thousands."""
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    fuzz = SimpleNamespace(**runpy.run_path(str(benchmarks / "fuzz_extxyz.py")))
    whole, verdicts = fuzz.beginning(fuzz.SAMPLE), {}
    for seed in range(112):
        kind, content = fuzz.mutant(whole, seed)
        path = tmp_path / ("mutant.xyz.gz" if kind == "packed and damaged" else "mutant.xyz")
        path.write_bytes(content)
        verdicts[kind, seed] = fuzz.judge(path)
    assert {case: verdict for case, verdict in verdicts.items() if verdict not in ("refused", "loaded")} == {}
    assert {kind for kind, _ in verdicts} == set(fuzz.KINDS)
    assert {"refused", "loaded"} == set(verdicts.values())
