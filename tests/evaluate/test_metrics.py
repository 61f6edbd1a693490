import numpy as np
import pytest
from ase import Atoms

from flashace.data.frames import Labelled
from flashace.data.labels import LABELS
from flashace.data.origin import Origin
from flashace.errors import FlashACEError
from flashace.evaluate.metrics import MOST_SOURCES, ErrorTable

RNG = np.random.default_rng(0)
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


def symmetric():
    tensor = RNG.normal(size=(3, 3))
    return tensor + tensor.T


def frame(num_atoms, config_type, stress=True):
    atoms = Atoms(f"H{num_atoms}", cell=[9, 9, 9])
    return Labelled(
        atoms, RNG.normal(), RNG.normal(size=(num_atoms, 3)), symmetric() if stress else None, config_type, Origin("data.xyz", 0)
    )


def guess(labelled):
    return {"energy": RNG.normal(), "forces": RNG.normal(size=labelled.forces.shape), "stress": symmetric()}


def test_errors_equal_plain_numpy():
    frames = [frame(2, "bulk"), frame(5, "slab", stress=False), frame(3, "bulk")]
    guesses = [guess(labelled) for labelled in frames]
    table = ErrorTable()
    for labelled, predicted in zip(frames, guesses, strict=True):
        table.add(labelled, predicted)
    bulk, slab, everything = table.rows()
    for row, chosen in ((bulk, [0, 2]), (slab, [1]), (everything, [0, 1, 2])):
        errors = {
            "energy": np.array([(guesses[i]["energy"] - frames[i].energy) / len(frames[i].atoms) for i in chosen]),
            "forces": np.concatenate([(guesses[i]["forces"] - frames[i].forces).ravel() for i in chosen]),
            "stress": np.array([(guesses[i]["stress"] - frames[i].stress)[VOIGT] for i in chosen if frames[i].stress is not None]),
        }
        for label, error in errors.items():
            if error.size:
                assert row[f"{label}_mae"] == pytest.approx(1000 * np.abs(error).mean(), rel=1e-12)
                assert row[f"{label}_rmse"] == pytest.approx(1000 * np.sqrt(np.square(error).mean()), rel=1e-12)
            else:
                assert row[f"{label}_mae"] is row[f"{label}_rmse"] is None
        assert row["frames"] == len(chosen)
    assert [row["config_type"] for row in (bulk, slab, everything)] == ["bulk", "slab", "all"]


def test_one_config_type_is_one_row():
    table = ErrorTable()
    labelled = frame(2, "bulk")
    table.add(labelled, {name: labelled.label(name) for name in LABELS})
    (row,) = table.rows()
    assert row["config_type"] == "all"
    assert row["forces_rmse"] == row["stress_mae"] == 0.0


def test_several_sources_have_rows_of_their_own():
    table = ErrorTable()
    for source, off in (("emt", 1.0), (None, 0.0), ("emt", 1.0)):
        labelled = frame(2, "bulk")
        labelled.atoms.info |= {} if source is None else {"source": source}
        table.add(labelled, {"energy": labelled.energy, "forces": labelled.forces + off, "stress": labelled.stress})
    rows = table.rows()
    assert [(row["config_type"], row["frames"]) for row in rows] == [("source: (none)", 1), ("source: emt", 2), ("all", 3)]
    assert [row["forces_mae"] for row in rows[:2]] == pytest.approx([0.0, 1000.0])


def test_names_of_frames_are_no_sources():
    table = ErrorTable()
    for number in range(MOST_SOURCES + 5):
        labelled = frame(2, "bulk")
        labelled.atoms.info["source"] = f"frame {number}"
        table.add(labelled, {name: labelled.label(name) for name in LABELS})
    assert [row["frames"] for row in table.rows()] == [MOST_SOURCES + 5]


def test_an_empty_table_has_no_errors():
    (row,) = ErrorTable().rows()
    assert (row["frames"], row["energy_mae"]) == (0, None)


def test_frames_without_labels_are_counted_as_frames_only():
    table = ErrorTable()
    table.add(Labelled(Atoms("H"), None, None, None, "", Origin("data.xyz", 0)), {"energy": 1.0, "forces": np.zeros((1, 3))})
    (row,) = table.rows()
    assert (row["frames"], row["energy_mae"], row["forces_rmse"]) == (1, None, None)


def test_every_label_needs_a_prediction_of_its_shape():
    labelled = frame(2, "bulk")
    with pytest.raises(FlashACEError, match=r"data.xyz#0: stress: expected a prediction of shape \(3, 3\), got no pred"):
        ErrorTable().add(labelled, {"energy": 0.0, "forces": np.zeros((2, 3)), "stress": None})
    with pytest.raises(FlashACEError, match=r"forces: expected a prediction of shape \(2, 3\), got shape \(1, 3\)"):
        ErrorTable().add(labelled, {"energy": 0.0, "forces": np.zeros((1, 3)), "stress": np.zeros((3, 3))})
