"""Tasks and a teacher in; the labelled frames of each, or the reason why there are none, out, as other processes finish them."""

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from contextlib import suppress
from itertools import chain, islice
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from flashace.errors import FlashACEError
from flashace.teach.task import Failure, Task
from flashace.teach.teachers import Teacher

AHEAD = 2  # tasks given to each worker before it has finished the first: it never waits, and no more than these are in memory
PATIENCE = 3  # times that all workers may end before one of them has begun with a task
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
LONGEST = 500  # characters of a reason

Results = Generator[tuple[Task, list[Atoms] | Failure], None, None]

_here = threading.local()  # of a worker: .teacher and the .calculator that it has made


class Workers:
    """Processes on this machine, each with a calculator of its own and one thread."""

    def __init__(self, teacher: Teacher, num: int = 1, timeout: float = 600.0, memory: float | None = None) -> None:
        """`timeout` (s) is for one task; `memory` (GB) is what a worker may take, the program itself included."""
        self.teacher, self.num, self.timeout, self.memory = teacher, num, timeout, memory

    def run(self, tasks: Iterable[Task]) -> Results:
        """Each task with its frames, whose `info` has the `source`; or with what kept it from having any.

        An exception, NaN, a death of the worker and a task beyond its time are Failures; the rest goes on. `tasks` may be endless: few are
        taken ahead. Close the iterator (`contextlib.closing`) where it is left early: the workers end then, whatever they do.
        As `multiprocessing` has it, a script that calls this needs `if __name__ == "__main__":`.
        Raises FlashACEError where the teacher cannot be made.
        """
        queue = iter(tasks)
        running: dict[ProcessFuture, Task] = {}
        broken = 0
        while broken < PATIENCE:
            pool = ProcessPool(self.num, initializer=_begin, initargs=(self.teacher, self.memory), context=_Context())
            try:
                while True:
                    for task in islice(queue, AHEAD * self.num - len(running)):
                        running[pool.schedule(_work, (self.teacher, task), timeout=self.timeout)] = task
                    if not running:
                        return
                    wait(running, return_when=FIRST_COMPLETED)
                    for future in [future for future in running if future.done()]:
                        result = self._result(future, running[future])
                        broken = 0
                        yield running.pop(future), result
            except BrokenExecutor:  # a worker died that had no task: what was given out is given out again
                broken += 1
                queue, running = chain(list(running.values()), queue), {}
            finally:
                pool.stop()
                pool.join()
        raise FlashACEError(
            f"teacher {self.teacher.source}: its workers end before they have begun; see above what they say"
            + (f", and whether --memory {self.memory:g} is enough" if self.memory else "")
        )

    def _result(self, future: ProcessFuture, task: Task) -> list[Atoms] | Failure:
        error = future.exception()
        if error is None:
            result: list[Atoms] | Failure = future.result()
            return result
        if isinstance(error, TimeoutError):
            return failure(task, late(self.timeout))
        if isinstance(error, ProcessExpired):
            return failure(task, death(error.exitcode))
        raise error


class Cluster:
    """The workers of a Dask cluster, on other machines too, in place of processes here; dask-jobqueue starts them under Slurm or PBS."""

    def __init__(self, address: str, teacher: Teacher, timeout: float = 600.0) -> None:
        """`address` of the scheduler, such as tcp://node17:8786."""
        self.address, self.teacher, self.timeout = address, teacher, timeout

    def run(self, tasks: Iterable[Task]) -> Results:
        """As `Workers.run`. A task whose worker dies is tried again on others, as often as the scheduler is told to (three times)."""
        try:
            from distributed import Client, KilledWorker
            from distributed import wait as wait_for
        except ImportError as error:
            raise FlashACEError(f"scheduler: dask.distributed is not installed ({error}); pip install '.[dask]'") from error
        queue = iter(tasks)
        running: dict[Any, tuple[Task, float]] = {}
        with Client(self.address) as client:
            client.wait_for_workers(1)
            while True:
                for task in islice(queue, max(1, sum(client.nthreads().values())) - len(running)):  # none waits: its time runs from here on
                    running[client.submit(_work, self.teacher, task, pure=False)] = task, time.monotonic()
                if not running:
                    return
                with suppress(TimeoutError):
                    wait_for(list(running), timeout=1.0, return_when="FIRST_COMPLETED")
                for future, (task, since) in list(running.items()):
                    too_late = not future.done() and time.monotonic() - since > self.timeout
                    if too_late:
                        holders = [worker for worker, keys in client.processing().items() if future.key in keys]
                        future.cancel()
                        client.restart_workers(holders)
                        yield task, failure(task, late(self.timeout))
                    elif not future.done():
                        continue
                    elif isinstance(future.exception(), KilledWorker):
                        yield task, failure(task, f"each worker that had it died: {future.exception()}")
                    elif (wrong := future.exception()) is not None and not isinstance(wrong, FlashACEError):
                        raise FlashACEError(
                            f"scheduler {self.address}: expected workers with the same FlashACE and teacher as here, "
                            f"got {type(wrong).__name__}: {wrong}; install them there"
                        ) from wrong
                    else:
                        yield task, future.result()
                    del running[future]


def failure(task: Task, reason: str) -> Failure:
    """With the structure that the task is about, where it has one; the reason on one line."""
    reason = " ".join(reason.split())
    return Failure(task.key, reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}…", getattr(task, "atoms", None))


def late(timeout: float) -> str:
    """Why a task that took longer has no frames."""
    return f"no answer within {timeout:g} s (--timeout)"


def death(status: int | None) -> str:
    """Why a task whose worker ended has none."""
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"the worker was ended by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"the worker ended itself with exit status {status}"


# In a worker


def _begin(teacher: Teacher, memory: float | None) -> None:
    """What a worker does before its first task; making the calculator is not in the time of a task."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what calculators print there would tear the progress bar
    if memory is not None:
        asked, most = int(memory * 1e9), resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = asked if most == resource.RLIM_INFINITY else min(asked, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))  # not RLIMIT_AS: CUDA reserves more addresses than there is memory
    with suppress(FlashACEError):  # the first task says it
        _calculator(teacher)


def serve(pipe: Any, teacher: Teacher) -> None:
    """The work of a process that `Guarded` asks: what the calculator has, or why there is none; then an answer to each `Label`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal reaches it too; who asks decides
    _begin(teacher, None)
    try:
        calculator = _calculator(teacher)
    except FlashACEError as error:
        pipe.send(error)
        return
    pipe.send((list(calculator.implemented_properties), getattr(calculator, "r_max", None)))
    with suppress(EOFError):
        while True:
            pipe.send(_work(teacher, pipe.recv()))


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they may have hours to go."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(teacher: Teacher, task: Task) -> list[Atoms] | Failure:
    """Raises FlashACEError where there is no calculator; whatever else goes wrong is a Failure."""
    calculator = _calculator(teacher)
    unknown = teacher.unknown(getattr(task, "atoms", Atoms()).symbols)
    if unknown:
        return failure(task, f"the teacher does not know {', '.join(unknown)}")
    try:
        frames = task(calculator)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - teachers are others' programs; whatever they raise is the reason
        _here.calculator = None  # nobody knows what state it is in
        own = isinstance(error, CalculationFailed) and str(error)
        return failure(task, str(error) if own else f"{type(error).__name__}: {error}")
    for frame in frames:
        frame.info["source"] = teacher.source
    return frames or failure(task, "the task gave no frames")


def _calculator(teacher: Teacher):  # type: ignore[no-untyped-def]
    """The one of this process, or of this thread of a Dask worker."""
    if getattr(_here, "teacher", None) != teacher or _here.calculator is None:
        try:
            _here.calculator = teacher.calculator()
        except FlashACEError:
            raise
        except Exception as error:
            raise FlashACEError(f"teacher {teacher.source}: expected a calculator, got {type(error).__name__}: {error}") from error
        _here.teacher = teacher
    return _here.calculator


class _Process(SpawnProcess):
    """One that starts with one thread: the libraries of numbers ask the environment when they are loaded, which is before `_begin`."""

    def start(self) -> None:
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)
        try:
            super().start()
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


class _Context(SpawnContext):
    Process = _Process
