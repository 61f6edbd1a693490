"""The end of a fit: frames whose labels it contradicts are named, and kept in a file."""

from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write


def test_a_planted_wrong_label_is_named_at_the_end_of_the_fit(fit, make_frames, run_folder, tmp_path):
    frames = make_frames(24)
    results = {**frames[7].calc.results, "forces": frames[7].calc.results["forces"] + [[90.0, 0, 0], [0, 0, 0]]}
    frames[7].calc = SinglePointCalculator(frames[7], **results)
    write(tmp_path / "planted.extxyz", frames)
    said = fit("planted", data=[str(tmp_path / "planted.extxyz")], valid_fraction=0).output
    assert "suspects: 1 frame with labels that the fit contradicts, in planted/suspects.extxyz; most of all" in said
    assert "planted.extxyz#7: forces of atom 0" in said
    (suspect,) = read("planted/suspects.extxyz", ":")
    assert suspect.info["part"] == "train"
    assert suspect.get_forces()[0, 0] > 80
    assert "flashace_forces" in suspect.arrays
    said = fit("planted", "--overwrite").output
    assert "suspects: none" in said
    assert not (tmp_path / "planted/suspects.extxyz").exists()
    assert "suspects: none" in (run_folder / "output.txt").read_text()
