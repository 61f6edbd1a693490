"""A folder in; a context out in which no other fit writes there."""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flashace.errors import FlashACEError

NAME = ".lock"
_mine = threading.local()  # .folders: those that this thread has locked


@contextmanager
def locked(folder: Path, new: bool = False, tell: Callable[[str], Any] = lambda message: None) -> Iterator[None]:
    """No other fit has the folder meanwhile, in this process, on this machine or, where the file system can, on another.

    The folder is made where it is not there; with `new` it must not be there. Left empty, it goes again, and so do those above it.
    The system takes the lock back when the process ends, however it ends. A thread may lock twice what it has.
    `tell` hears of a file system without locks. Raises FlashACEError that names who has the folder, and FileExistsError.
    """
    place = os.path.realpath(folder)
    held = _mine.__dict__.setdefault("folders", set())
    if place in held and not new:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=not new)
    file = _lock(folder, tell)
    held.add(place)
    try:
        yield
    finally:
        held.discard(place)
        (folder / NAME).unlink(missing_ok=True)  # before the lock goes: afterwards it may be another's
        os.close(file)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _lock(folder: Path, tell: Callable[[str], Any]) -> int:
    """The open file that has the lock; in it stands who we are."""
    while True:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise FlashACEError(
                f"{folder}: expected a folder that no other fit writes to, but {who} does; "
                "wait until it has ended, or name another folder with --output"
            ) from None
        except OSError as error:
            tell(f"{folder}: this file system has no locks ({error.strerror}), so nothing keeps a second fit out of this folder")
        if (folder / NAME).exists() and os.path.samestat(os.fstat(file), (folder / NAME).stat()):
            break
        os.close(file)  # whoever had it has deleted it between our two calls
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})".encode())
    return file
