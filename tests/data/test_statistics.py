"""What is read off the training frames before a fit."""

import numpy as np
import pytest
from ase import Atoms

from flashace.data import statistics
from flashace.data.frames import Labelled
from flashace.data.origin import Origin
from flashace.data.statistics import elements_of, loss_units, neighbour_statistics, reference_energies
from flashace.errors import FlashACEError
from flashace.structure.neighbors import build_graph


def frame(symbols, energy=None, forces=None, stress=None):
    atoms = Atoms(symbols, positions=2.0 * np.arange(len(Atoms(symbols)))[:, None] * np.ones(3))
    return Labelled(atoms, energy, forces, stress, "", Origin("x", 0))


def test_elements_stand_in_the_order_of_the_table():
    assert elements_of([frame("SiC"), frame("OH"), frame("C")]) == ["H", "C", "O", "Si"]


def test_least_squares_finds_energies_that_are_sums():
    true = {"H": -13.6, "C": -1029.0, "O": -2041.3}
    frames = [frame(f, sum(true[s] for s in Atoms(f).symbols)) for f in ("CH4", "CO2", "H2O", "CH3OH")]
    found = reference_energies([*frames, frame("C2H6")], {}, "")
    assert found.values == pytest.approx(true, abs=1e-9)
    assert "least squares over 4 frames" in found.origin
    assert "rank 3 of 3" in found.origin


def test_one_composition_gives_the_smallest_solution_and_says_so():
    found = reference_energies([frame("SiC", -12.0), frame("Si2C2", -24.2)], {}, "")
    assert found.values["Si"] == pytest.approx(found.values["C"])
    assert sum(found.values.values()) == pytest.approx(-12.09, abs=0.02)
    assert "rank 1 of 2" in found.origin
    assert "smallest solution" in found.origin


def test_elements_that_go_together_are_named_and_others_are_not():
    found = reference_energies([frame("SiC", -12.0), frame("SiCH", -13.0), frame("Si2C2OH", -30.0), frame("SiCO", -18.0)], {}, "")
    assert "rank 3 of 4; these compositions cannot tell apart C, Si, so" in found.origin
    assert found.values["H"] == pytest.approx(-1.0, abs=0.5)
    both = reference_energies([frame("SiC", -12.0), frame("OH", -5.0)], {}, "")
    assert "rank 2 of 4; these compositions cannot tell apart H, O nor C, Si" in both.origin
    full = reference_energies([frame("SiC", -12.0), frame("C", -5.0)], {}, "")
    assert full.origin.endswith("rank 2 of 2")


def test_given_energies_are_taken_as_they_are():
    found = reference_energies([frame("SiC", -12.0)], {"Si": -5, "C": -7.0, "H": 3.0}, "from the isolated atoms")
    assert found.values == {"C": -7.0, "Si": -5.0}
    assert list(found.values) == ["C", "Si"]
    assert found.origin == "from the isolated atoms"


def test_half_of_the_energies_is_an_error():
    with pytest.raises(FlashACEError, match=r"atomic energies \(the YAML\): expected one for each of H, C, O, Si, H, O missing; add them"):
        reference_energies([frame("SiC", -12.0), frame("OH", -1.0)], {"Si": -5.0, "C": -7.0}, "the YAML")


def test_units_are_root_mean_squares_of_the_labels_that_are_there():
    rng = np.random.default_rng(0)
    forces, stress = rng.normal(size=(2, 2, 3)), 0.1 * rng.normal(size=(3, 3))
    units = loss_units([frame("SiC", 1.0, forces[0], stress), frame("SiC", None, forces[1]), frame("C", -3.0)])
    assert units["forces"] == pytest.approx(np.sqrt(np.mean(forces**2)))
    assert units["stress"] == pytest.approx(np.sqrt(np.mean(stress**2)))
    assert units["energy"] == units["forces"]  # times 1 Å
    doubled = loss_units([frame("SiC", 1.0, 2 * forces[0], 2 * stress), frame("SiC", None, 2 * forces[1])])
    for name in ("energy", "forces", "stress"):
        assert doubled[name] == pytest.approx(2 * units[name])


def test_perfect_crystals_do_not_divide_by_zero():
    units = loss_units([frame("SiC", 1.0, np.zeros((2, 3)), np.zeros((3, 3)))])
    assert min(units["energy"], units["forces"], units["stress"]) > 0
    units = loss_units([frame("SiC", 1.0)])
    assert min(units["energy"], units["forces"], units["stress"]) > 0


def test_neighbours_are_counted_per_atom(structure):
    graphs = [build_graph(structure("crystal"), 2.5), build_graph(structure("atom"), 2.5)]
    averages = [neighbour_statistics(some, ["C", "Si"], 2.5, 6, {}, {}).average for some in (graphs[:1], graphs, graphs[1:])]
    assert averages == [4.0, pytest.approx(32 / 9), 1.0]


def test_shortest_distances_are_those_of_all_graphs_and_of_what_was_before():
    graphs = [build_graph(frame(symbols).atoms, 4.0) for symbols in ("HCO", "OCC", "H")]  # in a row, 2 sqrt(3) Å apart
    near = build_graph(Atoms("CHC", [(0, 0, 0), (0, 1.25, 0), (3.0, 0, 0)]), 4.0)
    step = 2 * 3**0.5
    before = {"C-O": 1.5, "H-H": 0.7, "C-C": 3.5}
    found, alone = (
        neighbour_statistics(some, ["H", "C", "O"], 4.0, 6, known, {}).shortest for some, known in (([*graphs, near], before), (graphs, {}))
    )
    assert found == pytest.approx({"H-H": 0.7, "H-C": 1.25, "C-C": 3.0, "C-O": 1.5})
    assert alone == pytest.approx({"H-C": step, "C-C": step, "C-O": step})
    assert list(found) == ["H-H", "H-C", "C-C", "C-O"]


@pytest.mark.parametrize("formulas", [("SiC", "SiCH", "Si2C2OH", "SiCO"), ("SiC", "OH", "Si3C", "CO2")])
def test_least_squares_block_by_block_is_least_squares(monkeypatch, formulas):
    """Also where elements cannot be told apart, so that the rank has to be seen through the rounding of a triangle."""
    rng = np.random.default_rng(0)
    frames = [frame(formulas[i % 4], -1e4 * len(formulas[i % 4]) + rng.normal()) for i in range(50)]
    whole = reference_energies(frames, {}, "")
    monkeypatch.setattr(statistics, "BLOCK", 7)
    assert reference_energies(frames, {}, "").origin == whole.origin
    assert reference_energies(frames, {}, "").values == pytest.approx(whole.values, abs=1e-6)
