"""Dynamics and relaxations under a teacher: no label is computed twice, and what explodes ends."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

from flashace.teach.sampling.dynamics import dynamics, temperatures_of, timestep
from flashace.teach.sampling.relaxation import STEPS, Relaxation
from flashace.teach.sampling.trajectory import Trajectory
from flashace.teach.task import labelled


class Counting(EMT):
    """It counts how often it computes, and says that forces are enormous from `limit` on."""

    def __init__(self, limit=np.inf):
        super().__init__()
        self.calls, self.limit = 0, limit

    def calculate(self, *arguments):
        self.calls += 1
        super().calculate(*arguments)
        if self.calls >= self.limit:
            self.results["forces"] = self.results["forces"] + 1e6


def trajectory(**changes):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    return Trajectory(
        **{"atoms": atoms, "temperature": 600.0, "timestep": 2.0, "interval": 4, "num_frames": 3, "max_force": 40.0, "seed": 5, **changes}
    )


def test_labels_of_dynamics_are_those_of_the_teacher_and_cost_nothing_more():
    teacher = Counting()
    frames = trajectory()(teacher)
    assert teacher.calls == 1 + 3 * 4
    assert [frame.info["config_type"] for frame in frames] == ["md-600K"] * 3
    for frame in frames:
        again = labelled(frame, EMT())
        assert frame.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-10)
        assert np.allclose(frame.get_forces(), again.get_forces(), atol=1e-10)
        assert np.allclose(frame.get_stress(), again.get_stress(), atol=1e-12)
    assert np.allclose(frames[-1].positions, trajectory()(EMT())[-1].positions)  # the same anywhere
    assert not np.allclose(frames[-1].positions, trajectory(seed=6)(EMT())[-1].positions)


def test_a_trajectory_that_explodes_gives_what_it_has():
    frames = trajectory()(Counting(limit=7))
    assert len(frames) == 1
    assert "expected at most 40" in frames[0].info["ended"]
    with pytest.raises(CalculationFailed, match="expected at most 40"):
        trajectory()(Counting(limit=2))


def test_the_temperature_is_reached():
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    frames = trajectory(atoms=atoms, temperature=900.0, timestep=4.0, interval=10, num_frames=15)(EMT())
    moved = [np.sqrt(((frame.positions - atoms.positions) ** 2).mean()) for frame in frames[5:]]
    assert 0.08 < np.mean(moved) < 0.3  # the harmonic value at 900 K is 0.13 Å


def test_the_pressure_is_reached_and_the_cell_keeps_its_shape():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array @ np.diag([1.0, 1.0, 1.1]), scale_atoms=True)
    for pressure in (-3.0, 20.0):
        frames = trajectory(atoms=atoms, num_frames=60, interval=10, timestep=4.0, pressure=pressure)(EMT())
        assert frames[0].info["config_type"] == f"md-600K-{pressure:g}GPa"
        found = [
            -frame.get_stress()[:3].mean() / units.GPa + 600 * units.kB * len(atoms) / frame.get_volume() / units.GPa for frame in frames
        ]
        assert np.mean(found[20:]) == pytest.approx(pressure, abs=1.5)
        assert np.allclose(frames[-1].cell.array / frames[-1].cell[0, 0], atoms.cell.array / atoms.cell[0, 0])


def test_every_seed_meets_every_temperature(copper, alloy, rng, settings):
    tasks = dynamics([copper, alloy], 40, rng, settings)
    assert {(task.temperature, len(set(task.atoms.numbers))) for task in tasks} == {(300, 1), (300, 2), (900, 1), (900, 2)}
    assert sum(task.num_frames for task in tasks) == 40
    assert len({task.seed for task in tasks}) == len(tasks)
    volumes = [task.atoms.get_volume() for task in tasks if len(set(task.atoms.numbers)) == 1]
    assert np.ptp(volumes) > 1.0


def test_time_step_and_temperatures_follow_the_seeds(copper, ethanol):
    assert (timestep(ethanol.atoms), timestep(copper.atoms)) == (0.5, 2.0)
    assert temperatures_of("crystal", 3.5)[2] == pytest.approx(1230, abs=15)  # copper melts at 1358 K
    assert temperatures_of("crystal", None)[0] == 300
    assert temperatures_of("molecule", 3.5) == temperatures_of("molecule", None)


def test_a_relaxation_goes_downhill_and_stops_when_it_is_done():
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.2, seed=3)
    teacher = Counting()
    frames = Relaxation("interstitial", atoms)(teacher)
    assert len(frames) == len(STEPS)
    energies = [frame.get_potential_energy() for frame in frames]
    assert energies == sorted(energies, reverse=True)
    assert teacher.calls <= 1 + sum(STEPS)
    assert len(Relaxation("interstitial", bulk("Cu", a=3.59))(EMT())) == 1
