"""How uncertain forces are: each atom as in ASE, on any number of processes; warnings, the end of a run, the file of configurations."""

import copy
import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read

from flashace import FlashACE
from flashace.data.statistics import neighbour_statistics
from flashace.engines.lammps import export
from flashace.engines.lammps.export import export_for_lammps
from flashace.potential.uncertainty import Uncertainty
from flashace.structure.coordination import Coordination
from flashace.structure.neighbors import build_graph

SAME = 1e-9  # relative; text of LAMMPS has all digits
DYNAMICS = "velocity all create 3000 1 loop geom\nfix nve all nve\n"
READ = (
    "fix u all pair {every} flashace uncertainty {flag}\ndump u all custom {every} u.dump id x y z f_u\n"
    "dump_modify u sort id format float %.17g\n"
)


def crystal(size: float = 0.1, seed: int = 3) -> Atoms:
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * (2, 2, 1)
    atoms.rattle(size, seed=seed)
    return atoms


def with_one_out_of_place() -> Atoms:
    atoms = crystal(0.02)
    atoms.positions[13] += [0.5, 0.3, 0.2]
    return atoms


def ase_says(model, atoms: Atoms) -> np.ndarray:
    return FlashACE(model, dtype="float64", kernel="compiled").get_uncertainty(atoms).forces


def said(done) -> str:
    return " ".join((done.stdout + done.stderr).split())


def dumped(path) -> list[np.ndarray]:
    """Rows of id, x, y, z and uncertainty, of each step."""
    texts = [text.split("f_u")[1].splitlines()[1:] for text in path.read_text().split("ITEM: TIMESTEP\n")[1:]]
    return [np.array([row.split() for row in rows], dtype=float) for rows in texts]


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_atom_is_as_uncertain_as_in_ase(uncertain, commands, lammps, tmp_path, ranks, flag):
    model, file = uncertain
    atoms = crystal()
    lammps(commands(atoms, file, READ.format(every=2, flag=flag) + DYNAMICS + "run 4\n"), ranks)
    found = dumped(tmp_path / "u.dump")
    assert len(found) == 3
    for rows in found:
        here = Atoms(atoms.symbols, rows[:, 1:4], cell=atoms.cell, pbc=True)
        np.testing.assert_allclose(rows[:, 4], ase_says(model, here), rtol=SAME)


def test_atoms_alone_are_certain_and_float32_is_near(uncertain, commands, lammps, tmp_path, make_model):
    model, _ = uncertain
    single = make_model(dtype=torch.float32)
    single.uncertainty = model.uncertainty
    export_for_lammps(single, tmp_path / "single.so", "single")
    atoms = Atoms("SiCC", [[1, 1, 1], [2.6, 1, 1], [9, 9, 9]], cell=[15, 15, 15], pbc=True)
    lammps(commands(atoms, tmp_path / "single.so", READ.format(every=1, flag=0) + "run 0\n"))
    (rows,) = dumped(tmp_path / "u.dump")
    assert rows[2, 4] == 0
    np.testing.assert_allclose(rows[:2, 4], ase_says(model, atoms)[:2], rtol=1e-3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_warns_once_stops_all_and_writes_what_ase_reads(uncertain, commands, lammps, tmp_path, ranks):
    """The first run warns, the second one too, and writes one frame of three steps; the third stops at once."""
    model, file = uncertain
    atoms = with_one_out_of_place()
    expected = ase_says(model, atoms)
    largest = expected.max()
    options = f"uncertainty warn {0.9 * largest} dump far.xyz every 3"
    stop = f"pair_style flashace uncertainty stop {0.9 * largest} dump far.xyz every 3\npair_coeff * * {file} C Si\n"
    text = commands(atoms, file, f"fix nve all nve\ntimestep 1e-6\nrun 1\nrun 3\n{stop}run 5\n", options)
    done = lammps(text, ranks, ok=False)
    worst = expected.argmax()
    atom = f"the force on atom {worst + 1} ({atoms.symbols[worst]}) is uncertain by {largest:.3g} eV/A, which is more than"
    assert said(done).count("WARNING: pair_style flashace: at step") == 2
    assert f"WARNING: pair_style flashace: at step 0 {atom} {0.9 * largest:g}. Energies and forces are a guess" in said(done)
    assert f"WARNING: pair_style flashace: at step 1 {atom}" in said(done)
    assert f"ERROR: pair_style flashace uncertainty stop: at step 4 {atom} {0.9 * largest:g}" in said(done)
    assert "label this configuration, the last in far.xyz, and add it to the data" in said(done)
    assert "Loop time" not in said(done).split("at step 4")[1]
    found = read(tmp_path / "far.xyz", ":")
    assert [frame.info["step"] for frame in found] == [0, 3, 4]
    assert found[0].numbers.tolist() == atoms.numbers.tolist()
    for frame in found:
        assert frame.pbc.all()
        assert frame.arrays["id"].tolist() == list(range(1, len(atoms) + 1))
        np.testing.assert_allclose(frame.cell.array, atoms.cell.array, rtol=SAME)
        np.testing.assert_allclose(frame.arrays["forces_uncertainty"], ase_says(model, frame), rtol=SAME)
    np.testing.assert_allclose(found[0].positions, atoms.get_positions(wrap=True), atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_structure_that_is_unlike_the_training_as_a_whole(uncertain, commands, lammps, tmp_path, ranks):
    """As the calculator has it, to all digits that it tells: the same number of times."""
    model = copy.copy(uncertain[0])
    known, atoms = model.uncertainty, crystal(0.02)
    features = FlashACE(model, dtype="float64", kernel="plain").model.with_features(build_graph(atoms, model.config.r_max))[1]
    for times in (2.9, 3.1):
        model.uncertainty = Uncertainty(known.energy, known.atoms, 6, 1.0, 0, known.force_law, known.mean(features) / times)
        export_for_lammps(model, tmp_path / f"{times}.so", "mean")
    text = commands(atoms, tmp_path / "2.9.so", "run 0\n", "uncertainty stop 1e9")
    text += commands(atoms, tmp_path / "3.1.so", "run 0\n", "uncertainty warn 1e9 dump far.xyz")
    text += commands(atoms, tmp_path / "3.1.so", "run 0\n", "uncertainty stop 1e9")
    done = said(lammps(text, ranks, ok=False))
    unlike = "at step 0 the structure is unlike the training as a whole: its mean atom is 3.1 times as uncertain as in any frame"
    assert done.count("unlike the training as a whole") == 2
    assert f"WARNING: pair_style flashace: {unlike}" in done
    assert f"ERROR: pair_style flashace uncertainty stop: {unlike}" in done
    np.testing.assert_allclose(read(tmp_path / "far.xyz").positions, atoms.get_positions(wrap=True), atol=1e-12)


def test_a_tilted_open_box_is_written_as_it_is(uncertain, commands, lammps, tmp_path):
    model, file = uncertain
    atoms = crystal(0.3)
    changes = "change_box all boundary p p f triclinic\nchange_box all xy final 1.0 yz final -0.5 z final -3.0 9.0\n"
    lammps(commands(atoms, file, changes + READ.format(every=1, flag=1) + "run 0\n", "uncertainty warn 1e-9 dump far.xyz"), 2)
    frame, (rows,) = read(tmp_path / "far.xyz"), dumped(tmp_path / "u.dump")
    assert frame.pbc.tolist() == [True, True, False]
    np.testing.assert_allclose(frame.cell.array, [[8.72, 0, 0], [1.0, 8.72, 0], [0, -0.5, 12.0]], rtol=1e-12)
    np.testing.assert_allclose(frame.positions, rows[:, 1:4] + [0, 0, 3], atol=1e-12)
    np.testing.assert_allclose(frame.arrays["forces_uncertainty"], ase_says(model, frame), rtol=SAME)


def test_hybrid_has_it_and_writes_what_the_model_does_not_know_as_x(uncertain, commands, lammps, tmp_path):
    model, file = uncertain
    atoms = crystal(0.05)
    text = commands(atoms, file, READ.format(every=1, flag=0) + "run 0\n", "uncertainty warn 1e-9 dump far.xyz lj/cut 3.0")
    for right, wrong in {
        "create_box 2": "create_box 3",
        "pair_style flashace": "mass 3 40\ncreate_atoms 3 single 1.1 1.2 1.3\npair_style hybrid/overlay flashace",
        f"* * {file} C Si": f"* * flashace {file} C Si NULL\npair_coeff * 3 lj/cut 0.0 1.0\npair_coeff 1 2 lj/cut 0.0 1.0",
    }.items():
        assert right in text
        text = text.replace(right, wrong)
    lammps(text, 2)
    frame, (rows,) = read(tmp_path / "far.xyz"), dumped(tmp_path / "u.dump")
    assert frame.numbers.tolist() == [*atoms.numbers, 0]
    expected = [*ase_says(model, atoms), 0]
    np.testing.assert_allclose(frame.arrays["forces_uncertainty"], expected, rtol=SAME)
    np.testing.assert_allclose(rows[:, 4], expected, rtol=SAME)


def test_a_minimization_stops_too(uncertain, commands, lammps):
    model, file = uncertain
    atoms = crystal(0.05)
    runs = "set atom 14 x 2.5 y 3.0 z 1.0\nmin_style sd\nminimize 0 1e-9 100 1000\n"
    done = lammps(commands(atoms, file, runs, f"uncertainty stop {1.5 * ase_says(model, atoms).max()}"), 2, ok=False)
    assert "ERROR: pair_style flashace uncertainty stop: at step" in said(done)


def test_what_a_fix_only_tries_does_not_count(uncertain, commands, lammps, tmp_path):
    """fix widom puts atoms on top of others and takes them away again."""
    model, file = uncertain
    atoms = crystal(0.02)
    largest = ase_says(model, atoms).max()
    options = f"uncertainty warn {1.1 * largest} stop {1.2 * largest} dump far.xyz"
    tries = "neigh_modify delay 0 every 1\nfix w all widom 1 20 1 12345 300\nrun 3\n"
    done = lammps(commands(atoms, file, tries, options))
    assert said(done).count("pair_style flashace:") == 1  # which type is which element
    assert not (tmp_path / "far.xyz").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_guards_write_and_stop_as_well(uncertain, make_model, commands, lammps, tmp_path, ranks):
    """Distances and numbers of neighbours warn; with `stop`, numbers of neighbours end the run, as in ASE."""
    model = make_model(shortest_distances={"C-Si": 1.7, "C-C": 2.7, "Si-Si": 2.7})
    c = model.config
    graphs = [build_graph(crystal(0.05, seed), c.r_max) for seed in range(20)]
    model.coordination = Coordination(
        neighbour_statistics(graphs, model.symbols, c.r_max, c.envelope_exponent, {}, {}).coordination, model.symbols
    )
    model.uncertainty = uncertain[0].uncertainty
    export_for_lammps(model, tmp_path / "guarded.so", "guarded")
    close, slab = crystal(0.05, 7), crystal(0.05, 7)
    close.positions[1] += 0.3 * (close.positions[0] - close.positions[1])
    slab.cell[2, 2] += 12.0
    text = commands(close, tmp_path / "guarded.so", "run 0\n", "uncertainty warn 1e9 dump far.xyz every 1")
    text += commands(slab, tmp_path / "guarded.so", "run 0\n", "uncertainty stop 1e9 dump far.xyz every 1")
    done = lammps(text, ranks, ok=False)
    assert "A apart, and no such pair closer than 1.700 A in training. Energies and forces are a guess" in said(done)
    assert re.search(
        r"ERROR: pair_style flashace uncertainty stop: atom \d+ \(\w+\) has [\d.]+ neighbors \w+, counted by the envelope", said(done)
    )
    assert [frame.cell.lengths()[2] for frame in read(tmp_path / "far.xyz", ":")] == pytest.approx([4.36, 16.36])


def test_files_without_it_say_so_only_where_it_is_asked_for(exported, uncertain, model, commands, lammps, monkeypatch, tmp_path):
    """A model that has none, a file of the version before there was any, and a model whose calibration knew no forces."""
    for name in ("model.c", "model.h"):
        text = export.MODEL_C.with_name(name).read_text()
        text = re.sub(r"(?s), FEATURE_BYTES, SUMS,.*?}", "}", text.replace("FLASHACE_ABI 3", "FLASHACE_ABI 2"))
        (tmp_path / name).write_text(re.sub(r"(?s)    int64_t feature_bytes;.*?\n}", "}", text))
    assert "feature_bytes" not in (tmp_path / "model.h").read_text()
    monkeypatch.setattr(export, "MODEL_C", tmp_path / "model.c")
    export_for_lammps(model, tmp_path / "old.so", "old.pt")
    monkeypatch.undo()
    knows_energies = copy.copy(uncertain[0])
    known = uncertain[0].uncertainty
    knows_energies.uncertainty = Uncertainty(known.energy, known.atoms, known.frames, known.largest)
    export_for_lammps(knows_energies, tmp_path / "energies.so", "energies.pt")
    lacks = "ERROR: pair_style flashace: expected a model file with uncertainty, got one without"
    for file in (exported, tmp_path / "old.so", tmp_path / "energies.so"):
        assert "ERROR" not in lammps(commands(crystal(), file, "run 1\n")).stdout
        assert lacks in said(lammps(commands(crystal(), file, "run 1\n", "uncertainty warn 0.1"), 2, ok=False))
        assert lacks in said(lammps(commands(crystal(), file, READ.format(every=1, flag=1) + "run 1\n"), 2, ok=False))


BAD = {
    "uncertain": ": expected nothing after it, or uncertainty, got uncertain",
    "uncertainty": " uncertainty: expected warn or stop, each with a number of eV/A, got neither",
    "uncertainty warn": " uncertainty: expected a value after warn, got nothing",
    "uncertainty warn -1": " uncertainty: expected a number of eV/A above zero after warn, got -1",
    "uncertainty stop 0": " uncertainty: expected a number of eV/A above zero after stop, got 0",
    "uncertainty dump far.xyz": " uncertainty: expected warn or stop, each with a number",
    "uncertainty warn 1 every 0": " uncertainty: expected a number of steps after every, got 0",
    "uncertainty warn 1 halt 2": " uncertainty: expected warn, stop, dump or every, got halt",
    "uncertainty warn 1 dump none/far.xyz": " uncertainty dump: expected a file to write to, got none/far.xyz: No such file or directory",
}


@pytest.mark.parametrize("options", BAD)
def test_mistakes_are_named(uncertain, commands, lammps, options):
    done = lammps(commands(crystal(), uncertain[1], "run 0\n", options), ok=False)
    assert f"ERROR: pair_style flashace{BAD[options]}" in said(done)
