"""What is said of energies and forces on structures that no data has."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential

from flashace import verify
from flashace.verify.hard_structures import Hard
from flashace.verify.outside_data import Sanity, Usual, judge

USUAL = Usual(-4.0, -3.0, 2.0)


def judged(energies, forces, usual=USUAL, r=2.0):
    """Of pairs of silicon at `r` whose energies are these, with these forces."""
    structures = [Hard(str(n), Atoms("Si2", [(0, 0, 0), (r, 0, 0)])) for n in range(len(energies))]
    results = [(2 * (e - 100.0), np.array([[f, 0, 0], [-f, 0, 0]])) for e, f in zip(energies, forces, strict=True)]
    return judge(structures, results, {14: -100.0}, usual, {(14, 14): 2.0})


def test_what_lies_between_training_and_free_atoms_is_known():
    found = judged([-4.0, 0.0, -1.0], [0.0, 29.0, 1.0])
    assert found == Sanity(0.0, 8.0, "0", 29.0, 30.0, "1")
    assert found.worst == pytest.approx(29 / 30)
    assert judged([-5.0, -1.0], [0, 0])[:3] == (1.0, 8.0, "0")
    assert judged([-1.0, 10.0], [0, 0])[:3] == (10.0, 8.0, "1")
    assert judged([1.0], [0], usual=Usual(0.5, 2.0, 1.0))[0] == 0.0


def test_bars_are_those_of_the_training_data_where_these_are_higher():
    assert judged([0.0], [0.0], Usual(-5.0, 0.0, 20.0))[1::3] == (10.0, 60.0)
    assert judged([0.0], [0.0], Usual(0.1, 3.0, 0.1))[1::3] == (8.0, 30.0)


def test_where_atoms_are_close_high_energies_and_their_forces_are_the_repulsions():
    assert judged([1e6], [1e6], r=1.79)[::3] == (0.0, 0.0)
    assert judged([1e6], [1e6], r=1.81)[::3] == (1e6, 1e6)
    assert judged([-1e6], [1e6], r=1.0)[0] == 1e6 - 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_the_worst(bad):
    assert judged([1e9, bad], [0, 0]).energy_of == "1"
    assert judged([0, bad], [0, 0]).energy == np.inf
    assert judged([0, 0], [1e9, bad])[3:] == (np.inf, 30.0, "1")
    assert judged([0, 0], [0, bad]).worst == np.inf


# The law


SANE = {
    "EMT, copper": (EMT, lambda: bulk("Cu")),
    "EMT, an alloy": (EMT, lambda: bulk("CuAu", "rocksalt", a=4.6)),
    "Lennard-Jones, argon": (lambda: LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0), lambda: bulk("Ar", "fcc", a=5.3)),
    "Morse": (lambda: MorsePotential(r0=2.7, epsilon=0.5, rho0=4.0), lambda: bulk("Cu")),
}


@pytest.mark.parametrize("name", SANE)
def test_a_sane_calculator_passes(name):
    make_calculator, make_atoms = SANE[name]
    result = verify.sanity(make_calculator(), verify.shaken(make_atoms()))
    assert result.passed, result
    assert result.detail.startswith("energies at most")


class Broken(EMT):
    """Copper that is right where it is dense, and another thing where it is not."""

    def __init__(self, energy, force):
        super().__init__()
        self.change = energy, force

    def calculate(self, *arguments):
        super().calculate(*arguments)
        r = self.atoms.get_all_distances(mic=bool(self.atoms.pbc.any())) + 9 * np.eye(len(self.atoms))
        few = ((r < 3.0).sum(axis=1) < 5) & (r.min(axis=1) < 4.0)
        energy, force = self.change
        self.results["energy"] += energy * few.sum() if few.any() else 0.0
        self.results["free_energy"] = self.results["energy"]
        self.results["forces"][few, 0] += force


@pytest.mark.parametrize(("energy", "force"), [(-30.0, 0.0), (30.0, 0.0), (0.0, 60.0), (np.nan, 0.0)])
def test_the_law_bites_where_coordination_is_low(energy, force):
    crystal = verify.shaken(bulk("Cu", cubic=True).repeat(2))
    good, broken = verify.sanity(Broken(0.0, 0.0), crystal), verify.sanity(Broken(energy, force), crystal)
    assert (good.passed, broken.passed) == (True, False)
    if np.isnan(energy):
        assert "Cu-Cu at" in broken.detail
        assert "is not finite" in broken.detail
