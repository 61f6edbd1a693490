"""One fit writes to a folder, and the next one hears who that is."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from flashace.cli.run_folder import default_folder
from flashace.errors import FlashACEError
from flashace.train.lock import locked

HOLD = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec); spec.loader.exec_module(lock)
with lock.locked(pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_another_process_is_named_and_its_death_ends_its_lock(tmp_path):
    folder, source = tmp_path / "run", sys.modules[locked.__module__].__file__
    other = subprocess.Popen([sys.executable, "-c", HOLD, source, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
    with other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FlashACEError, match=rf"run: .*but process {other.pid} on .* does; wait .* --output"), locked(folder):
            pass
        other.kill()
    assert (folder / ".lock").exists()  # what the killed one left stands in nobody's way
    with locked(folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    assert list(folder.iterdir()) == []


def test_a_thread_may_ask_again_and_another_may_not(tmp_path):
    seen = []

    def other():
        try:
            with locked(tmp_path):
                seen.append("locked")
        except FlashACEError as error:
            seen.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in seen[0]
    with locked(tmp_path):
        pass


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a/run"):
        _ = 1 / 0
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "b"):
        (tmp_path / "b/model.pt").touch()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["model.pt"]
    with pytest.raises(FileExistsError), locked(tmp_path / "b", new=True):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    told = []
    with locked(tmp_path, tell=told.append):
        pass
    assert "this file system has no locks (Operation not supported)" in told[0]


def test_default_folders_are_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as locks:
        names = [default_folder("some/data.extxyz", False, locks).name for _ in range(3)]
    assert names == ["data", "data-2", "data-3"]
