"""Faults planted in the embedded data: each is found, named, and mended by what `check` says. Whole files are read, as a user's are.

`python tests/train/test_check.py` prints the table of docs/check.md.
"""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from flashace.check import check, conventions
from flashace.check.before_fit import look
from flashace.check.duplicates import same_structures
from flashace.check.finding import Finding, by_file, list_frames
from flashace.check.linear_ace import LinearACE, Rows
from flashace.data.frames import LabelKeys, isolated_atom_energies, read_labelled
from flashace.data.origin import Origin
from flashace.potential.model_file import read_header
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph
from flashace.train.config import make_config
from flashace.train.prepare import prepare

DATA = Path(__file__).resolve().parents[2] / "examples/data"
SOME = [9, 21, 36, 52, 72, 104]  # displaced frames of perfect crystals


class Fault(NamedTuple):
    plant: Callable[[list[Atoms]], list[Atoms] | None]
    severity: str
    what: str  # of the finding
    frames: list[int] | None = None  # that it names; None where that is not the point
    data: str = "sic"
    mended: str | None = None  # label that is as before after the script


def scale(label: str, factor: float, chosen: list[int] | None = None) -> Callable[[list[Atoms]], None]:
    def plant(frames: list[Atoms]) -> None:
        for i, atoms in enumerate(frames):
            if label in atoms.calc.results and (chosen is None or i in chosen):
                atoms.calc.results[label] = factor * atoms.calc.results[label]

    return plant


def reorder(order: list[int], chosen: list[int] | None = None) -> Callable[[list[Atoms]], None]:
    def plant(frames: list[Atoms]) -> None:
        for i, atoms in enumerate(frames):
            if "stress" in atoms.calc.results and (chosen is None or i in chosen):
                atoms.calc.results["stress"] = atoms.calc.results["stress"][[0, 1, 2, *order]]

    return plant


def virials(frames: list[Atoms]) -> None:
    for atoms in frames:
        if "stress" in atoms.calc.results:
            atoms.calc.results["stress"] = -atoms.get_volume() * atoms.calc.results["stress"]


def atomic_units(frames: list[Atoms]) -> None:
    scale("energy", 1 / units.Hartree)(frames)
    scale("forces", units.Bohr / units.Hartree)(frames)


def calories(frames: list[Atoms]) -> None:
    for label in ("energy", "forces"):
        scale(label, units.mol / units.kcal)(frames)


def per_atom(frames: list[Atoms]) -> None:
    for atoms in frames:
        atoms.calc.results["energy"] /= len(atoms)


def free_energies(frames: list[Atoms]) -> None:
    """The forces belong to `energy`; `free_energy` is something else."""
    rng = np.random.default_rng(0)
    for atoms in frames:
        if "forces" in atoms.calc.results:
            atoms.calc.results["free_energy"] = atoms.calc.results["energy"] - len(atoms) * rng.uniform(0, 0.3)


def shuffle_forces(frames: list[Atoms]) -> None:
    for i in SOME:
        atoms = frames[i]
        atoms.calc.results["forces"] = np.roll(atoms.calc.results["forces"], 1, axis=0)


def copy_with(change: Callable[[Atoms], None]) -> Callable[[list[Atoms]], list[Atoms]]:
    """Frame 10 once more at the end, wrapped, shifted and in another order, after a change of its labels."""

    def plant(frames: list[Atoms]) -> list[Atoms]:
        order = np.random.default_rng(0).permutation(len(frames[10]))
        twin = frames[10][order]
        twin.info = dict(frames[10].info)
        twin.positions += [0.3, 7.0, -2.0]
        twin.wrap()
        twin.calc = type(frames[10].calc)(twin, **frames[10].calc.results)
        twin.calc.results["forces"] = frames[10].calc.results["forces"][order]
        change(twin)
        return [*frames, twin]

    return plant


def one(i: int, change: Callable[[Atoms], object]) -> Callable[[list[Atoms]], None]:
    def plant(frames: list[Atoms]) -> None:
        change(frames[i])

    return plant


def add(label: str, value: object) -> Callable[[Atoms], None]:
    def change(atoms: Atoms) -> None:
        atoms.calc.results[label] = atoms.calc.results[label] + np.asarray(value)

    return change


def unsymmetric(atoms: Atoms) -> None:
    atoms.info["virial"] = np.arange(9.0)
    del atoms.calc.results["stress"]


def an_atom_twice(atoms: Atoms) -> None:
    atoms.positions[1] = atoms.positions[0] + 0.02


def no_calculation(atoms: Atoms) -> None:
    atoms.calc = None


def no_cell(atoms: Atoms) -> None:
    atoms.cell = None
    del atoms.calc.results["stress"]


def constrained(frames: list[Atoms]) -> None:
    for i in SOME:
        frames[i].calc.results["forces"][:2] = 0.0


def turned(atoms: Atoms) -> None:
    atoms.rotate(90, "x", center="COM")


def another_element(atoms: Atoms) -> None:
    atoms.numbers[0] = 32


FAULTS = {
    "stress: opposite sign": Fault(scale("stress", -1), "surely wrong", "stress of the opposite sign", mended="stress"),
    "stress: in GPa": Fault(scale("stress", 1 / units.GPa), "surely wrong", "stress in GPa", mended="stress"),
    "stress: in kbar, opposite sign (VASP)": Fault(
        scale("stress", -10 / units.GPa), "surely wrong", "stress of the opposite sign, in kbar", mended="stress"
    ),
    "stress: a virial under the name of a stress": Fault(
        virials, "surely wrong", "stress of the opposite sign, times the volume (a virial)", mended="stress"
    ),
    "stress: xx, yy, zz, xy, yz, xz (VASP)": Fault(
        reorder([5, 3, 4]), "surely wrong", "stress in the order xx, yy, zz, xy, yz, xz, the order of VASP", mended="stress"
    ),
    "stress: xx, yy, zz, xy, xz, yz (LAMMPS)": Fault(
        reorder([5, 4, 3]), "surely wrong", "stress with yz and xy swapped, the order of LAMMPS", mended="stress"
    ),
    "stress: opposite sign in 6 of 109 frames": Fault(
        scale("stress", -1, SOME), "surely wrong", "stress of the opposite sign in some frames", SOME, mended="stress"
    ),
    "stress: in GPa in 6 frames": Fault(
        scale("stress", 1 / units.GPa, SOME), "surely wrong", "stress in GPa in some frames", SOME, mended="stress"
    ),
    "energy: in Hartree": Fault(scale("energy", 1 / units.Hartree), "surely wrong", "energies are in Hartree", mended="energy"),
    "energy: in kcal/mol": Fault(
        scale("energy", units.mol / units.kcal), "surely wrong", "energies are in kcal/mol", data="ethanol", mended="energy"
    ),
    "energy: per atom": Fault(per_atom, "surely wrong", "energies are per atom", mended="energy"),
    "forces: in Hartree/Bohr": Fault(
        scale("forces", units.Bohr / units.Hartree), "surely wrong", "forces are in Hartree/Bohr", mended="forces"
    ),
    "forces: opposite sign (gradients)": Fault(
        scale("forces", -1), "surely wrong", "forces have the opposite sign (gradients)", data="ethanol", mended="forces"
    ),
    "energy and forces: in atomic units": Fault(
        atomic_units, "surely wrong", "energies are in Hartree and forces are in Hartree/Bohr", mended="forces"
    ),
    "energy and forces: in kcal/mol and kcal/mol/Å": Fault(
        calories, "suspicious", "energies in kcal/mol, forces in kcal/mol/Å", data="ethanol", mended="energy"
    ),
    "forces: opposite sign in 6 frames": Fault(
        scale("forces", -1, SOME), "surely wrong", "forces of the opposite sign in some frames", SOME, mended="forces"
    ),
    "forces: of other atoms in 6 frames": Fault(shuffle_forces, "suspicious", "forces that do not fit their structure", SOME),
    "energy, not free_energy, belongs to the forces": Fault(
        free_energies, "surely wrong", "energy, not free_energy, belongs to the forces"
    ),
    "a frame twice": Fault(copy_with(lambda atoms: None), "suspicious", "duplicates", [10, 111]),
    "a frame twice, with another energy": Fault(copy_with(add("energy", 0.5)), "surely wrong", "same structure, other labels", [10, 111]),
    "a stress and a virial that differ": Fault(
        one(10, lambda a: a.info.update(virial=np.diag([9.0, 0.0, 0.0]).ravel())), "surely wrong", "labels that contradict each other", [10]
    ),
    "a stress that is not symmetric": Fault(one(10, unsymmetric), "surely wrong", "unsymmetric stress", [10]),
    "a force that is NaN": Fault(
        one(10, lambda a: a.calc.results["forces"].__setitem__((0, 0), np.nan)), "surely wrong", "labels that cannot be used", [10]
    ),
    "a force component twisted": Fault(one(10, add("forces", [9.0, 0, 0])), "surely wrong", "net force", [10]),
    "forces set to zero by constraints": Fault(constrained, "suspicious", "zero forces", SOME),
    "a molecule turned without its forces": Fault(one(10, turned), "surely wrong", "net torque", [10], "ethanol"),
    "an energy off by 1000 eV": Fault(one(10, add("energy", 1000.0)), "surely wrong", "outliers of energy", [10]),
    "an energy off by 2 eV per atom": Fault(one(10, add("energy", 18.0)), "suspicious", "outliers of energy", [10], "ethanol"),
    "a force 1000 times too large": Fault(scale("forces", 1000, [10]), "suspicious", "outliers of force", [10]),
    "two atoms in one place": Fault(one(10, an_atom_twice), "surely wrong", "overlapping atoms", [10]),
    "an element seen once": Fault(one(10, another_element), "suspicious", "elements in few frames", [10]),
    "an isolated atom missing": Fault(lambda frames: frames[1:], "surely wrong", "isolated atoms are missing", [0]),
    "no labels": Fault(one(10, no_calculation), "suspicious", "frames without any label", [10]),
    "pbc without a cell": Fault(one(10, no_cell), "surely wrong", "pbc without a cell", [10]),
    "pbc lost": Fault(one(10, lambda atoms: atoms.set_pbc(False)), "suspicious", "stress without pbc", [10]),
    "a stress of zeros": Fault(scale("stress", 0.0, [10]), "suspicious", "zero stress", [10]),
}


class RememberingACE(LinearACE):
    """Rows depend on structures alone: each is made once for all tests."""

    made: dict[bytes, Rows] = {}

    def rows(self, graph: Graph) -> Rows:
        key = b"".join(x.numpy().tobytes() for x in (self.numbers, graph.numbers, graph.edge_vec))
        if key not in self.made:
            self.made[key] = super().rows(graph)
        return self.made[key]


@pytest.fixture(autouse=True)
def _rows_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conventions, "LinearACE", RememberingACE)
    monkeypatch.chdir(tmp_path)


def planted(fault: Fault, file: str = "data.extxyz") -> list[Finding]:
    frames = read(DATA / f"{fault.data}.extxyz", ":")
    write(file, fault.plant(frames) or frames)
    return check([file], LabelKeys())[0]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(name: str) -> None:
    fault = FAULTS[name]
    findings = planted(fault)
    (found,) = [finding for finding in findings if (finding.what, finding.severity) == (fault.what, fault.severity)]
    if fault.frames is not None:
        assert by_file(found.frames) == {"data.extxyz": fault.frames}
    if fault.mended is not None:
        exec(found.mend, {})
        for before, after in zip(read(DATA / f"{fault.data}.extxyz", ":"), read("data-mended.extxyz", ":"), strict=True):
            if fault.mended in before.calc.results:
                np.testing.assert_allclose(after.calc.results[fault.mended], before.calc.results[fault.mended], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sic", "ethanol"])
def test_nothing_is_surely_wrong_with_good_data(name: str) -> None:
    findings, labels = check([DATA / f"{name}.extxyz"], LabelKeys())
    assert [finding for finding in findings if finding.severity == "surely wrong"] == []
    assert labels.frames == len(read(DATA / f"{name}.extxyz", ":"))


@pytest.mark.parametrize("last", [27, 30, 38, 45])
def test_nothing_is_surely_wrong_with_few_good_frames(last: int) -> None:
    """A vacancy that is predicted from 25 other frames of SiC has a stress in the order of VASP by chance."""
    write("few.extxyz", read(DATA / "sic.extxyz", f"2:{last}"))
    assert [finding.what for finding in check(["few.extxyz"], LabelKeys())[0] if finding.severity == "surely wrong"] == []


def test_forces_may_vanish_by_symmetry() -> None:
    crystals = [bulk(symbol, cubic=cubic) for symbol in ("Cu", "Al", "Pt") for cubic in (True, False)]
    frames = []
    for atoms, size in product(crystals, np.linspace(0.95, 1.05, 5)):
        image = atoms.copy()
        image.set_cell(size * atoms.cell.array, scale_atoms=True)
        image.calc = EMT()
        results = {"energy": image.get_potential_energy(), "forces": np.zeros((len(image), 3)), "stress": image.get_stress()}
        image.calc = SinglePointCalculator(image, **results)
        frames.append(image)
    write("volumes.extxyz", frames)
    assert [finding.what for finding in check(["volumes.extxyz"], LabelKeys())[0] if finding.severity == "surely wrong"] == []
    frames[1].positions[0] += 0.05
    write("volumes.extxyz", frames)
    (wrong,) = [finding for finding in check(["volumes.extxyz"], LabelKeys())[0] if finding.severity == "surely wrong"]
    assert (wrong.what, wrong.frames) == ("no forces", (Origin("volumes.extxyz", 1),))


def test_odds_pay_for_what_was_tried() -> None:
    odds_of = np.full((17, 200), -5.0)
    odds_of[3, 7] = 15.3  # e^15 is 3·10⁶, but 3400 were tried
    assert conventions.e_bh(odds_of) == {}
    odds_of[3, 10:20] = 15.4  # ten frames that agree pay together
    odds_of[2, 10] = 15.5  # the reading of the nine others is nearly as likely
    assert conventions.e_bh(odds_of) == dict.fromkeys([7, *range(10, 20)], 3)


def test_a_frame_that_the_others_do_not_determine_says_little_of_units() -> None:
    """Thirty elastic frames of silicon and one of another volume had forces "in kJ/mol/Å, of the opposite sign"."""
    cell, frames = bulk("Cu", cubic=True), []
    for i, d in enumerate(np.linspace(-0.3, 0.3, 30)):
        frames.append(cell.copy())
        frames[-1].positions[i % 3, i % 2] += d
    frames.append(cell.copy())
    frames[-1].set_cell(1.1 * cell.cell.array, scale_atoms=True)
    for atoms in frames:
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    write("far.extxyz", frames)
    fitted = conventions.fit_linear(*read_labelled("far.extxyz"))
    assert fitted is not None
    *near, far = fitted.ridge.spread(fitted.energy, conventions.SHAPE_AND_PRESSURE).energy
    assert far > 1000 * max(near)


def test_a_pressure_that_is_far_off_leaves_the_shape_of_a_stress_to_be_judged() -> None:
    """In DFT silicon, where pressures are missed by 0.02 eV/Å³, nothing about the stress was surely wrong."""
    rng = np.random.default_rng(0)
    atoms = read_labelled(DATA / "sic.extxyz")[0][2]
    shape = np.concatenate([rng.normal(0, 2e-3, (30, 5)), np.full((30, 1), 0.02)], axis=1)
    predicted = shape + np.concatenate([rng.normal(0, 2e-4, (30, 5)), np.full((30, 1), 0.05)], axis=1)
    label, predicted = (x @ conventions.SHAPE_AND_PRESSURE for x in (shape, predicted))
    test = conventions.StressTest([atoms] * 30, np.full(30, 100.0), label, predicted, np.full((30, 6), 1e-4))
    noise = test.noise(conventions.AS_IT_IS)
    assert noise[:, :5].max() < 1.5e-3 < 0.04 < noise[:, 5].min()
    assert np.median(test.unexplained(conventions.AS_IT_IS, noise)) < conventions.EXPLAINED


def test_labels_under_other_names_are_mended_where_they_stand() -> None:
    frames = read(DATA / "sic.extxyz", ":")
    for atoms in frames:
        results = atoms.calc.results
        atoms.calc = None
        atoms.info["dft_energy"] = results["energy"]
        if "forces" in results:
            atoms.arrays["dft_forces"], atoms.info["dft_stress"] = -results["forces"], -results["stress"]
    write("data.extxyz", frames)
    findings, _ = check(["data.extxyz"], LabelKeys(energy="dft_energy", forces="dft_forces", stress="dft_stress"))
    wrong = [finding for finding in findings if finding.severity == "surely wrong"]
    assert [finding.what for finding in wrong] == ["forces have the opposite sign (gradients)", "stress of the opposite sign"]
    exec(wrong[0].mend, {})
    for before, after in zip(frames[2:], read("data-mended.extxyz", "2:"), strict=True):
        np.testing.assert_allclose(after.arrays["dft_forces"], -before.arrays["dft_forces"], atol=1e-7)


def test_few_frames_are_not_fitted() -> None:
    write("few.extxyz", read(DATA / "sic.extxyz", "2:12"))
    assert "no fit" in {finding.what for finding in check(["few.extxyz"], LabelKeys())[0]}


# The parts


def test_rows_are_derivatives() -> None:
    """Forces and stress of each coefficient against central differences of its energy."""
    atoms, h = read(DATA / "sic.extxyz", 3), 1e-4
    ace = LinearACE([6, 14], 4.0, num_radial=4)
    rows = ace.rows(build_graph(atoms, 4.0))

    def energy(change: Callable[[Atoms], object]) -> np.ndarray:
        moved = atoms.copy()
        change(moved)
        return ace.rows(build_graph(moved, 4.0)).energy

    up, down = (energy(lambda a, s=s: a.positions.__setitem__((1, 2), a.positions[1, 2] + s * h)) for s in (1, -1))
    size = np.abs(rows.forces).max()
    np.testing.assert_allclose(rows.forces[5], -(up - down) / (2 * h), atol=1e-6 * size)
    shear = np.zeros((3, 3))
    shear[1, 2] = shear[2, 1] = h / 2
    up, down = (energy(lambda a, s=s: a.set_cell(a.cell.array @ (np.eye(3) + s * shear), scale_atoms=True)) for s in (1, -1))
    assert rows.stress is not None
    np.testing.assert_allclose(rows.stress[3], (up - down) / (2 * h) / atoms.get_volume(), atol=1e-6 * np.abs(rows.stress).max())


def test_same_structures_need_the_same_distances() -> None:
    frames = [frame.atoms for frame in isolated_atom_energies(read_labelled(DATA / "sic.extxyz")[0])[1]]
    other = frames[4].copy()
    other.positions[0, 0] += 0.01
    stretched = frames[4].copy()
    stretched.set_cell(stretched.cell.array * 1.001, scale_atoms=True)
    assert list(same_structures([*frames, other, stretched])) == []


def test_frames_are_listed_in_spans() -> None:
    assert list_frames([Origin(*at) for at in (("a", 3), ("a", 5), ("a", 4), ("b", 0), ("a", 9))]) == "a: 3–5, 9; b: 0"


# The commands


def test_check_says_so_by_its_exit_status_and_in_json(flashace) -> None:
    planted(FAULTS["a frame twice, with another energy"])
    bad = flashace("check", "data.extxyz", "--json", "found.json")
    assert bad.exit_code == 1
    assert "surely wrong: same structure, other labels" in bad.output
    assert "Labels of 112 frames" in bad.output
    assert "│ surely wrong │" in bad.output
    assert "[/]" not in bad.output
    (found,) = [finding for finding in json.loads(Path("found.json").read_text()) if finding["severity"] == "surely wrong"]
    assert found["frames"] == ["data.extxyz#10", "data.extxyz#111"]
    assert found["count"] == 2
    before = Path("data.extxyz").read_bytes()
    assert flashace("check", DATA / "sic.extxyz").exit_code == 0
    assert Path("data.extxyz").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["data.extxyz", "found.json"]


def test_fit_stops_on_what_is_surely_wrong_unless_told_otherwise(flashace) -> None:
    frames = read(DATA / "sic.extxyz", "2:30")
    write("data.extxyz", copy_with(add("energy", 0.5))(frames))
    refused = flashace("fit", "data.extxyz", "--dry-run")
    assert refused.exit_code == 1
    assert "same structure, other labels" in refused.output
    assert refused.output.splitlines()[-1].startswith("Error: labels: surely wrong are same structure, other labels; mend them")
    assert "--check leave_out" in refused.output
    assert flashace("fit", "data.extxyz", "--dry-run", "--check", "warn").exit_code == 0
    write("good.extxyz", frames)
    good = flashace("fit", "good.extxyz", "--dry-run", "--check", "stop")
    assert good.exit_code == 0
    assert "What the labels show" not in good.output
    assert "nothing surely wrong (a linear fit to 28 of 28 frames" in good.output


def test_fit_leaves_out_what_is_surely_wrong(tiny_fit) -> None:
    frames = read(DATA / "sic.extxyz", ":")
    scale("stress", -1, SOME)(frames)
    write("data.extxyz", copy_with(add("energy", 0.5))(frames))
    prepared = prepare(make_config({**tiny_fit, "data": "data.extxyz", "check": "leave_out"}))
    assert prepared.looked is not None
    kept = [*prepared.train, *prepared.valid]
    assert len(kept) == 108  # neither of the two that contradict each other
    assert {f.origin for f in kept if f.stress is None} == {Origin("data.extxyz", i) for i in SOME}
    assert all(f.forces is not None for f in kept)
    assert "left out: 2 frames, the stress of 6 frames" in prepared.looked.words()
    assert ("check", prepared.looked.words()) in prepared.decisions()


def test_a_short_fit_looks_at_fewer_frames() -> None:
    frames, labels = read_labelled(DATA / "sic.extxyz")
    frames = list(isolated_atom_energies(frames)[1])
    assert look(frames, labels, leave_out=False, max_time=0.1).tested in range(20, 50)  # 9000 of 41656 neighbour pairs
    assert look(frames, labels, leave_out=True, max_time=0.1).tested == len(frames) == 109


def test_fit_does_not_leave_out_all(flashace) -> None:
    frames = read(DATA / "sic.extxyz", ":")
    scale("stress", -1)(frames)
    write("data.extxyz", frames)
    refused = flashace("fit", "data.extxyz", "--dry-run", "--check", "leave_out")
    assert "stress of the opposite sign, in 109 of 109 frames; too many to be left out" in " ".join(refused.output.split())


def test_a_model_file_says_what_was_left_out(flashace, tiny_fit) -> None:
    write("data.extxyz", copy_with(add("energy", 0.5))(read(DATA / "sic.extxyz", "2:14")))
    options = {**tiny_fit, "data": "data.extxyz", "output": "run", "check": "leave_out", "epochs": 1}
    Path("c.yaml").write_text(yaml.safe_dump(options))
    done = flashace("fit", "-c", "c.yaml")
    said = "same structure, other labels (2 frames); left out: 2 frames (too few frames with forces for a linear fit"
    assert f"check: {said}" in done.output
    assert read_header("run/model.pt")["provenance"]["check"].startswith(said)


def _print_table() -> None:
    print("| fault planted | severity | what `check` says | frames named | detail |\n|---|---|---|---|---|")
    for name, fault in FAULTS.items():
        (found,) = [f for f in planted(fault) if (f.what, f.severity) == (fault.what, fault.severity)]
        frames = list_frames(found.frames).removeprefix("data.extxyz: ") if len(found.frames) < 20 else f"all {len(found.frames)}"
        detail = found.detail.replace("data.extxyz", "").replace("|", "\\|")
        print(f"| {name} | {found.severity} | {found.what} | {frames} | {detail} |", flush=True)


if __name__ == "__main__":
    import os
    import tempfile

    conventions.LinearACE = RememberingACE  # type: ignore[misc]
    os.chdir(tempfile.mkdtemp())
    _print_table()
