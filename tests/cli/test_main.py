"""The program: its help, its version, its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from flashace.cli import main

ALL_HELP = """
import sys
from flashace.cli.main import COMMANDS, main
for arguments in ([], *([command] for command in COMMANDS)):
    main([*arguments, "--help"], standalone_mode=False)
    assert not {"torch", "scipy"} & set(sys.modules), arguments
"""


def test_help_is_there_before_pytorch_is():
    """Which takes seconds to import."""
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout


def test_every_command_stands_in_the_file_of_its_name():
    shared = {"__init__", "fields", "main", "run_folder", "shared", "teaching", "terminal"}
    assert {file.stem for file in Path(main.__file__).parent.glob("*.py")} - shared == set(main.COMMANDS)


def test_help_and_version(flashace):
    from flashace import __version__

    assert __version__ in flashace("--version").output
    for command in main.COMMANDS:
        assert command in flashace("--help").output
        assert flashace(command, "--help").exit_code == 0
    for flag in ("--output DIR", "--epochs N", "--max-time MIN", "--seed", "--device", "--dtype", "--resume", "--config"):
        assert flag.split()[0] in flashace("fit", "--help").output


@pytest.mark.slow
def test_the_program_shows_no_traceback(start):
    program = start("fit", "no.extxyz")
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 1
    assert output.splitlines() == ["Error: no.extxyz: expected a file of structures, found no such file; check the path"]
