"""`flashace info`: what a model file says of itself."""

import re
from pathlib import Path

from flashace.potential.model_file import FORMAT, read_header, save_model


def test_info_tells_all_that_one_wants_to_know(flashace, run_folder, data_file, monkeypatch):
    result = flashace("info", run_folder / "model.pt")
    assert result.exit_code == 0
    header = read_header(run_folder / "model.pt")
    text = " ".join(re.sub(r"[│┃|]", " ", result.output).split())
    joined = re.sub(r"\s", "", text)
    for part in ("elements C, Si", "r_max 3.0", "hidden_dim 16", "num_channels 4", "num_layers 1", "correlation 2", f"format {FORMAT}"):
        assert part in text, part
    assert f"{header['num_parameters']:,}" in text
    for symbol, energy in header["atomic_energies"].items():
        assert f"{symbol} {energy:.6f}" in text
    assert "least squares over 12 frames" in text
    for pair, distance in header["shortest_distances"].items():
        assert f"{pair} {distance:.3f}" in text
    for pair, (least, most) in header["coordination"].items():
        assert f"{pair} {least:.2f} to {most:.2f}" in text
    assert header["provenance"]["training_data"]["sha256"] in joined
    assert "frames 11" in text
    for package in ("flashace", "torch", "e3nn", "ase", "matscipy", "numpy"):
        assert f"versions: {package} {header['provenance']['versions'][package]}" in text
    for part in ("MAE / RMSE", "train", "validation", "meV/atom", "meV/Å", "meV/Å³"):
        assert part in text, part


def test_info_of_a_model_without_a_history(flashace, make_model):
    save_model("m.pt", make_model(), {})
    result = flashace("info", "m.pt")
    assert result.exit_code == 0
    assert "C, Si" in result.output


def test_errors_of_info_are_one_line(flashace, data_file, run_folder, one_line_error):
    one_line_error(flashace("info", "no.pt"), "model file no.pt: no such file")
    one_line_error(flashace("info", data_file), "expected a FlashACE model file")
    Path("cut.pt").write_bytes((run_folder / "model.pt").read_bytes()[:-3])
    one_line_error(flashace("info", "cut.pt"), "truncated")
