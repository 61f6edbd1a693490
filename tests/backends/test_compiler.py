"""Compiled libraries: nothing is left of a compilation that a signal ends, neither files nor processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("signals_as_usual")

COMPILE = """
import sys
import time
from pathlib import Path
from flashace.backends.compiler import cached_library
cached_library([sys.argv[1]], [Path(sys.argv[2])], "a-{}.so")
"""
COMPILER = """#!/bin/sh
test "$1" = --version && exit
sleep 600 &
echo $! > "$TMPDIR/assembly.s"
echo "$TMPDIR/assembly.s" > {begun}
exec sleep 600
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_signal_leaves_nothing(tmp_path, signum, monkeypatch):
    cache, scratch, compiler, source = (tmp_path / name for name in ("cache", "scratch", "cc", "a.c"))
    scratch.mkdir()
    compiler.write_text(COMPILER.format(begun=tmp_path / "begun"))
    compiler.chmod(0o755)
    source.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TMPDIR", str(scratch))
    program = subprocess.Popen([sys.executable, "-c", COMPILE, compiler, source], stderr=subprocess.PIPE)
    while not (tmp_path / "begun").is_file() or not (tmp_path / "begun").read_text():
        assert program.poll() is None
    child = Path((tmp_path / "begun").read_text().strip()).read_text().strip()
    assert running(child)
    program.send_signal(signum)
    program.communicate(timeout=60)
    assert program.returncode == -signum
    assert list(scratch.iterdir()) == []
    assert list((cache / "flashace").iterdir()) == []
    deadline = time.monotonic() + 30  # killed it is; to end takes a moment
    while running(child):
        assert time.monotonic() < deadline


def running(pid: str) -> bool:
    """Whether there is such a process; one that is dead and not yet buried does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
