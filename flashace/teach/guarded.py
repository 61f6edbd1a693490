"""The name of a teacher in; a calculator out whose work is done in a process of its own, which may hang, die or raise what it likes."""

import multiprocessing
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes

from flashace.errors import FlashACEError
from flashace.teach.task import Failure, Label
from flashace.teach.teachers import Teacher
from flashace.teach.workers import death, late, serve

MAKING = 600.0  # s, at least, in which a calculator has to be made
PATIENCE = 2  # times in a row without an answer, until a teacher is asked no more


class Guarded(Calculator):
    """A teacher for what this process measures of it, with the care that labels are made with: see `Workers`.

    Whatever goes wrong with a structure raises CalculationFailed with the reason, and the next one is asked of a new process where the old
    one is gone. A teacher that has hung or died two times in a row is asked no more: each time may have cost `timeout`.
    As a context it ends its process.
    """

    def __init__(self, teacher: Teacher, timeout: float = 600.0) -> None:
        """`timeout` (s) is for one structure. Nothing is started yet."""
        super().__init__()
        self.teacher, self.timeout = teacher, timeout
        self._process: Any = None
        self._pipe: Any = None
        self._silent = 0  # times in a row that no answer came
        self._knows: list[str] | None = None
        self._unmade: FlashACEError | None = None  # what is said of a calculator that cannot be made

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
    ) -> None:
        """Energy, forces and stress as `labelled` has them, whatever is asked for: the same numbers as a label."""
        super().calculate(atoms, properties, system_changes)
        self.start()
        answer = self._answer(Label("", Atoms(self.atoms)), self.timeout)
        if isinstance(answer, Failure):
            raise CalculationFailed(answer.reason)
        self.results = dict(answer[0].calc.results)

    @property
    def implemented_properties(self) -> list[str]:  # type: ignore[override]
        """Those of the calculator, which is made for that."""
        if self._knows is None:
            self.start()
        return self._knows or []

    def start(self) -> None:
        """Make the calculator, where there is none. Raises FlashACEError where that cannot be done, and
        CalculationFailed where it hangs or dies."""
        if self._unmade is not None:
            raise self._unmade
        if self._silent >= PATIENCE:
            raise CalculationFailed(f"{self.teacher.source} is asked no more, after {PATIENCE} times in a row without an answer")
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self.teacher), daemon=True)
        self._process.start()
        theirs.close()
        made = self._answer(None, max(self.timeout, MAKING))
        if isinstance(made, FlashACEError):
            self.close()
            self._unmade = made
            raise made
        self._knows, r_max = made
        if r_max is not None:
            self.r_max = r_max  # laws look for it

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _answer(self, question: Label | None, seconds: float) -> Any:
        """What comes within the time. Raises CalculationFailed where nothing does; the process has ended then."""
        try:
            if question is not None:
                self._pipe.send(question)
            if self._pipe.poll(seconds):
                answer = self._pipe.recv()
                if question is not None:
                    self._silent = 0
                return answer
            reason = late(seconds)
        except (EOFError, OSError):  # it has died
            self._process.join()
            reason = death(self._process.exitcode)
        except BaseException:  # Ctrl-C: an answer that comes later would be taken for that to another question
            self.close()
            raise
        self._silent += 1
        self.close()
        raise CalculationFailed(reason)
