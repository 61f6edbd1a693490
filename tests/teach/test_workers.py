"""Teachers that do everything wrong, and workers that outlive it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk

from flashace.errors import FlashACEError
from flashace.teach.task import Failure, Label
from flashace.teach.teachers import Teacher
from flashace.teach.workers import AHEAD, Cluster, Workers

BAD = """
import os, signal, sys, time
from ase.calculators.emt import EMT

class Odd(Exception):  # one that cannot be pickled
    def __init__(self, one, other):
        super().__init__("odd")

def odd():
    raise Odd(1, 2)

WAYS = {
    "raise": lambda: {}["no such"],
    "odd": odd,
    "sys.exit": lambda: sys.exit("enough"),
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda: time.sleep(100),
    "memory": lambda: bytearray(4 * 10**9),
}

class Bad(EMT):
    def calculate(self, atoms, *rest):
        print("noise")
        way = atoms.info.get("way")
        WAYS.get(way, lambda: None)()
        super().calculate(atoms, *rest)
        if way == "nan":
            self.results["energy"] = float("nan")
        if way == "threads":
            ones = sum(os.environ[name] == "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
            self.results["energy"] = self.results["free_energy"] = float(ones)

class Broken(EMT):
    def __init__(self):
        raise OSError("no weights")

class Deadly(EMT):
    def __init__(self):
        os._exit(7)

class Light(EMT):
    def calculate(self, *rest):
        super().calculate(*rest)
        self.results["energy"] = self.results["free_energy"] = float("torch" in sys.modules)
"""


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of bad teachers, which workers can import."""
    (tmp_path / "bad_teachers.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    return "bad_teachers"


def copper(way: str = "", seed: int = 0) -> Label:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=seed)
    atoms.info["way"] = way
    return Label(f"{way}{seed}", atoms)


@pytest.mark.slow
def test_each_way_to_fail_is_named_and_the_rest_goes_on(bad: str) -> None:
    ways = ["", "raise", "odd", "exit", "", "sys.exit", "kill", "segfault", "hang", "memory", "nan", "", "threads"]
    tasks = [copper(way, i) for i, way in enumerate(ways)]
    results = {task.key: result for task, result in Workers(Teacher(f"{bad}:Bad"), 2, timeout=2.0, memory=2.0).run(tasks)}
    assert len(results) == len(ways)
    expected = {
        "raise1": "KeyError: 'no such'",
        "odd2": "Odd: odd",
        "exit3": "the worker ended itself with exit status 3",
        "sys.exit5": "SystemExit: enough",
        "kill6": "the worker was ended by SIGKILL: out of memory?",
        "segfault7": "the worker was ended by SIGSEGV",
        "hang8": "no answer within 2 s (--timeout)",
        "memory9": "MemoryError:",
        "nan10": "energy: expected finite numbers of shape (), got array(nan)",
    }
    reasons = {key: result.reason for key, result in results.items() if isinstance(result, Failure)}
    assert reasons == expected
    assert all(results[key].atoms == next(t.atoms for t in tasks if t.key == key) for key in expected)
    assert results["0"][0].info["source"] == f"{bad}:Bad"
    assert results["threads12"][0].get_potential_energy() == 2  # one thread, and nothing is changed here
    assert "MKL_NUM_THREADS" not in os.environ


def test_frames_are_those_of_the_task_done_here() -> None:
    tasks = [copper(seed=i) for i in range(5)]
    results = dict(Workers(Teacher("emt")).run(iter(tasks)))
    for task in tasks:
        (expected,), (frame,) = task(Teacher("emt").calculator()), results[task]
        assert frame == expected
        assert frame.calc.results["energy"] == expected.calc.results["energy"]
        assert (frame.calc.results["stress"] == expected.calc.results["stress"]).all()


def test_what_a_teacher_was_not_taught_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, result),) = Workers(Teacher("tblite")).run([Label("a", Atoms("UH2", [(0, 0, 0), (0, 0, 2), (0, 2, 0)]))])
    assert isinstance(result, Failure)
    assert result.reason == "the teacher does not know U"


@pytest.mark.parametrize(
    ("teacher", "parts"),
    [
        (Teacher("bad_teachers:Broken"), ("bad_teachers:Broken", "no weights")),
        (Teacher("bad_teachers:Missing"), ("bad_teachers:Missing",)),
        (Teacher("emt", ("a=1", "b")), ("name=value",)),
        (Teacher("bad_teachers:Deadly"), ("bad_teachers:Deadly", "before they have begun")),
        (Teacher("flashace:none.pt"), ("none.pt",)),
    ],
)
def test_a_teacher_that_cannot_be_made_is_one_error(bad: str, teacher: Teacher, parts: tuple[str, ...]) -> None:
    with pytest.raises(FlashACEError) as error:
        list(Workers(teacher).run(copper(seed=i) for i in range(3)))
    assert all(part in str(error.value) for part in parts)


def test_few_tasks_are_taken_ahead() -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield copper(seed=taken)

    with closing(Workers(Teacher("emt"), 2).run(endless())) as results:
        for done in range(1, 8):
            next(results)
            assert taken <= done + 2 * AHEAD


def test_no_tasks_no_calculator(bad: str) -> None:
    assert list(Workers(Teacher(f"{bad}:Broken")).run([])) == []


def test_a_light_teacher_does_not_load_torch(bad: str) -> None:
    ((_, (frame,)),) = Workers(Teacher(f"{bad}:Light")).run([copper()])
    assert frame.get_potential_energy() == 0.0


def test_importing_the_workers_does_not_import_torch() -> None:
    code = "import sys, flashace.teach.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_workers_end_with_a_parent_that_is_killed(bad: str, tmp_path: Path, marked_processes: Callable[[], list[str]]) -> None:
    script = tmp_path / "parent.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(tmp_path)!r})
from ase.build import bulk
from flashace.teach.task import Label
from flashace.teach.teachers import Teacher
from flashace.teach.workers import Workers

def tasks():
    yield Label("0", bulk("Cu"))
    yield Label("1", bulk("Cu"))
    while True:
        atoms = bulk("Cu")
        atoms.info["way"] = "hang"
        yield Label("x", atoms)

if __name__ == "__main__":
    for task, result in Workers(Teacher("bad_teachers:Bad"), 2).run(tasks()):
        print(task.key, flush=True)
""")
    marked = {**os.environ, "FLASHACE_TEST_MARK": str(tmp_path)}
    program = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=marked, text=True)
    assert program.stdout is not None
    for _ in range(2):
        program.stdout.readline()
    program.kill()
    program.wait()
    end = time.monotonic() + 20
    while marked_processes() and time.monotonic() < end:
        time.sleep(0.05)
    assert marked_processes() == []
    program.stdout.close()


@pytest.mark.slow
def test_a_dask_cluster_does_the_same(bad: str) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        crew = Cluster(cluster.scheduler_address, Teacher(f"{bad}:Bad"), timeout=3.0)
        results = {task.key: result for task, result in crew.run([copper("", 0), copper("raise", 1), copper("hang", 2), copper("", 3)])}
        assert results["raise1"].reason == "KeyError: 'no such'"
        assert results["hang2"].reason == "no answer within 3 s (--timeout)"
        assert all(results[key][0].info["source"] == f"{bad}:Bad" for key in ("0", "3"))
        with pytest.raises(FlashACEError, match="no weights"):
            list(Cluster(cluster.scheduler_address, Teacher(f"{bad}:Broken")).run([copper()]))


def test_without_dask_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(FlashACEError, match=r"pip install '\.\[dask\]'"):
        list(Cluster("tcp://nowhere:1", Teacher("emt")).run([copper()]))
