"""A file in; how long the work took that is told there, all sessions together, out: what is left of `max_time` once it was killed."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

BEAT = 5.0  # s: so much of a session that was killed may not be told


def seconds_in(path: Path) -> float:
    """0 where nothing is told."""
    with suppress(OSError, ValueError):
        return max(float(path.read_text("ascii")), 0.0)
    return 0.0


@contextmanager
def told_in(path: Path, began: float) -> Iterator[None]:
    """While the block runs, and however it ends, the file has the seconds since `began` (of time.monotonic)."""
    file, over = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), threading.Event()

    def tell() -> None:
        os.pwrite(file, f"{monotonic() - began:15.1f}\n".encode(), 0)  # of one length, in one go: no kill leaves half a number

    def beat() -> None:
        while not over.wait(BEAT):
            tell()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()
        os.close(file)
