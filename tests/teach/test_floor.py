"""A teacher with planted faults in; each of them found, with the right size, out."""

import io
import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from rich.console import Console

from flashace.errors import FlashACEError
from flashace.teach.floor import Floor, floor_of, floor_table
from flashace.teach.limited import Limited
from flashace.teach.locality import answers_beyond, heights_of, repeat_to
from flashace.teach.noise import noise_of
from flashace.verify.state import evaluate

CUTOFF = 4.0  # Å, of `Pairs` without a tail


class Pairs(Calculator):
    """A smooth strictly local pair potential and, where planted: noise, a force that has no energy, and a tail k (r - R)² beyond R = 5 Å.

    Open boundaries, or cells more than 16 Å wide.
    """

    implemented_properties = ["energy", "forces"]

    def __init__(self, noise: float = 0.0, curl: float = 0.0, tail: float = 0.0, reach: float = 7.0) -> None:
        super().__init__()
        self.noise, self.curl, self.tail, self.reach = noise, curl, tail, reach
        self.random = np.random.default_rng(5)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        vec = self.atoms.get_all_distances(mic=bool(self.atoms.pbc.any()), vector=True)  # [i, j]: from i to j
        r = np.linalg.norm(vec, axis=2) + 100 * np.eye(len(self.atoms))
        x = np.clip(1 - r / CUTOFF, 0, None)
        energy, slope = 3 * x**4, -12 * x**3 / CUTOFF
        if self.tail:
            far = (r > 5) & (r < self.reach)
            energy, slope = energy + far * self.tail * (r - 5) ** 2, slope + far * 2 * self.tail * (r - 5)
        forces = (slope[:, :, None] * vec / r[:, :, None]).sum(1)
        forces += self.random.normal(scale=self.noise, size=forces.shape)
        forces += self.curl * np.cross(forces, [0, 0, 1])
        self.results = {"energy": energy.sum() / 2 + self.random.normal(scale=self.noise), "forces": forces}


@pytest.fixture(scope="module")
def cluster() -> Atoms:
    """27 atoms 2.6 Å apart."""
    atoms = bulk("Cu", "sc", a=2.6).repeat(3)
    atoms.pbc = False
    atoms.rattle(0.1, seed=2)
    return atoms


def test_noise_has_its_size(cluster: Atoms) -> None:
    assert noise_of(Pairs(), cluster).forces < 1e-9
    noise = noise_of(Pairs(noise=0.02), cluster)
    assert noise.forces == pytest.approx(20, rel=0.15)
    assert 4 < noise.energy * len(cluster) < 40


def test_noise_of_a_crystal_that_is_turned_and_shifted_through_its_cell() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    noise = noise_of(EMT(), atoms)
    assert noise.energy < 1e-9
    assert noise.forces < 1e-9


def floor(calculator: Calculator, *structures: Atoms, r_max: float = 5.0) -> Floor:
    return floor_of(calculator, structures, r_max, seconds=5.0, most_atoms=60)


def test_forces_that_are_no_slope_are_said_plainly(cluster: Atoms) -> None:
    assert floor(Pairs(), cluster).conservative is True
    found = floor(Pairs(curl=0.3), cluster)
    assert found.conservative is False
    assert found.in_words()[0].startswith("NOT CONSERVATIVE")


def test_a_jump_at_the_cutoff_is_found(cluster: Atoms) -> None:
    smooth, cut = floor(Pairs(), cluster), floor(LennardJones(sigma=2.3, epsilon=0.4, rc=4.5), bulk("Cu", a=3.7))
    broken = [{law.law for law in found.laws if law.passed is False} for found in (smooth, cut)]
    assert broken[0] <= {"pair repulsion"}
    assert {"cutoff with a lone neighbour", "force jumps of a pair"} <= broken[1]
    assert any(text.startswith("cutoff with a lone neighbour: BROKEN") for text in cut.in_words())


def test_the_answer_to_what_is_beyond_has_the_size_of_the_tail(cluster: Atoms) -> None:
    """To first order, a neighbour that moves by u changes the force by 2k u along r and 2k (1 - 5/r) u across; u is 0.1/√3 Å in each
    direction."""
    k = 1e-3
    variances = []
    for corner in (0, 26):  # the centre of the cluster, the third one that is drawn, has nothing beyond
        r = np.delete(cluster.get_distances(corner, range(27)), corner)
        r = r[r > 5]
        variances.append((2 * k) ** 2 * ((1 + 2 * (1 - 5 / r) ** 2) / 3).sum() * 0.1**2 / 3)
    whole, half = (answers_beyond(Pairs(tail=tail, reach=100.0), [cluster], [5.0])[0].forces for tail in (k, k / 2))
    assert whole == pytest.approx(1e3 * np.mean(variances) ** 0.5, rel=0.5)  # one rattle for each centre
    assert half == pytest.approx(whole / 2, rel=1e-6)


def test_nothing_answers_beyond_the_reach_of_a_potential(cluster: Atoms) -> None:
    near, far = answers_beyond(Pairs(), [cluster], [2.0, CUTOFF])
    assert near.forces > 1
    assert far.forces == 0


def test_a_larger_r_max_helps_where_the_tail_ends(cluster: Atoms) -> None:
    said = floor(Pairs(tail=0.2, reach=5.9), cluster).in_words()[-1]
    assert said.endswith("a larger r_max would help"), said
    assert "hardly anything" in floor(Pairs(), cluster).in_words()[-1]


def test_what_cannot_be_measured_says_why() -> None:
    beyond = floor(EMT(), molecule("CO"), r_max=5.0).answers
    assert {answer.why for answer in beyond} == {"nothing is beyond it in these structures"}
    (answer,) = answers_beyond(EMT(), [bulk("Cu")], [5.0], most_atoms=20)
    assert answer.forces is None
    assert "more than 20 atoms" in answer.why


def test_a_cell_is_repeated_until_the_sphere_fits() -> None:
    large = repeat_to(bulk("Cu"), 5.0, 500)
    assert heights_of(large).min() > 10
    assert len(large) <= 500
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    assert repeat_to(slab, 5.0, 500).cell.lengths().tolist() == pytest.approx([10.83, 10.83, 3.61])


def test_the_table_and_json_have_everything() -> None:
    found = floor(EMT(), bulk("Cu", cubic=True))
    assert "more than 60 atoms" in found.answers[0].why
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(floor_table(found, "emt"))
    text = console.export_text()
    assert "locality: beyond 5 Å" in text
    assert "noise of forces" in text
    assert json.loads(json.dumps(found.to_dict()))["r_max"] == 5.0


def test_a_teacher_that_does_not_know_an_element_is_named() -> None:
    with pytest.raises(FlashACEError, match="it cannot do"):
        floor(EMT(), bulk("Si"))
    with pytest.raises(FlashACEError, match="at least one structure"):
        floor(EMT())


def test_time_ends_a_law(cluster: Atoms) -> None:
    over = Limited(Pairs(), seconds=0.0)
    found = floor_of(Pairs(), [cluster], 5.0, seconds=0.0)
    assert found.conservative is None
    assert all(law.passed is None and "takes longer" in law.detail for law in found.laws)
    with pytest.raises(CalculationFailed, match="takes longer than the 0 s"):
        evaluate(over, cluster)
