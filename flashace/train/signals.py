"""Ctrl-C and SIGTERM in; the word that a fit is to end, between two of its steps, out."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import is_torchelastic_launched

from flashace.train.ranks import LostRank


class GivenUp(BaseException):
    """A signal came while a step could be given up; no error, so that nothing on the way takes it for one."""


@contextmanager
def stop_signals(may_give_up: Callable[[], bool]) -> Iterator[list[int]]:
    """The signals that asked for an end: Ctrl-C and SIGTERM are heard between two steps; a second one ends everything at once.

    Not under torchrun: it passes on what it hears, so a signal of the queue to all processes arrives twice.
    Where `may_give_up` says so, the first one raises GivenUp at once. In a thread none is heard: Python gives them to the main thread.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def hear(signum: int, frame: Any) -> None:
        if received and not is_torchelastic_launched():
            raise KeyboardInterrupt
        received.append(signum)
        if may_give_up():
            raise GivenUp

    before = {signum: signal.signal(signum, hear) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except LostRank:
        before.clear()  # torchrun ends what is left of the fit; the error is to be read before
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
