"""Which folder a fit writes to, and what it spares there."""

import shutil
from pathlib import Path

import pytest

from flashace.cli.run_folder import config_of_run, holds_lesson, refuse_existing, refuse_others, spare_inputs
from flashace.errors import FlashACEError
from flashace.teach.config import sample_config, write_options
from flashace.train.config import TrainConfig


def test_an_existing_run_is_not_overwritten_unless_told(flashace, write_yaml, data_file, one_line_error):
    write_yaml(Path("c.yaml"), epochs=1)
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run").exit_code == 0
    before = Path("run/model.pt").read_bytes()
    refused = flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--seed", 7)
    one_line_error(refused, "run: this run folder holds a fit already", "--output", "--overwrite", "--resume run")
    assert Path("run/model.pt").read_bytes() == before
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--seed", 7, "--overwrite").exit_code == 0
    assert Path("run/model.pt").read_bytes() != before
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 2  # nothing of the old run


def test_overwrite_deletes_what_a_fit_left_and_nothing_else(flashace, write_yaml, data_file):
    """`-o .` in the folder of one's data, say."""
    write_yaml(Path("c.yaml"), epochs=1)
    shutil.copy(data_file, "data.extxyz")
    Path("thesis.tex").write_text("years of work")
    flashace("fit", "data.extxyz", "-c", "c.yaml", "-o", ".", "--overwrite")
    assert Path("thesis.tex").is_file()
    assert Path("data.extxyz").is_file()
    assert Path("c.yaml").is_file()


def test_overwrite_spares_the_old_fit_until_the_new_one_can_start(flashace, write_yaml, data_file, one_line_error):
    write_yaml(Path("c.yaml"), epochs=1, checkpoint_dir="kept")
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run").exit_code == 0
    before = Path("run/model.pt").read_bytes()
    one_line_error(flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--overwrite", "--r-max", 0.2), "r_max=0.2")
    assert Path("run/model.pt").read_bytes() == before
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run", "--overwrite", "--seed", 7).exit_code == 0
    assert Path("run/model.pt").read_bytes() != before


def test_an_empty_folder_may_be_named(flashace, write_yaml, data_file):
    Path("run").mkdir()
    write_yaml(Path("c.yaml"), epochs=1)
    assert flashace("fit", data_file, "-c", "c.yaml", "-o", "run").exit_code == 0


def test_a_fit_spares_its_configuration_and_what_it_starts_from(flashace, write_yaml, run_folder, data_file, one_line_error):
    write_yaml(Path("config.yaml"), epochs=1, data=[str(data_file)])
    before = Path("config.yaml").read_bytes()
    one_line_error(flashace("fit", "-o", "."), "expected a run folder in which config.yaml, which the fit reads, is not overwritten")
    assert Path("config.yaml").read_bytes() == before
    shutil.copytree(run_folder, "run")
    start = ["fit", data_file, "-c", write_yaml(Path("c.yaml"), epochs=1), "-o", "run", "--overwrite", "--resume-from"]
    for name in ("run", "run/model.pt", "run/checkpoints", "run/checkpoints/best.pt"):
        one_line_error(flashace(*start, name), "run: expected .*overwrit")
    assert (Path("run/model.pt").read_bytes(), Path("c.yaml").exists()) == ((run_folder / "model.pt").read_bytes(), True)


def test_a_lesson_of_another_fit_and_the_files_of_others_are_never_taken(tmp_path):
    run = tmp_path / "run"
    (run / "teacher").mkdir(parents=True)
    (run / "teacher" / "config.yaml").write_text("data: [mine.xyz]\n")  # a run folder of the user that is called so
    assert not holds_lesson(run)
    refuse_existing(run)
    refuse_others(run, teacher=False)
    with pytest.raises(FlashACEError, match="which no fit has made"):
        refuse_others(run, teacher=True)
    write_options(run / "teacher" / "config.yaml", sample_config({"teacher": "emt"}))
    refuse_others(run, teacher=True)
    with pytest.raises(FlashACEError, match="holds a fit already"):  # its seeds may be what this one validates with
        refuse_existing(run)
    frames = run / "teacher" / "frames.extxyz"
    frames.write_text("")
    with pytest.raises(FlashACEError, match="is not overwritten"):
        spare_inputs(run, TrainConfig(data=(str(frames),)), None)
    (run / "distill.yaml").write_text("")
    with pytest.raises(FlashACEError, match="goes on with `flashace distill --resume"):
        config_of_run(str(run), None, {})
    with pytest.raises(FlashACEError, match="is of `flashace distill`"):
        refuse_others(run, teacher=False)
