"""The name of a run folder in; the folder, ready for the files of one fit and of no other, out."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashace.errors import FlashACEError
from flashace.evaluate.suspects import NAME
from flashace.train.checkpoint import BEST, checkpoints_in
from flashace.train.config import FitConfig, load_config, write_config
from flashace.train.lock import locked

ALWAYS_LEFT = ("model.pt", "metrics.csv", "learning_curve.png", "parity.png")
LEFT_BY_A_FIT = (*ALWAYS_LEFT, NAME)


@dataclass(frozen=True)
class RunFolder:
    """Where a fit writes."""

    path: Path
    checkpoints: Path

    @property
    def is_whole(self) -> bool:
        """Whether all is there that every fit leaves."""
        return all((self.path / name).is_file() for name in ALWAYS_LEFT)

    def make_ready(self, config: FitConfig, overwrite: bool, locks: ExitStack, tell: Callable[[str], Any]) -> None:
        """For a new fit: what one left there is deleted. Raises FlashACEError where its checkpoints might not be ours to delete."""
        self._lock_checkpoints(locks, tell)
        if checkpoints_in(self.checkpoints) and not (overwrite and self._owns_checkpoints):
            raise FlashACEError(f"checkpoint_dir: {self.checkpoints} holds checkpoints of another fit; name another folder or empty it")
        left = [self.path / name for name in LEFT_BY_A_FIT]
        for path in [*left, *checkpoints_in(self.checkpoints), self.checkpoints / BEST]:
            path.unlink(missing_ok=True)
        self._delete_partial()
        write_config(self.path / "config.yaml", config)

    def go_on(self, config: FitConfig, locks: ExitStack, tell: Callable[[str], Any]) -> None:
        """For the same fit: it keeps the options that it had, but for its length, which may be another now."""
        self._lock_checkpoints(locks, tell)
        self._delete_partial()
        file = self.path / "config.yaml"
        before = load_config(file, {})
        longer = replace(before, train=replace(before.train, epochs=config.train.epochs, max_time=config.train.max_time))
        if longer != before:
            write_config(file, longer)

    @property
    def _owns_checkpoints(self) -> bool:
        return self.checkpoints.resolve().is_relative_to(self.path.resolve())

    def _lock_checkpoints(self, locks: ExitStack, tell: Callable[[str], Any]) -> None:
        if not self._owns_checkpoints:
            locks.enter_context(locked(self.checkpoints, tell=tell))

    def _delete_partial(self) -> None:
        """Of a writer that was killed: nobody else writes here now."""
        for path in self.path.glob("*.partial"):
            path.unlink(missing_ok=True)
