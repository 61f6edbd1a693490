"""`flashace label`, as a user types it: said, refused, killed, and typed again."""

import os
import random
import signal
import sys
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import read, write

from flashace.cli.main import main
from flashace.teach.journal import Journal

SLOW_TEACHER = """
import os
import time
from ase.calculators.emt import EMT

class Slow(EMT):
    def calculate(self, atoms, *rest):
        time.sleep(float(os.environ["FLASHACE_TEST_PAUSE"]))
        if atoms.numbers[0] == 14:
            time.sleep(100)
        super().calculate(atoms, *rest)
"""


def coppers(number):
    frames = []
    for i in range(number):
        atoms = bulk("Cu")
        atoms.rattle(0.1, seed=i)
        frames.append(atoms)
    return frames


def test_what_is_done_is_said(flashace):
    frames = [*coppers(3), bulk("Si"), coppers(1)[0]]
    frames[1].info["REF_energy"] = 1.0
    frames[2].set_initial_magnetic_moments([1.0])
    write("in.extxyz", frames)
    first = flashace("label", "in.extxyz", "--teacher", "emt", "-o", "out.extxyz")
    assert first.exit_code == 0
    for line in (
        "teacher    emt: effective medium theory",
        "structures 5 given, 1 of them twice, 4 to label",
        "1 come with labels of their own, which are left behind",
        "1 have charges or magnetic moments",
        "labelled   3 in this run, 0 before: out.extxyz",
        "put aside  1 in this run, 0 before: out.failed.extxyz",
        "1 × NotImplementedError: No EMT-potential for Si",
    ):
        assert line in first.output
    again = flashace("label", "in.extxyz", "--teacher", "emt", "-o", "out.extxyz")
    assert "3 labelled before, 1 put aside before, 0 to label" in again.output
    assert flashace("check", "out.extxyz").exit_code == 0


def test_exit_status_1_where_nothing_has_a_label(flashace):
    write("in.extxyz", bulk("Si"))
    assert flashace("label", "in.extxyz", "--teacher", "emt", "-o", "out.extxyz").exit_code == 1


def test_mistakes_are_one_line(flashace, one_line_error):
    write("in.extxyz", coppers(1))
    write("out.failed.extxyz", coppers(1))

    def run(*arguments):
        return flashace("label", "in.extxyz", *arguments)

    one_line_error(run("--teacher", "emt", "-o", "in.extxyz"), "expected another file than those that are read")
    one_line_error(flashace("label", "out.failed.extxyz", "--teacher", "emt", "-o", "out.extxyz"), "expected another file than those")
    one_line_error(run("--teacher", "mace", "-o", "out.extxyz"), "expected emt, tblite", "mace")
    one_line_error(run("--teacher", "emt", "--teacher-arg", "colour", "-o", "new.extxyz"), "name=value", "colour")
    one_line_error(
        run("--teacher", "fractions:Fraction", "--teacher-arg", "colour=3", "-o", "new.extxyz"), "Fraction", "colour", "--teacher-arg"
    )
    assert not Path("new.extxyz").exists()  # nor is a file left that nothing was ever in
    one_line_error(
        run("--teacher", "emt", "-o", "new.extxyz", "--scheduler", "tcp://a:1", "--workers", "2"), "neither --workers nor --memory"
    )
    one_line_error(flashace("label", "none.extxyz", "--teacher", "emt", "-o", "new.extxyz"), "none.extxyz")
    one_line_error(run("--teacher", "emt", "-o", "folder/out.extxyz"), "folder")


def test_a_student_labels_too(flashace, model_file):
    atoms = bulk("SiC", "zincblende", a=4.36)
    atoms.rattle(0.05, seed=0)
    write("in.extxyz", atoms)
    result = flashace("label", "in.extxyz", "--teacher", f"flashace:{model_file}", "--teacher-arg", "kernel=plain", "-o", "out.extxyz")
    assert result.exit_code == 0, result.output
    assert read("out.extxyz").info["source"] == f"flashace:{model_file} kernel=plain"


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_makes_each_label_once(tmp_path, signals_as_usual, marked_processes):
    (tmp_path / "slow_teacher.py").write_text(SLOW_TEACHER)
    write("in.extxyz", [*coppers(300), bulk("Si")])
    random.seed(0)
    endings = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT] * 3 + [signal.SIGKILL]
    kept = 0
    for i, signum in enumerate(endings):
        program = start(tmp_path)
        if i % 3:
            wait_for(lambda kept=kept: size("out.extxyz") > kept, program)
            time.sleep(random.choice([0.0, 0.02, 0.2]) * random.random())
        else:  # perhaps before it has begun
            time.sleep(2 * random.random())
        os.kill(program.pid, signum)
        program.join()
        assert program.exitcode in (-signum, *((130, 1) if signum == signal.SIGINT else ()))
        wait_for(lambda: not marked_processes())
        kept = size("out.extxyz")
    with Journal("out.extxyz") as journal:
        assert 0 < len(journal.done) < 300
    program = start(tmp_path, "--timeout", "2", pause=0.0)
    program.join()
    assert program.exitcode == 0
    made = Counter(atoms.info["origin"] for atoms in read("out.extxyz", ":"))
    assert made == {f"in.extxyz#{i}": 1 for i in range(300)}
    assert read("out.failed.extxyz").info["reason"] == "no answer within 2 s (--timeout)"


def start(place, *arguments, pause=0.2):
    """The command in a fork, which has the imports behind it; its workers start anew. With this pause (s), ten runs that last two seconds
    each do not label 300 structures, however fast the machine is."""
    program = ["label", "in.extxyz", "--teacher", "slow_teacher:Slow", "-o", "out.extxyz", "--workers", "2", *arguments]
    process = get_context("fork").Process(target=_run, args=(place, program, pause))
    process.start()
    return process


def _run(place, arguments, pause):
    os.environ |= {"FLASHACE_TEST_MARK": str(place), "FLASHACE_TEST_PAUSE": str(pause)}
    sys.path.insert(0, str(place))
    main(arguments)


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def wait_for(condition, program=None):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        assert program is None or program.is_alive(), program.exitcode
        time.sleep(0.002)
