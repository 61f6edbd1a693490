"""Files are whole or not there, whatever ends the writer; and what was there before stays."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from flashace.files import ENDING, undone_by_signals, whole_file

pytestmark = pytest.mark.usefixtures("signals_as_usual")

WRITER = """
import sys
from flashace.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as file:
        file.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as file:
        file.write_text("half\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("signum", [signal.SIGINT, *ENDING], ids=lambda signum: signum.name)
def test_a_signal_leaves_what_was_there_and_ends_the_process(tmp_path, signum):
    path = tmp_path / "a.txt"
    path.write_text("old")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **pipes)
    assert writer.stdout.readline() == b"writing\n"
    assert len(list(tmp_path.iterdir())) == 2
    writer.send_signal(signum)
    writer.communicate(timeout=60)
    assert writer.returncode == -signum
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_listens_to_a_signal_goes_on_hearing_it(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("one"))
    try:
        with whole_file(tmp_path / "a.txt") as file:
            os.kill(os.getpid(), signal.SIGTERM)
            file.write_text("new")
        assert heard == ["one"]
    finally:
        signal.signal(signal.SIGTERM, before)
    with undone_by_signals():
        assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_another_thread_writes_too(tmp_path):
    def write():
        with whole_file(tmp_path / "a.txt") as file:
            file.write_text("new")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_of_two_writers_the_last_one_wins(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as slow:
        slow.write_text("slow, and longer")
        with whole_file(path) as fast:
            fast.write_text("fast")
        assert path.read_text() == "fast"
    assert path.read_text() == "slow, and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed_and_devices_stay(tmp_path):
    (tmp_path / "link").symlink_to("a.txt")
    for name in ("link", os.devnull):
        with whole_file(tmp_path / name) as file, file.open("w") as out:
            out.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not os.path.isfile(os.devnull)


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "none/a.txt") as file:
        file.write_text("new")
    assert caught.value.filename == str(tmp_path / "none/a.txt")
