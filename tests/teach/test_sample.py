"""Plans, and what becomes of them."""

import io
import pickle
from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.io import read
from rich.console import Console

from flashace.errors import FlashACEError
from flashace.teach import sample as module
from flashace.teach.config import sample_config
from flashace.teach.sample import cohesion, frames_in, journal_of, plan, sample
from flashace.teach.task import Failure, labelled

SETTINGS = sample_config({"teacher": "emt", "num": 60, "max_atoms": 8, "temperatures": (300, 900)})


def kinds(tasks):
    found = Counter()
    for task in tasks:
        found[task.kind] += frames_in(task)
    return found


def test_the_same_plan_for_the_same_seed_and_other_keys_for_another():
    seeds = [bulk("Cu"), molecule("CH3CH2OH")]
    plans = [plan(seeds, 60, 1, SETTINGS) for _ in range(2)]
    assert [task.key for task in plans[0]] == [task.key for task in plans[1]]
    for one, other in zip(*plans, strict=True):
        assert np.array_equal(one.atoms.positions, other.atoms.positions)
    keys = {task.key for task in plans[0]}
    assert len(keys) == len(plans[0])
    assert not any(" " in key for key in keys)
    others = {task.key for task in plan(seeds, 60, 2, SETTINGS)}
    assert {key.rsplit("-", 2)[0] for key in keys & others} == {"isolated_atom", "seed"}


def test_numbers_of_frames():
    tasks = plan([bulk("Cu"), molecule("CH3CH2OH")], 200, 0, SETTINGS)
    found = kinds(tasks)
    assert found.pop("isolated_atom") == 4
    assert [task.kind for task in tasks[:4]] == ["isolated_atom"] * 4
    assert sum(found.values()) == 200
    dynamics = found["md-300K"] + found["md-900K"]
    assert 0.4 * 200 < dynamics < 0.55 * 200
    assert found["torsion"] + found["torsion-relaxed"] == pytest.approx(25, abs=2)
    assert found["surface"] + found["opened"] == pytest.approx(15, abs=2)


def test_what_a_seed_does_not_allow_falls_to_the_dynamics():
    found = kinds(plan([molecule("C6H6")], 100, 0, SETTINGS))
    assert not {"torsion", "proton", "contact"} & set(found)
    assert found["md-300K"] + found["md-900K"] == 74


def test_a_crystal_of_one_atom_is_a_seed_and_an_atom_alone_is_none():
    alone = [Atoms("Cu"), Atoms("Au", cell=[15, 15, 15], pbc=True)]
    found = kinds(plan([bulk("Cu"), *alone], 60, 0, SETTINGS))
    assert found.pop("isolated_atom") == 2
    assert found["seed"] == 1
    assert sum(found.values()) == 60
    with pytest.raises(FlashACEError, match="got 2 single atoms alone"):
        plan(alone, 60, 0, SETTINGS)


def test_tasks_do_the_same_in_another_process():
    for task in plan([bulk("Cu")], 30, 0, SETTINGS):
        frames = task(EMT())
        again = pickle.loads(pickle.dumps(task))(EMT())
        assert [f.get_potential_energy() for f in frames] == [f.get_potential_energy() for f in again]
        assert {frame.info["config_type"] for frame in frames} == {task.kind}
        assert len(frames) <= frames_in(task)


class Here:
    """Workers in this process; what they are told to fail at, they fail at."""

    fails = ()
    done: list[str] = []

    def __init__(self, teacher, num=1, timeout=600.0, memory=None):
        self.teacher = teacher

    def run(self, tasks):
        calculator = EMT()
        for task in tasks:
            Here.done.append(task.key)
            if task.kind in self.fails:
                yield task, Failure(task.key, "no convergence after 37 steps", task.atoms)
                continue
            try:
                yield task, [f for f in task(calculator) if f.info.update(source="emt") is None]
            except CalculationFailed as error:
                yield task, Failure(task.key, str(error), task.atoms)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(module, "Workers", Here)
    monkeypatch.setattr(Here, "fails", ())
    monkeypatch.setattr(Here, "done", [])
    return Here


def run(tmp_path, **changes):
    console = Console(file=io.StringIO(), width=140)
    frames = sample([bulk("Cu")], sample_config({"teacher": "emt", "num": 40, "max_atoms": 8, **changes}), tmp_path / "out.extxyz", console)
    return frames, console.file.getvalue()


def test_temperatures_follow_the_cohesion_and_the_file_is_whole(here, tmp_path):
    frames, said = run(tmp_path)
    assert {"md-310K", "md-740K", "md-1240K", "md-1980K"} <= {frame.info["config_type"] for frame in frames}
    assert len(here.done) == len(set(here.done))
    written = read(tmp_path / "out.extxyz", ":")
    assert [frame.info["task"] for frame in written] == [frame.info["task"] for frame in frames]
    assert all(frame.calc.results.keys() >= {"energy", "forces"} for frame in written)
    assert sorted(path.name for path in tmp_path.iterdir() if "failed" not in path.name) == ["out.extxyz"]
    for word in ("Decisions", "teacher", "time step 2 fs", "Labelled", "isolated_atom", "energy per atom"):
        assert word in said


def test_failures_and_large_forces_are_put_aside_with_their_reasons(here, tmp_path, monkeypatch):
    monkeypatch.setattr(here, "fails", ("vacancy",))
    frames, said = run(tmp_path, max_force=4.0, temperatures=(300,))
    assert "vacancy" not in {frame.info["config_type"] for frame in frames}
    assert max(np.linalg.norm(frame.get_forces(), axis=1).max() for frame in frames) <= 4.0
    aside = read(tmp_path / "out.journal.failed.extxyz", ":")
    reasons = [frame.info["reason"] for frame in aside]
    assert "no convergence after 37 steps" in reasons
    assert any("expected at most 4 (--max-force)" in reason for reason in reasons)
    assert "no convergence after … steps" in said


def test_a_run_that_was_ended_goes_on_and_makes_no_label_twice(here, tmp_path, monkeypatch):
    class Ended(Here):
        def run(self, tasks):
            for n, result in enumerate(super().run(tasks)):
                if n == 12:
                    raise KeyboardInterrupt
                yield result

    monkeypatch.setattr(module, "Workers", Ended)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, temperatures=(300,))
    assert journal_of(tmp_path / "out.extxyz").exists()
    before = len(here.done)
    monkeypatch.setattr(module, "Workers", Here)
    frames, said = run(tmp_path, temperatures=(300,))
    assert "12 of" in said
    assert len(set(here.done)) == len(here.done) - 1  # the one whose result was lost
    assert before == 13
    kept = frames
    frames, _ = run(tmp_path, temperatures=(300,))
    assert [f.get_potential_energy() for f in frames] == pytest.approx([f.get_potential_energy() for f in kept])


def test_a_teacher_that_can_do_nothing_is_an_error(here, tmp_path, monkeypatch):
    everything = {task.kind for task in plan([bulk("Cu")], 40, 0, SETTINGS)} | {"md-1200K", "md-2000K", "md-700K"}
    for fails in (everything, everything - {"isolated_atom"}):
        monkeypatch.setattr(here, "fails", fails)
        with pytest.raises(FlashACEError, match=r"expected labels, got none .*out\.journal\.failed\.extxyz says why"):
            run(tmp_path)
        (tmp_path / "out.journal.failed.extxyz").unlink()


def test_cohesion_needs_all_elements_alone():
    crystal = labelled(bulk("Cu"), EMT(), config_type="seed")
    atom = labelled(Atoms("Cu"), EMT(), config_type="isolated_atom")
    assert cohesion([atom, crystal]) == pytest.approx(3.51, abs=0.02)
    assert cohesion([crystal]) is None
    assert cohesion([atom]) is None
