"""What the tests of the commands share: an empty folder, errors of one line, the program in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flashace.evaluate import report

PROGRAM = Path(sys.executable).with_name("flashace")


@pytest.fixture(autouse=True)
def _empty_folder_and_no_pictures(tmp_path, monkeypatch, run_folder):
    """Pictures take a second each; `run_folder` has them, and was made before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "learning_curve", lambda *arguments: None)
    monkeypatch.setattr(report, "parity", lambda *arguments: None)


@pytest.fixture(scope="session")
def one_line_error():
    def check(result, *parts):
        """Exit status 1 and, after tables at most, a single line that starts with Error and has these parts."""
        assert result.exit_code == 1, result.output
        lines = [line for line in result.output.splitlines() if line]
        assert lines[-1].startswith("Error: "), result.output
        assert "Traceback" not in result.output
        for part in parts:
            assert re.search(part, lines[-1]), lines[-1]

    return check


@pytest.fixture(scope="session")
def start():
    """start("fit", …): the program, in a process of its own."""

    def run(*arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )

    return run
