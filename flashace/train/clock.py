"""The time of a fit: how far it has come, how much its end will take, and for how many frames that is enough."""

import math
import time

from flashace.train.config import TrainConfig

CLOSING_FRAMES = 10_000  # evenly drawn from each set, for the closing table, the pictures and the uncertainty
# What comes after the last step has to fit into `max_time` too
CLOSING_PASSES = 2.0  # times that a prediction of each of these frames takes: predictions, features, errors
CLOSING_PART = 0.1  # of `max_time`: where all of them would take longer, fewer are drawn
FEWEST_FRAMES = 200  # but not fewer than these
PICTURES = 8.0  # s, with what matplotlib takes to load


class Clock:
    """Seconds of one session of a fit, of which `started` was the first, and of those before.

    The schedule of a fit with `max_time` runs over the time that is left for steps: from the end of the first, which may compile, until
    what its end takes has to begin.
    """

    def __init__(self, started: float, config: TrainConfig, num_train: int, num_valid: int, num_ranks: int) -> None:
        self.started, self.config = started, config
        self.num_train, self.num_valid, self.num_ranks = num_train, num_valid, num_ranks
        self.first_step: float | None = None  # when the first step of this session was done
        self.spent_before = 0.0  # s on training in earlier sessions
        self.elapsed = 0.0  # s on training, in all of them
        self.seconds_per_frame = 0.0  # of a prediction; known after the first step of a fit with `max_time`

    @staticmethod
    def now() -> float:
        """In seconds; only differences mean something."""
        return time.monotonic()

    def first_step_done(self) -> None:
        """From here on time counts."""
        self.first_step = self.now()

    def step_done(self) -> None:
        """Read the clock, once the first step is done."""
        if self.first_step is not None:
            self.elapsed = self.now() - self.first_step + self.spent_before

    def progress(self, epochs: float) -> float:
        """From 0 at the first step to 1 at the last, by `epochs` done and by time, whichever ends first."""
        done = epochs / self.config.epochs if self.config.epochs else 0.0
        if self.config.max_time:
            now = self.now()
            first_step = now if self.first_step is None else self.first_step
            whole = self.started + self.config.max_time * 60 - self.seconds_to_close() - first_step
            done = max(done, (self.spent_before + now - first_step) / max(whole, 1e-9))
        return min(done, 1.0)

    def seconds_left(self) -> float:
        """Of `max_time`; infinite without."""
        return self.started + (self.config.max_time or math.inf) * 60 - self.now()

    def seconds_to_close(self) -> float:
        """Foreseen from the last step to the end: the last validation, the closing table, the uncertainty, the pictures."""
        frames = sum(min(number, self.closing_frames) for number in (self.num_train, self.num_valid))
        predictions = self.num_valid / self.num_ranks + CLOSING_PASSES * frames
        pictures = min(PICTURES, CLOSING_PART * (self.config.max_time or math.inf) * 60)
        return self.seconds_per_frame * predictions + pictures

    @property
    def closing_frames(self) -> int:
        """How many frames of each set the end of the fit looks at: CLOSING_FRAMES, or as many as `max_time` has time for."""
        if not self.config.max_time or not self.seconds_per_frame:
            return CLOSING_FRAMES
        affordable = CLOSING_PART * self.config.max_time * 60 / (2 * CLOSING_PASSES * self.seconds_per_frame)
        return min(CLOSING_FRAMES, max(FEWEST_FRAMES, int(affordable)))

    def has_time_to_validate(self) -> bool:
        """Whether there is time for a validation now besides the one at the end."""
        if not self.config.max_time:
            return True
        seconds = self.seconds_per_frame * self.num_valid / self.num_ranks
        return self.now() + seconds + self.seconds_to_close() < self.started + self.config.max_time * 60

    def too_short(self) -> str | None:
        """A sentence where `max_time` is over before a second step."""
        before, after, budget = (self.now() - self.started) / 60, self.seconds_to_close() / 60, self.config.max_time or math.inf
        if before + after <= budget:
            return None
        return (
            f"max_time: this fit will take {before + after:.1f} instead of {budget:g} minutes: {before:.1f} until its first step "
            f"was done, {after:.1f} for validation and closing table, nothing for further steps"
        )
