"""Files for LAMMPS: whole, tried before they are there, and for the processors that they are for."""

import copy
import ctypes
import re
import shutil
import subprocess

import pytest
import torch

from flashace import FlashACEError
from flashace.backends.c.backend import CpuKernel
from flashace.engines.lammps import export
from flashace.engines.lammps.export import export_for_lammps
from flashace.structure.neighbors import build_graph


def test_the_file_alone_gives_what_the_kernel_gives(model, exported, structure):
    """Its own code and weights, to the last bit."""
    kernel, graph = CpuKernel(copy.deepcopy(model)), build_graph(structure("crystal"), model.config.r_max)
    alone = kernel.from_file(exported, "flashace_weights")
    expected = kernel(graph)
    for tensor in kernel._held:
        tensor.zero_()
    found = alone(graph)
    assert torch.equal(found.energies, expected.energies)
    assert torch.equal(found.slopes, expected.slopes)


def test_damaged_weights_do_not_get_into_a_file(model, monkeypatch, tmp_path):
    as_c = CpuKernel.as_c

    def damaged(self, data):
        weights, blob = as_c(self, data)
        return weights, blob[:64] + bytes(len(blob) - 64)

    monkeypatch.setattr(CpuKernel, "as_c", damaged)
    with pytest.raises(FlashACEError, match=r"expected the .* of the plain path"):
        export_for_lammps(model, tmp_path / "model.so", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_other_processors_is_refused_by_this_one(model, lammps, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "_needs", lambda compiler, march: ["sse2", "avx512er"])
    assert export_for_lammps(model, tmp_path / "model.so", "x") == ["avx512er"]
    text = "units metal\nregion box block 0 9 0 9 0 9\ncreate_box 1 box\npair_style flashace\npair_coeff * * model.so C\n"
    done = lammps(text, ok=False)
    assert re.search(r"model\.so was compiled for another kind of processor: this one has no avx512er; export it", done.stdout)


@pytest.mark.skipif("avx2" not in export._features_here(), reason="no x86 with AVX2")
def test_march_is_what_the_code_is_for(model, exported, tmp_path):
    file = tmp_path / "model.so"
    assert export_for_lammps(model, file, "x", march="x86-64-v3") == []
    disassembly = subprocess.run(["objdump", "-d", file], capture_output=True, text=True, check=True).stdout
    assert "%ymm" in disassembly
    assert "%zmm" not in disassembly
    library = ctypes.CDLL(str(file))
    needs = ctypes.c_char_p.from_address(ctypes.addressof(ctypes.c_char.in_dll(library, "flashace_model")) + 16).value
    assert {b"avx", b"avx2", b"bmi1", b"bmi2", b"fma", b"abm", b"f16c", b"movbe"} <= set(needs.split())


def test_a_processor_that_the_compiler_does_not_know_is_named(model, tmp_path):
    with pytest.raises(FlashACEError, match=r"march: expected a processor that .* knows, got 'pdp11'"):
        export_for_lammps(model, tmp_path / "model.so", "x", march="pdp11")


def test_on_the_command_line(flashace, model_file, tmp_path):
    result = flashace("export", model_file, "--for", "lammps", "--output", tmp_path / "small.so")
    assert result.exit_code == 0, result.output
    assert "float32, native" in result.output
    assert "gives the energies and forces of the plain path" in result.output
    assert "without uncertainty of forces: `flashace calibrate` adds it to the model, then export again" in result.output
    assert f"pair_coeff * * {tmp_path / 'small.so'} C Si" in result.output
    assert b"float32" in (tmp_path / "small.so").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["small.so"]


def test_the_command_line_names_a_folder_that_is_not_there(flashace, model_file, tmp_path):
    result = flashace("export", model_file, "--for", "lammps", "--output", tmp_path / "none/model.so")
    assert result.exit_code == 1
    assert "none" in result.output


def test_only_an_export_is_overwritten(flashace, model_file, exported, tmp_path):
    notes, library, earlier = tmp_path / "notes.txt", tmp_path / "other.so", tmp_path / "earlier.so"
    notes.write_text("flashace_weights")
    subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", library], input="int flashace_model;", text=True, check=True)
    for file in (model_file, notes, library, tmp_path):
        before = file.read_bytes() if file.is_file() else None
        result = flashace("export", model_file, "--for", "lammps", "--output", file)
        assert result.exit_code == 1
        assert "expected the name of a new file or of an earlier export" in " ".join(result.output.split())
        assert (file.read_bytes() if file.is_file() else None) == before
    shutil.copy(exported, earlier)
    assert flashace("export", model_file, "--for", "lammps", "--output", earlier).exit_code == 0
    assert b"float32" in earlier.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier.so", "notes.txt", "other.so"]
