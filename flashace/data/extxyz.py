"""A file of extended XYZ in; its frames out, one by one, or one error that names the frame and the line.

ASE parses the frames. Read by ASE alone, a file would end at its first empty line, columns that nothing names would be lost, and a wrong
number of atoms or a giant line would take all time and memory: each frame is looked at here before ASE sees it.
"""

import codecs
import io
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict, read_xyz
from ase.io.formats import open_with_compression

from flashace.data.origin import Origin
from flashace.errors import FlashACEError

LONGEST_LINE = 2 * 10**6  # characters; ASE takes up to six seconds for such a line of keys
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # a byte-order mark tells
PLAIN = "species:S:1:pos:R:3"  # columns of a file that does not name them
PARSER_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RecursionError)  # what ASE's parser raises


def read_extxyz(path: Path) -> Iterator[Atoms]:
    """The frames of a file (also `.gz`, `.bz2`, `.xz`) in UTF-8, or in UTF-16 with a byte-order mark. Empty lines between them are skipped.

    Raises FlashACEError for a frame that is cut off or is no extended XYZ, and what the decompressor raises for a damaged archive.
    """
    with open_with_compression(str(path), "rb") as packed:
        start = packed.read(3)
    encoding = next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), "utf-8")
    with open_with_compression(str(path), "rb") as packed, io.TextIOWrapper(packed, encoding, "surrogateescape") as file:
        lines = _Lines(path, file)
        for i in count():
            lines.frame = i
            header = lines.next()
            while header.isspace():
                header = lines.next()
            if not header:
                return
            yield _frame(header, lines)


class _Lines:
    """The lines of a file, with their places; one of them can be put back."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.frame = self.number = 0  # of frames counted from 0, of lines from 1
        self._back: str | None = None

    def next(self) -> str:
        """The next line, "" at the end of the file."""
        self.number += 1
        if self._back is not None:
            line, self._back = self._back, None
            return line
        try:
            line = self.file.readline(LONGEST_LINE)
            if not line.isascii():
                line.encode()
        except UnicodeError as error:  # when decoding UTF-16, or when encoding again what was no UTF-8
            raise self.wrong(
                "text in UTF-8, got bytes that are none", "convert it: `iconv -f latin1 -t utf-8`, if it is Latin-1"
            ) from error
        if len(line) == LONGEST_LINE:
            raise self.wrong(f"lines of less than {LONGEST_LINE} characters, got a longer one", "look at what was written there")
        return line

    def back(self, line: str) -> None:
        """`line` comes again."""
        self.number -= 1
        self._back = line

    def wrong(self, expected: str, mend: str) -> FlashACEError:
        """The error to raise about the line that was read last."""
        return FlashACEError(f"{Origin(str(self.path), self.frame)}, line {self.number}: expected {expected}; {mend}")


def _frame(header: str, lines: _Lines) -> Atoms:
    number = header.strip()
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise lines.wrong(
            f"the number of atoms of frame {lines.frame}, got {_quoted(number)}",
            "look whether the frame before has as many atoms as its first line says, or remove what is no frame",
        )
    first, num_atoms, comment = lines.number, int(number), lines.next()
    try:
        info = key_val_str_to_dict(comment) if comment.strip() else {}
        columns, more = _columns(info)
    except PARSER_ERRORS as error:
        raise lines.wrong(f"keys and values of extended XYZ, got {_in_words(error)}", "correct this line") from error
    rows: list[str] = []
    while len(rows) < num_atoms:
        row = lines.next()
        found = len(row.split())
        if found != columns and not (more and found > columns):
            raise _wrong_row(row, len(rows), num_atoms, columns, "Properties" in info, lines)
        rows.append(row)
    row = lines.next()
    while row.lstrip().startswith("VEC"):  # a cell, as ADF writes it
        rows.append(row)
        row = lines.next()
    lines.back(row)
    try:
        return next(read_xyz(io.StringIO("".join([f"{num_atoms}\n", comment, *rows])), slice(None), lambda text: info))
    except PARSER_ERRORS as error:
        lines.number = first
        raise lines.wrong(f"a frame of extended XYZ from here on, got {_in_words(error)}", _mend(error)) from error


def _columns(info: dict[str, Any]) -> tuple[int, bool]:
    """How many columns a frame has, and whether there may be more, of a meaning that nobody knows: in XYZ without keys."""
    names = info.get("Properties", PLAIN)
    fields = names.split(":") if isinstance(names, str) else []
    if not fields or len(fields) % 3 or not all(size.isdigit() and int(size) for size in fields[2::3]):
        raise ValueError(f"Properties={names}: not name:type:columns:name:type:columns…")
    if not {"pos", "positions"} & set(fields[::3]):
        raise ValueError(f"Properties={names}: no pos")
    return sum(map(int, fields[2::3])), all(value is True for value in info.values())


def _wrong_row(row: str, done: int, num_atoms: int, columns: int, named: bool, lines: _Lines) -> FlashACEError:
    if not row:
        return lines.wrong(
            f"{num_atoms} atoms in frame {lines.frame}, got {done} before the end of the file",
            "the file is cut off, or this number is wrong",
        )
    if not named and len(row.split()) > columns:
        return lines.wrong(
            f"{columns} columns, since there is no Properties, got {_quoted(row.strip())}",
            f"name the columns: Properties={PLAIN}:forces:R:3, for example",
        )
    return lines.wrong(
        f"{columns} columns of atom {done + 1} of {num_atoms}, got {_quoted(row.strip())}",
        "look at Properties and the number of atoms of this frame",
    )


def _mend(error: Exception) -> str:
    """What to do, where the error tells it: ASE raises KeyError for a symbol that it does not know."""
    symbol = error.args[0] if isinstance(error, KeyError) and error.args else None
    if not isinstance(symbol, str):
        return "correct this frame"
    if symbol in ("D", "T"):
        return f"{symbol} is an isotope: write H"
    element = re.match(r"[A-Z][a-z]?(?=[\d_+-])", symbol)
    return f"write {element[0]}, without what follows it" if element else "write the symbols of elements, or their numbers as Z:I:1"


def _in_words(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return f"the element {_quoted(error.args[0])}"
    return f"{type(error).__name__}: {_shortened(str(error))}"


def _quoted(text: str) -> str:
    return repr(_shortened(text))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"
