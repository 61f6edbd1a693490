"""Where commands print, whatever the terminal can show."""

import codecs
import sys
import unicodedata

from rich.console import Console

# file names and labels are shown as they are: "[1]" and ":o:" in them are no markup
console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)

# what a terminal that does not know UTF-8, or a file name that is none, gets instead
PLAINER = "flashace.plainer"
PLAIN = {"³": "3", "²": "2", "–": "-", "−": "-", "…": "...", "×": "x", "±": "+-", "·": "*", "→": "->", "σ": "sigma", "°": " deg"}


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return PLAIN.get(sign) or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode() or "?"


codecs.register_error(PLAINER, _plainer)
