"""Terminals and names that are not UTF-8, and narrow ones."""

import io
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from flashace.cli.main import main
from flashace.evaluate import report


@pytest.mark.parametrize("charset", ["ascii", "latin-1"])
def test_terminals_that_know_less_than_utf8(run_folder, data_file, charset):
    for command in (["evaluate", run_folder / "model.pt", data_file], ["info", run_folder / "model.pt"], ["check", data_file]):
        result = CliRunner(charset=charset).invoke(main, list(map(str, command)), catch_exceptions=False)
        assert result.exit_code == 0
        assert "?" not in result.stdout_bytes.decode(charset)
    assert "meV/A3" in CliRunner(charset="ascii").invoke(main, ["evaluate", *map(str, command[1:])]).output or charset
    assert Path("predictions.extxyz").is_file()


def test_names_that_are_not_utf8(flashace, data_file, one_line_error):
    name = os.fsdecode(b"\xff.extxyz")
    shutil.copy(data_file, name)
    one_line_error(flashace("check", name), "expected a name in UTF-8")
    one_line_error(flashace("info", name), r"\\xff\.extxyz: expected a FlashACE model file")


def test_tables_keep_whole_names_at_80_columns(run_folder, data_file):
    row = {f"{label}_{kind}": 123.4 for label in ("energy", "forces", "stress") for kind in ("mae", "rmse")}
    name = "Distorted_surface_AIMD_NVT_2000K"
    narrow = Console(width=80, file=io.StringIO())
    narrow.print(report.error_table({"validation": [row | {"config_type": name, "frames": 123}]}))
    calibration = {"rmse": 12.3, "uncertainty": 12.1, "z": 1.1, "within_1": 0.5, "within_2": 0.9, "rank": 0.4}
    narrow.print(report.calibration_table([calibration | {"config_type": name, "frames": 123}]))
    text = narrow.file.getvalue()
    assert "…" not in text
    column = {1: "", 0: ""}
    tables = text.split("Energy uncertainty")
    for place, table in zip(column, tables, strict=True):
        rows = [line.split("│") for line in table.splitlines() if line.startswith("│")]
        assert "".join(cells[1 + place].strip() for cells in rows) == name
