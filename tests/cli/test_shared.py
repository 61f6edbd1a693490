"""What a command reads it does not write."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.mark.parametrize("link", ["itself", "symlink", "hardlink"])
def test_no_command_writes_over_what_it_reads(flashace, run_folder, data_file, link, one_line_error):
    shutil.copy(run_folder / "model.pt", "m.pt")
    shutil.copy(data_file, "d.extxyz")
    names = {"m.pt": "m.pt", "d.extxyz": "d.extxyz"}
    if link != "itself":
        names = {"m.pt": "other.extxyz", "d.extxyz": "another.extxyz"}
        for name, other in names.items():
            (os.symlink if link == "symlink" else os.link)(name, other)
    before = {name: Path(name).read_bytes() for name in ("m.pt", "d.extxyz")}
    model, data = names.values()
    for option, arguments in (
        ("--output", ["evaluate", "m.pt", "d.extxyz", "-o", model]),
        ("--output", ["evaluate", "m.pt", "d.extxyz", "-o", data]),
        ("--json", ["verify", "m.pt", "d.extxyz", "--json", model]),
        ("--json", ["verify", "m.pt", "d.extxyz", "--json", data]),
        ("--json", ["check", "d.extxyz", "--json", data]),
        ("--output", ["calibrate", "m.pt", "d.extxyz", "-o", data]),
        ("--output", ["calibrate", "m.pt", data_file, "--valid", "d.extxyz", "-o", data]),
    ):
        one_line_error(flashace(*arguments), f"{option} .*expected another file than those that are read, which this would overwrite")
    assert {name: Path(name).read_bytes() for name in before} == before


def test_shards_and_default_names_are_spared_too(flashace, run_folder, data_file, one_line_error):
    assert flashace("convert", data_file, "shards").exit_code == 0
    shutil.copy(data_file, "predictions.extxyz")
    model = run_folder / "model.pt"
    one_line_error(flashace("check", "shards", "--json", "shards/manifest.json"), "expected another file")
    one_line_error(flashace("evaluate", model, "predictions.extxyz"), "--output predictions.extxyz: expected another file")


def test_a_place_that_cannot_be_written_to_is_named_before_the_work(flashace, run_folder, data_file, one_line_error):
    for arguments in (["evaluate", run_folder / "model.pt", data_file, "-o"], ["check", data_file, "--json"]):
        one_line_error(flashace(*arguments, "."), "expected a file to write, got a folder")
        one_line_error(flashace(*arguments, "absent/p.extxyz"), "expected a folder absent to write to, found none")
