"""The seconds of earlier sessions in; what is left for this one out."""

import time
from pathlib import Path

import pytest

from flashace.teach import spent
from flashace.teach.spent import seconds_in, told_in


def test_sessions_add_up_however_they_end(tmp_path: Path) -> None:
    path = tmp_path / "seconds"
    assert seconds_in(path) == 0
    with pytest.raises(KeyboardInterrupt), told_in(path, time.monotonic() - 1000):
        raise KeyboardInterrupt
    assert seconds_in(path) == pytest.approx(1000, abs=5)
    with told_in(path, time.monotonic() - seconds_in(path) - 10):
        pass
    assert seconds_in(path) == pytest.approx(1010, abs=5)


def test_a_session_that_is_killed_has_told_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spent, "BEAT", 0.01)
    path = tmp_path / "seconds"
    with told_in(path, time.monotonic() - 50):
        end = time.monotonic() + 60
        while seconds_in(path) < 50 and time.monotonic() < end:
            time.sleep(0.01)
        assert seconds_in(path) >= 50


@pytest.mark.parametrize("text", ["", "none", "-3", "\N{SUPERSCRIPT TWO}"])
def test_what_is_no_time_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "seconds"
    path.write_text(text, "utf-8")
    assert seconds_in(path) == 0
