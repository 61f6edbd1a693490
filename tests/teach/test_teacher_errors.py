"""Labelled frames and teachers with known errors in; these errors, kind by kind, and the better teacher out."""

import io
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from rich.console import Console

from flashace.data.frames import Labelled
from flashace.data.origin import Origin
from flashace.errors import FlashACEError
from flashace.teach.teacher_errors import compare_teachers, drawn, teacher_errors, teacher_table
from flashace.verify.state import evaluate


class Off(Calculator):
    """EMT plus a constant for each element, plus noise on the forces; no stress."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, noise: float, cu: float = 0.0, au: float = 0.0) -> None:
        super().__init__()
        self.noise, self.zero, self.random = noise, {"Cu": cu, "Au": au}, np.random.default_rng(1)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        state = evaluate(EMT(), self.atoms, with_stress=False)
        constant = sum(self.zero[symbol] for symbol in self.atoms.symbols)
        self.results = {
            "energy": state.energy + constant,
            "forces": state.forces + self.random.normal(scale=self.noise, size=state.forces.shape),
        }


@pytest.fixture(autouse=True)
def _short_cutoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashace.teach.teacher_errors.QUICK_R_MAX", 3.5)


@pytest.fixture(scope="module")
def frames() -> list[Labelled]:
    """Of EMT: 24 of copper and 6 of an alloy."""
    return [labelled(i) for i in range(30)]


def labelled(i: int) -> Labelled:
    atoms = bulk("Cu", cubic=True)
    if i >= 24:
        atoms.numbers[: i % 3 + 1] = 79
    atoms.rattle(0.1, seed=i)
    state = evaluate(EMT(), atoms)
    labels = {"energy": state.energy, "forces": state.forces, "stress": state.virial / atoms.get_volume()}
    return Labelled.of(atoms, labels, "alloy" if i >= 24 else "copper", Origin("emt", i))


def test_a_teacher_is_right_about_its_own_labels(frames: list[Labelled]) -> None:
    found = teacher_errors(EMT(), frames)
    assert [(kind.kind, kind.frames) for kind in found.kinds] == [("alloy", 6), ("copper", 24), ("all", 30)]
    assert max(max(kind.energy, kind.forces, kind.stress) for kind in found.kinds) < 1e-6
    assert not found.failed


def test_another_zero_is_found_and_no_error(frames: list[Labelled]) -> None:
    found = teacher_errors(Off(0.0, cu=3.0, au=-1.0), frames)
    assert found.zero.values == pytest.approx({"Cu": 3.0, "Au": -1.0}, abs=1e-6)
    assert found.kinds[-1].energy < 1e-3
    assert found.kinds[-1].stress is None
    assert max(map(abs, found.left_over.values())) < 1e-3


def test_one_composition_cannot_tell_elements_apart_and_says_so(frames: list[Labelled]) -> None:
    alloy = [frame for frame in frames if frame.atoms.get_chemical_formula() == "AuCu3"]
    assert "cannot tell apart Cu, Au" in teacher_errors(Off(0.0, cu=3.0), alloy).zero.origin


def test_errors_of_forces_have_their_size(frames: list[Labelled]) -> None:
    kind = teacher_errors(Off(0.05), frames).kinds[-1]
    assert kind.forces == pytest.approx(50, rel=0.1)
    size = np.sqrt(np.mean(np.concatenate([frame.forces for frame in frames]) ** 2))
    assert kind.size == pytest.approx(1e3 * size)


def test_the_better_teacher_is_the_one_that_leaves_less_to_learn(frames: list[Labelled]) -> None:
    """Noise cannot be learned, whatever its size; what is told in the sentence are the numbers."""
    found = compare_teachers({"noisy": Off(0.5), "right": Off(0.0, cu=3.0)}, frames)
    assert found.best == "right"
    right, noisy = (found.teachers[name].kinds[-1] for name in ("right", "noisy"))
    assert right.helped < 0.01 * right.alone
    assert right.expectation().startswith("knows what the frames do not tell")
    assert noisy.helped > noisy.alone
    assert noisy.expectation().startswith("the frames know better")


def test_few_frames_are_told_by_the_error_alone(frames: list[Labelled]) -> None:
    kind = teacher_errors(Off(0.05), frames[:5]).kinds[-1]
    assert kind.alone is None
    assert "too few frames" in kind.expectation()
    none = teacher_errors(EMT(), [replace(frames[0], forces=None)]).kinds[-1]
    assert none.expectation() == "no forces to compare with"


def test_frames_are_drawn_evenly_of_each_kind(frames: list[Labelled]) -> None:
    chosen = drawn([*frames, replace(frames[0], atoms=Atoms("Cu"))], most=3)
    assert [frame.origin.index for frame in chosen] == [0, 11, 23, 24, 26, 29]


def test_what_a_teacher_cannot_do_is_listed(frames: list[Labelled]) -> None:
    silicon = replace(frames[0], atoms=bulk("Si"), origin=Origin("si", 0), forces=None, stress=None)
    found = teacher_errors(EMT(), [*frames[:3], silicon])
    assert found.kinds[-1].frames == 3
    assert found.failed[0].startswith("si#0: ")
    with pytest.raises(FlashACEError, match="take a teacher that knows these elements"):
        teacher_errors(EMT(), [silicon])
    compared = compare_teachers({"emt": EMT(), "lj": LennardJones(sigma=2.0)}, [silicon])
    assert compared.best == "lj"
    assert list(compared.put_aside) == ["emt"]
    with pytest.raises(FlashACEError, match=r"emt: .*; other: "):
        compare_teachers({"emt": EMT(), "other": EMT()}, [silicon])


def test_the_table_has_teachers_side_by_side(frames: list[Labelled]) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(teacher_table(compare_teachers({"one": EMT(), "two": Off(0.1)}, frames).teachers))
    lines = console.export_text().splitlines()
    for name in ("one", "two"):
        assert sum(f"│ {name} " in line for line in lines) == 3
