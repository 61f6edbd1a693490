"""The time of a fit, with a clock that only the test moves."""

from types import SimpleNamespace

import pytest

from flashace.train import clock as module
from flashace.train.clock import CLOSING_FRAMES, FEWEST_FRAMES, PICTURES, Clock
from flashace.train.config import TrainConfig


@pytest.fixture
def now(monkeypatch):
    """[seconds]"""
    seconds = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def clock(**options):
    return Clock(100.0, TrainConfig(**options), num_train=900, num_valid=100, num_ranks=1)


def test_without_max_time_epochs_count(now):
    fit = clock(epochs=4)
    now[0] = 1e6
    assert [fit.progress(epochs) for epochs in (0.0, 1.0, 4.0, 5.0)] == [0.0, 0.25, 1.0, 1.0]
    assert fit.has_time_to_validate()
    assert fit.seconds_left() == float("inf")
    assert fit.too_short() is None


def test_with_max_time_the_schedule_runs_from_the_first_step_to_the_closing(now):
    fit = clock(max_time=10.0)
    now[0] = 160.0
    assert fit.progress(0.0) == 0.0  # nothing counts before the first step is done
    fit.first_step_done()
    for part in (0.0, 0.5, 1.0, 2.0):
        now[0] = 160.0 + part * (540.0 - PICTURES)
        assert fit.progress(0.0) == pytest.approx(min(part, 1.0))
    fit.seconds_per_frame = 0.1
    now[0] = 100.0 + 600.0 - fit.seconds_to_close()
    assert fit.progress(0.0) == pytest.approx(1.0)
    assert fit.seconds_to_close() == pytest.approx(0.1 * (100 + 2 * (FEWEST_FRAMES + 100)) + PICTURES)


@pytest.mark.parametrize(
    ("seconds_per_frame", "frames"), [(0.0, CLOSING_FRAMES), (1e-9, CLOSING_FRAMES), (0.05, 300), (10.0, FEWEST_FRAMES)]
)
def test_the_closing_looks_at_as_many_frames_as_there_is_time_for(seconds_per_frame, frames):
    fit = clock(max_time=10.0)
    fit.seconds_per_frame = seconds_per_frame
    assert fit.closing_frames == frames


def test_time_of_earlier_sessions_counts(now):
    fit = clock(max_time=10.0)
    fit.spent_before = fit.elapsed = 200.0
    fit.step_done()
    assert fit.elapsed == 200.0  # the first step of a session counts nothing
    fit.first_step_done()
    now[0] += 7.0
    fit.step_done()
    assert fit.elapsed == 207.0
    assert fit.progress(0.0) == pytest.approx(207.0 / (600.0 - PICTURES))


def test_a_validation_and_a_fit_that_do_not_fit_in(now):
    fit = clock(max_time=10.0)
    fit.seconds_per_frame = 0.1
    assert fit.has_time_to_validate()
    assert fit.too_short() is None
    now[0] = 100.0 + 600.0 - fit.seconds_to_close() - 5.0  # a validation takes 10 s
    assert not fit.has_time_to_validate()
    now[0] += 10.0
    assert fit.too_short().startswith("max_time: this fit will take 10.1 instead of 10 minutes: ")
