"""A file with an array of numpy in it in; rows of it, read when they are asked for, out."""

import os
import weakref
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np

from flashace.errors import FlashACEError

BLOCK = 2**22  # bytes read at once for a checksum


class Rows:
    """An array in a file, of which rows are read: never mapped, because what is cut off under a map ends the process."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row = path, np.dtype(dtype), shape[1:]
        self.bytes_per_row = self.dtype.itemsize * int(np.prod(self.row))
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version} of numpy's format")
                found, fortran_order, kind = np.lib.format.read_array_header_1_0(file)
                self._start = file.tell()
                self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
            size = os.fstat(self._file).st_size
        except (OSError, ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:  # the header is Python
            raise FlashACEError(f"{path}: expected an array of {dtype}, {shape}, got {error}; convert the files again") from error
        expected = self._start + self.bytes_per_row * shape[0]
        if (kind.str, found, fortran_order) != (dtype, shape, False):
            raise FlashACEError(f"{path}: expected an array of {dtype}, {shape}, got {kind.str}, {found}; convert the files again")
        if size != expected:
            raise FlashACEError(f"{path}: expected a file of {expected} bytes, got {size}; convert the files again")

    def read(self, first: int, count: int) -> np.ndarray:
        """[count, …]: rows of the array, in memory of their own."""
        size = count * self.bytes_per_row
        content = os.pread(self._file, size, self._start + first * self.bytes_per_row)
        if len(content) != size:
            raise FlashACEError(
                f"{self.path}: expected rows {first} to {first + count}, got {len(content)} of {size} bytes: the file was cut off while it "
                "was read; convert the files again"
            )
        return np.frombuffer(bytearray(content), self.dtype).reshape(count, *self.row)

    def crc32(self) -> int:
        """Of all that the file has after its header."""
        checksum, place = 0, self._start
        while block := os.pread(self._file, BLOCK, place):
            checksum, place = zlib.crc32(block, checksum), place + len(block)
        return checksum

    def compare(self, checksum: int) -> None:
        """Raises FlashACEError where the content has another checksum."""
        if self.crc32() != checksum:
            raise FlashACEError(f"{self.path}: these shards are damaged: the content is not what was written; convert the files again")
