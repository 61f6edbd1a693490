"""Frames of finished tasks in; a file of extended XYZ that grows by whole tasks, and what is done already, out.

Frames of a task stand together and have `task` (its key) and `task_frames` (how many they are) in their `info`. What has no label goes with
its `reason` into a second file, `<stem>.failed.extxyz` beside the first. Positions and forces have eight decimals, the rest all digits.
"""

import fcntl
import io
import os
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ase import Atoms
from ase.io.extxyz import escape, write_xyz

from flashace.errors import FlashACEError
from flashace.files import to_disk
from flashace.teach.task import Failure

SYNC = 1.0  # s between two syncs with the disk: no kill loses what was written since; a power cut may, and then it is made again

KEY, COUNT, SOURCE = (re.compile(rb'(?:^|\s)%s=("(?:[^"\\]|\\.)*"|\S+)' % name) for name in (b"task", b"task_frames", b"source"))


class Journal:
    """The labels that are made, and the tasks that failed; open for one writer at a time."""

    def __init__(self, path: str | Path, source: str | None = None) -> None:
        """Open or make it; `source` is the teacher, as all labels have it, where that is to be looked at.

        What a killed writer has left at the end is dropped: a frame half written, and a task of which not all frames are there.
        Raises FlashACEError for a file that is no journal or has another `source`, and where somebody else has it open.
        """
        self.path, self.source = Path(path), source
        self._new = not self.path.exists()
        self.aside = self.path.with_name(f"{self.path.stem}.failed.extxyz")
        self._labels = _Growing(self.path, source)
        self._failures = _Growing(self.aside, source) if self.aside.exists() else None
        self.done = self.labelled | self.failed  # keys of the tasks that need not be done

    @property
    def labelled(self) -> set[str]:
        """Keys of the tasks whose frames are all there."""
        return self._labels.keys

    @property
    def failed(self) -> set[str]:
        """Keys of the tasks that were put aside."""
        return set() if self._failures is None else self._failures.keys

    def append(self, key: str, frames: Sequence[Atoms]) -> None:
        """All frames of a task (one or more), in one go. Raises OSError where the disk is full; the file is as before then."""
        self._labels.append(key, frames)
        self.done.add(key)

    def put_aside(self, failure: Failure) -> None:
        """The structure, or none, with the reason. Whoever deletes the file of failures has them tried again."""
        if self._failures is None:
            self._failures = _Growing(self.aside, self.source)
        frame = Atoms() if failure.atoms is None else failure.atoms.copy()
        frame.info["reason"] = failure.reason
        if self.source is not None:
            frame.info["source"] = self.source
        self._failures.append(failure.key, [frame])
        self.done.add(failure.key)

    def close(self) -> None:
        """On the disk, and open to others."""
        self._labels.close()
        if self._failures is not None:
            self._failures.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
        if error is not None and self._new and not self.done:
            self.path.unlink(missing_ok=True)  # a run that could not even begin leaves nothing behind


class _Growing:
    """One file of groups of frames, and the keys of those that are whole."""

    def __init__(self, path: Path, source: str | None) -> None:
        self.path, new = path, not path.exists()
        self.keys: set[str] = set()
        self._end, self._synced = 0, time.monotonic()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock()
            if new:
                to_disk(path.parent)
            for key, self._end in _groups(path, source):
                self.keys.add(key)
            os.ftruncate(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        """The system takes it back when the process ends, however it ends. A file system without locks keeps nobody out."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FlashACEError(
                f"{self.path}: expected a file that no other run writes to, but one does; wait until it has ended, or name another"
            ) from None
        except OSError:
            pass

    def append(self, key: str, frames: Sequence[Atoms]) -> None:
        data = "".join(_text(frame, key, len(frames)) for frame in frames).encode(errors="backslashreplace")
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._end + done)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end += len(data)
        self.keys.add(key)
        if time.monotonic() - self._synced > SYNC:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)


def _text(frame: Atoms, key: str, num: int) -> str:
    """Extended XYZ. A line break in a value would end the line that it stands in."""
    results = {} if frame.calc is None else frame.calc.results
    told = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc, info={"task": key, "task_frames": num})
    for name, value in frame.info.items():
        if name not in told.info and name not in results:
            told.info[name] = " ".join(value.split()) if isinstance(value, str) else value
    told.calc = frame.calc
    file = io.StringIO()
    write_xyz(file, told)
    return file.getvalue()


def _groups(path: Path, source: str | None) -> Iterator[tuple[str, int]]:
    """The key of each whole group, and the byte where it ends.

    Raises FlashACEError where more follows the last one than one group that is torn: nothing that others wrote is ever dropped.
    """
    end = 0
    with path.open("rb") as file:
        while (key := _group(file, path, source)) is not None:
            end = file.tell()
            yield key, end
        file.seek(end)
        if not _is_torn(file):
            raise FlashACEError(
                f"{path}: expected whole frames with the labels of a teacher, got something else from byte {end} on; "
                "repair it, or name another file"
            )


def _group(file: BinaryIO, path: Path, source: str | None) -> str | None:
    """The key of the group that begins here; None at the end of the file, and where no whole group does."""
    first: tuple[str, str] | None = None
    left = 1
    while left:
        number, comment = file.readline(), file.readline()
        found = _value(KEY, comment), _value(COUNT, comment)
        if not number.strip().isdigit() or not found[1].isdigit() or first not in (None, found):
            return None
        if first is None:
            first, left = found, int(found[1])
        lines = [comment, *islice(file, int(number))]
        if len(lines) != 1 + int(number) or not lines[-1].endswith(b"\n") or any(b"\0" in line for line in lines):
            return None
        if source is not None and _value(SOURCE, comment) != escape(source):
            raise FlashACEError(
                f"{path}: expected labels of the teacher {source}, got some of {_value(SOURCE, comment) or 'an unknown one'}; "
                "name the same teacher with the same arguments, or another file"
            )
        left -= 1
    return first[0] if first else None


def _is_torn(rest: BinaryIO) -> bool:
    """Whether this can be what an ended writer leaves: nothing, the first part of one group, or what never reached the disk: zeros."""
    keys, lines, last = set(), 0, b""
    for last in rest:
        if lines == 0 and last.partition(b"\0")[0].strip().strip(b"0123456789"):
            return False  # none of ours begins so
        if b"\0" in last:
            return True
        keys |= {_value(KEY, last)} - {""}
        lines += 1
    return len(keys) == 1 or lines < 2 or (lines == 2 and not last.endswith(b"\n"))


def _value(pattern: re.Pattern[bytes], comment: bytes) -> str:
    """As it stands there, "" where it does not."""
    match = pattern.search(comment)
    return "" if match is None else match[1].decode(errors="replace")
