"""The name of a file in; a place beside it to write to out, which takes that name once it is whole, and else leaves nothing behind."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn
from uuid import uuid4

# what ends a program that does not listen; Ctrl-C is Python's own
ENDING = signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write to the file that this gives: when the block ends, it is on the disk under the name `path`, in one step.

    However the block ends before that, by an error, Ctrl-C or SIGTERM too, what was at `path` stays as it was, and nothing beside it.
    Two writers do not disturb each other: the last one wins. A link is followed; a pipe or a device is written to as it is.
    Raises OSError, which names `path`, where that cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    aside = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
    with undone_by_signals():
        try:
            aside.touch()  # what cannot be written is told before the work, not after it
            yield aside
            to_disk(aside)
            aside.replace(path)
            to_disk(path.parent)  # the new name has to reach the disk too
        except OSError as error:
            if error.filename in (None, str(aside)):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        finally:
            aside.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Come back when the file, or the names in the folder, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def undone_by_signals() -> Iterator[None]:
    """Let a signal that ends the process run the `finally` of this block first; then the process ends of it all the same.

    Only signals that nobody else listens to, and only in the main thread: elsewhere Python hears none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [signum for signum in ENDING if signal.getsignal(signum) is signal.SIG_DFL]
    try:
        for signum in ours:
            signal.signal(signum, _end)
        yield
    except _Ended as ended:
        signal.signal(ended.signum, signal.SIG_DFL)
        signal.raise_signal(ended.signum)
    finally:
        for signum in ours:
            signal.signal(signum, signal.SIG_DFL)


class _Ended(BaseException):
    """Not an error: nothing on the way up may take it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # a second one shall not cut the `finally` short
    raise _Ended(signum)
