import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.console import Console

from flashace import check
from flashace.data import shards
from flashace.data.frames import LabelKeys, Labelled, content_hash, read_labelled
from flashace.data.lazy import chained
from flashace.data.origin import Origin
from flashace.data.shards import Shards, convert, read_data
from flashace.data.split import split
from flashace.errors import FlashACEError
from flashace.potential.model_file import read_header
from flashace.train import clock, first_model, loop, prepare
from flashace.train.config import load_config, make_config


@pytest.fixture(scope="module")
def uneven_file(tmp_path_factory, make_frames):
    """Frames of every kind: isolated atoms, missing labels, a molecule without a cell, some config_types."""
    frames = [*make_frames(10), *(Atoms(symbol) for symbol in ("C", "Si"))]
    for atoms, energy in zip(frames[-2:], (-7.0, -5.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        atoms.info["config_type"] = "IsolatedAtom"
    lone = Atoms("SiC", [(0, 0, 0), (1.0 / 3.0, 0, 1.7)])
    lone.calc = SinglePointCalculator(lone, forces=np.full((2, 3), 0.1))
    path = tmp_path_factory.mktemp("uneven") / "data.traj"
    write(path, [*frames[:4], lone, *frames[4:]])
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory, uneven_file):
    """The shards of `uneven_file`. Do not change them."""
    return convert([uneven_file], tmp_path_factory.mktemp("shards") / "shards")


def assert_same(one: Labelled, other: Labelled):
    assert (one.energy, one.config_type, one.origin) == (other.energy, other.config_type, other.origin)
    for name in ("forces", "stress"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) is (b is None)
        np.testing.assert_array_equal(0 if a is None else a, 0 if b is None else b)
    for name in ("numbers", "positions", "pbc"):
        np.testing.assert_array_equal(getattr(one.atoms, name), getattr(other.atoms, name))
    np.testing.assert_array_equal(one.atoms.cell.array, other.atoms.cell.array)


# The folder


def test_shards_give_back_every_frame_to_the_last_bit(converted, uneven_file):
    frames, summary = read_labelled(uneven_file)
    assert len(converted) == len(frames) == 13
    for i in (0, 5, 12, -1):
        assert_same(converted[i], frames[i])
    for one, other in zip(converted, frames, strict=True):
        assert_same(one, other)
    assert converted.summary() == summary
    assert [frame.origin for frame in converted[3:6]] == [frame.origin for frame in frames[3:6]]


def test_another_process_gets_the_name_of_the_folder(converted):
    """As ranks of a fit do; split and joined as `prepare` does."""
    parts = split(chained(converted[2:], converted[:2]), 0.3, seed=0)
    sent = pickle.dumps(parts)
    assert len(sent) < 2000
    for part, there in zip(parts, pickle.loads(sent), strict=True):
        assert len(part) == len(there) > 0
        for one, other in zip(part, there, strict=True):
            assert_same(one, other)


def test_the_manifest_says_what_there_is(converted, uneven_file):
    frames, _ = read_labelled(uneven_file)
    manifest = json.loads((converted.folder / "manifest.json").read_text())
    assert manifest["sha256"] == content_hash(frames) == content_hash(converted)
    assert (manifest["frames"], manifest["atoms"]) == (13, 24)
    assert manifest["elements"] == {"C": 12, "Si": 12}
    assert manifest["labels"]["energy"] == {"used": {"calculator energy": 12}, "ignored": {}}
    assert manifest["units"]["stress"] == "eV/Å³"
    assert (manifest["files"], set(manifest["config_types"])) == ([str(uneven_file)], {"cold", "warm", "IsolatedAtom", ""})


def test_labels_stand_in_the_atoms_as_ase_users_expect_them(converted):
    atoms = converted[0].atoms
    assert atoms.info["REF_energy"] == converted[0].energy
    np.testing.assert_array_equal(atoms.arrays["REF_forces"], converted[0].forces)
    assert "REF_energy" not in converted[4].atoms.info  # the molecule has forces only


def test_sources_are_decided_for_each_file(tmp_path, make_frames):
    first, second = make_frames(4)[:2], make_frames(4)[2:]
    for atoms in second:
        atoms.info["REF_energy"] = -3.0
    for name, frames in (("first", first), ("second", second)):
        write(tmp_path / f"{name}.extxyz", frames)
    paths = [tmp_path / "first.extxyz", tmp_path / "second.extxyz"]
    made = convert(paths, tmp_path / "shards")
    assert [frame.energy for frame in made] == [*(atoms.get_potential_energy() for atoms in first), -3.0, -3.0]
    assert made.summary() == read_labelled(paths)[1]
    assert made[3].origin == Origin(str(paths[1]), 1)


def test_keys_are_those_of_the_conversion(tmp_path, make_frames):
    frames = make_frames(3)
    for atoms in frames:
        atoms.info["dft"] = -2.0
    write(tmp_path / "data.extxyz", frames)
    made = convert([tmp_path / "data.extxyz"], tmp_path / "shards", LabelKeys(energy="dft"))
    assert made[0].energy == -2.0
    assert read_data(made.folder, LabelKeys(energy="dft"))[0][0].energy == -2.0
    assert read_data([made.folder])[0][0].energy == -2.0
    with pytest.raises(FlashACEError, match="energy under the key 'b3lyp', but `flashace convert` took it from dft; leave out"):
        read_data(made.folder, LabelKeys(energy="b3lyp"))


# What can go wrong


def spoiled(make_frames, **info):
    frames = make_frames(3)
    frames[1].info.update(info)
    return frames


@pytest.mark.parametrize(
    ("frames", "keys", "message"),
    [
        (lambda make: spoiled(make, REF_energy=np.nan), {"energy": "REF_energy"}, r"data\.traj#1: REF_energy: expected finite numbers"),
        (
            lambda make: spoiled(make, REF_stress=np.arange(9.0)),
            {"stress": "REF_stress"},
            r"data\.traj#1: REF_stress: expected a symmetric tensor",
        ),
        (lambda make: spoiled(make), {"energy": "dft"}, "energy under the key 'dft', but no frame has it"),
        (lambda make: [Atoms("Si")], {}, "expected energy in at least one of 1 frames, found none"),
        (lambda make: [*make(1), Atoms("Si", [(np.nan, 0, 0)])], {}, r"data\.traj#1: expected finite positions"),
        (lambda make: [Atoms()], {}, r"data\.traj#0: expected at least one atom"),
    ],
)
def test_errors_are_those_of_reading_and_leave_nothing_behind(tmp_path, make_frames, frames, keys, message):
    write(tmp_path / "data.traj", frames(make_frames))
    for call in (read_labelled, lambda paths, keys: convert(paths, tmp_path / "shards", keys)):
        with pytest.raises(FlashACEError, match=message):
            call([tmp_path / "data.traj"], LabelKeys(**keys))
    assert [path.name for path in tmp_path.iterdir()] == ["data.traj"]


def test_what_is_there_stays_unless_it_is_shards_and_may_be_overwritten(tmp_path, data_file, uneven_file):
    folder = tmp_path / "shards"
    convert([data_file], folder)
    with pytest.raises(FlashACEError, match="there already; name another, or say --overwrite"):
        convert([uneven_file], folder)
    (tmp_path / "bad.extxyz").write_text("1\n\nSi 0 0\n")
    with pytest.raises(FlashACEError, match=r"bad\.extxyz"):
        convert([tmp_path / "bad.extxyz"], folder, overwrite=True)
    assert len(Shards(folder)) == 12
    assert len(convert([uneven_file], folder, overwrite=True)) == 13
    (tmp_path / "other").mkdir()
    with pytest.raises(FlashACEError, match=r"other: .* name a folder that does not exist"):
        convert([data_file], tmp_path / "other", overwrite=True)
    with pytest.raises(FlashACEError, match="expected files to convert, got shards"):
        convert([folder], tmp_path / "again")
    (tmp_path / "other/manifest.json").write_text('{"name": "of something else"}')
    with pytest.raises(FlashACEError, match=r"other: .* name a folder that does not exist"):
        convert([data_file], tmp_path / "other", overwrite=True)
    (folder / "run").mkdir()
    with pytest.raises(FlashACEError, match="expected nothing but shards in the folder to overwrite, got run"):
        convert([data_file], folder, overwrite=True)
    assert len(Shards(folder)) == 13
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.extxyz", "other", "shards"]


def test_shards_come_back_where_new_ones_cannot_take_their_place(tmp_path, data_file, uneven_file, monkeypatch):
    folder = tmp_path / "shards"
    convert([data_file], folder)
    rename = Path.rename

    def spoiled(path, target):
        if path.name == "new":
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", spoiled)
    with pytest.raises(OSError, match="no space"):
        convert([uneven_file], folder, overwrite=True)
    assert len(Shards(folder)) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_killed_conversion_leaves_no_shards_and_the_next_one_says_so(tmp_path, data_file):
    script = (
        "import os, signal, sys; from flashace.data import shards\n"
        "shards.content_hash = lambda frames: [next(frames) for _ in range(5)] and os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards.convert(sys.argv[1:2], sys.argv[2])"
    )
    ended = subprocess.run([sys.executable, "-c", script, data_file, tmp_path / "shards"], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["shards.partial"]
    assert not shards.is_shards(tmp_path / "shards.partial")
    with pytest.raises(FlashACEError, match=r"shards\.partial: .* one was killed; delete it"):
        convert([data_file], tmp_path / "shards")


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path, make_frames, monkeypatch):
    path = tmp_path / "data.extxyz"
    write(path, make_frames(3))
    decide = shards.Labeller.decide
    monkeypatch.setattr(shards.Labeller, "decide", lambda self: write(path, make_frames(4)) or decide(self))
    with pytest.raises(FlashACEError, match="expected 3 frames, as a moment ago, got 4"):
        convert([path], tmp_path / "shards")


@pytest.mark.parametrize("damage", ["manifest", "version", "keys", "shortened", "missing", "type"])
def test_damaged_shards_are_named(tmp_path, data_file, damage):
    made = convert([data_file], tmp_path / "shards")
    manifest, forces = made.folder / "manifest.json", made.folder / "forces.npy"
    text = manifest.read_text()
    if damage == "manifest":
        manifest.write_text(text[:100])
    elif damage == "version":
        manifest.write_text(text.replace('"format": 1', '"format": 7'))
    elif damage == "keys":
        manifest.write_text(text.replace('"files"', '"folders"'))
    elif damage == "shortened":
        forces.write_bytes(forces.read_bytes()[:-1])
    elif damage == "missing":
        forces.unlink()
    else:
        np.save(forces, np.load(forces).astype(np.float32))
    what = {"version": "format 7", "keys": "got files: Field required", "type": "got <f4"}.get(damage, "expected")
    with pytest.raises(FlashACEError, match=f"{what}.*; convert the files again"):
        Shards(made.folder)


def test_what_is_cut_off_while_it_is_read_is_an_error_and_no_signal(tmp_path, data_file):
    """Mapped into memory, it would end the process with SIGBUS."""
    made = convert([data_file], tmp_path / "shards")
    path = made.folder / "positions.npy"
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)
    assert len(made[0].atoms) == 2
    with pytest.raises(FlashACEError, match=r"positions\.npy: expected rows 22 to 24, got 0 of 48 bytes: the file was cut off"):
        made[11]


def test_a_flipped_bit_of_shards_is_noticed(tmp_path, data_file):
    path = convert([data_file], tmp_path / "shards").folder / "positions.npy"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(FlashACEError, match=r"positions\.npy: these shards are damaged: the content is not what was written"):
        Shards(path.parent)


def test_shards_of_earlier_versions_have_no_checksums(tmp_path, data_file):
    made = convert([data_file], tmp_path / "shards")
    manifest = json.loads((made.folder / "manifest.json").read_text())
    del manifest["crc32"]
    (made.folder / "manifest.json").write_text(json.dumps(manifest))
    assert content_hash(Shards(made.folder)) == manifest["sha256"]


@pytest.mark.parametrize("key", ["keys", "labels"])
def test_a_manifest_that_lost_a_label_is_refused(tmp_path, data_file, key):
    folder = convert([data_file], tmp_path / "shards").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[key]["stress"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FlashACEError, match=rf"got {key}: .*expected energy, forces, stress, got nothing of stress; convert"):
        Shards(folder)


@pytest.mark.parametrize(("key", "value"), [("labels", {}), ("keys", None), ("frames", "12"), ("atoms", 10**30), ("config_types", [1])])
def test_a_manifest_of_other_types_is_refused(tmp_path, data_file, key, value):
    folder = convert([data_file], tmp_path / "shards").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(FlashACEError, match=rf"manifest\.json: expected the manifest of shards, got {key}.*; convert the files again"):
        Shards(folder)


def test_shards_stand_alone(converted, data_file):
    with pytest.raises(FlashACEError, match="one folder of shards and nothing beside it"):
        read_data([converted.folder, data_file])


def test_keys_that_were_found_without_being_named_may_be_named(tmp_path, make_frames):
    frames = make_frames(3)
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
    write(tmp_path / "data.traj", frames)
    folder = convert([tmp_path / "data.traj"], tmp_path / "shards").folder
    assert len(read_data(folder, LabelKeys(energy="REF_energy", forces="forces"))[0]) == 3
    with pytest.raises(FlashACEError, match="took it from REF_energy"):
        read_data(folder, LabelKeys(energy="energy"))


# Fits


@pytest.fixture
def fit(tiny_fit, tmp_path):
    """fit(name, data, …options) -> metrics.csv without its times, and the header of the model."""

    def run(name, data, **options):
        prepared = prepare.prepare(make_config({**tiny_fit, "data": [str(data)], **options}))
        assert loop.fit(prepared, tmp_path / name, Console(quiet=True))
        with (tmp_path / name / "metrics.csv").open() as lines:
            rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(lines)]
        return rows, read_header(tmp_path / name / "model.pt")

    return run


@pytest.mark.parametrize("options", [{}, {"solve_atomic_energies": True, "random_rotation": True, "grad_accum_steps": 2}])
def test_a_fit_to_shards_is_the_fit_to_the_file(fit, uneven_file, converted, options):
    rows, header = fit("file", uneven_file, **options)
    same_rows, same_header = fit("shards", converted.folder, **options)
    assert rows == same_rows
    for each in (header, same_header):
        del each["sha256"], each["provenance"]["minutes"], each["provenance"]["training_data"]["files"]
    assert header == same_header


def test_shards_for_validation(fit, uneven_file, converted, data_file):
    assert fit("file", data_file, valid=[str(uneven_file)])[0] == fit("shards", data_file, valid=[str(converted.folder)])[0]


def test_a_fit_keeps_neither_frames_nor_graphs_nor_predictions(fit, converted, tmp_path, monkeypatch):
    """Every frame that a fit meets is made from the arrays, and at no time are more than a few of them alive."""
    alive = most = 0
    plain = Shards.__getitem__

    def gone():
        nonlocal alive
        alive -= 1

    def counted(self, index):
        nonlocal alive, most
        frame = plain(self, index)
        if not isinstance(index, slice):
            weakref.finalize(frame.atoms, gone)
            alive += 1
            most = max(most, alive)
        return frame

    monkeypatch.setattr(Shards, "__getitem__", counted)
    monkeypatch.setattr(clock, "CLOSING_FRAMES", 2)
    monkeypatch.setattr(first_model, "MAX_FRAMES_TO_START", 2)
    fit("run", converted.folder, batch_size=2)
    assert 0 < most < 5
    assert load_config(tmp_path / "run/config.yaml", {}).train.precompute_neighbors is False


def test_a_large_set_is_closed_with_a_sample(fit, converted, monkeypatch):
    monkeypatch.setattr(clock, "CLOSING_FRAMES", 3)
    errors = fit("run", converted.folder)[1]["provenance"]["errors"]
    assert errors["train"][-1]["frames"] == 3
    assert errors["validation"][-1]["frames"] == 1


# The other commands


def test_commands_take_shards(flashace, data_file, run_folder, tmp_path):
    result = flashace("convert", data_file, tmp_path / "shards")
    assert result.exit_code == 0, result.output
    assert "12 frames, 24 atoms" in result.output
    assert "calculator stress" in result.output
    outputs = []
    for data in (data_file, tmp_path / "shards"):
        result = flashace("evaluate", run_folder / "model.pt", data, "--output", tmp_path / f"{data.name}.extxyz")
        outputs.append(result.output.rpartition("predictions")[0])
    assert outputs[0] == outputs[1]
    written = read(tmp_path / "shards.extxyz", 3)
    assert written.info["REF_energy"] == pytest.approx(read(data_file, 3).get_potential_energy())
    assert "flashace_forces" in written.arrays
    assert "Error" in flashace("convert", data_file, tmp_path / "shards").output


def test_calibrate_knows_the_frames_of_the_fit_in_shards(flashace, converted, fit, tmp_path):
    fit("run", converted.folder)
    result = flashace("calibrate", tmp_path / "run/model.pt", converted.folder)
    assert "uncertainty calibrated on 1 frame" in result.output  # and not: others than in the fit


def test_check_finds_the_same_in_shards_and_says_what_to_mend(tmp_path, make_frames, monkeypatch):
    frames = make_frames(40)
    for atoms in frames:
        atoms.calc.results["forces"] = -atoms.calc.results["forces"]
    write(tmp_path / "data.traj", frames)
    made = convert([tmp_path / "data.traj"], tmp_path / "shards")
    of_file, of_shards = (check.check([path], LabelKeys())[0] for path in (tmp_path / "data.traj", made.folder))
    assert [(f.severity, f.what, f.frames) for f in of_file] == [(f.severity, f.what, f.frames) for f in of_shards]
    assert of_shards[0].severity == "surely wrong"
    assert of_shards[0].mend.endswith(f"and convert them again: {tmp_path}/data.traj")
    monkeypatch.setattr(check, "MOST_FRAMES", 30)
    assert "30 of 40 frames of these shards" in "".join(finding.detail for finding in check.check([made.folder], LabelKeys())[0])
