"""The model file: what went in comes out to the last bit, and what is not a model file says so."""

import json
import math
import re
import runpy
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from safetensors import safe_open
from safetensors.torch import save_file

from flashace import FlashACE
from flashace.data.frames import LABELS
from flashace.errors import FlashACEError
from flashace.potential import model_file as model_file_module
from flashace.potential.model import UNBOUNDED
from flashace.potential.model_file import FORMAT, _digest, describe, load_model, read_header, save_model, share_model
from flashace.structure.neighbors import build_graph

ERRORS = {f"{label}_{mean}": None if label == "stress" else 1.5 for label in LABELS for mean in ("mae", "rmse")}
PROVENANCE = {
    "training_data": {"sha256": "ab", "frames": 3},
    "errors": {"train": [{"config_type": "all", "frames": 3, **ERRORS}]},
    "note": "β",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"radial_basis_type": "gaussian", "radial_trainable": True, "num_heads": 2, "l_max": 3}], ids=str)
def test_the_round_trip_is_exact(make_model, tmp_path, structure, dtype, options):
    model = make_model(dtype=dtype, **options)
    save_model(tmp_path / "m.pt", model, PROVENANCE)
    loaded = load_model(tmp_path / "m.pt", dtype)
    assert loaded.config == model.config
    assert (loaded.e0, loaded.scale, loaded.avg_num_neighbors) == (model.e0, model.scale, model.avg_num_neighbors)
    one, other = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert one.keys() == other.keys()
    assert all(torch.equal(p, other[name]) and p.dtype == other[name].dtype for name, p in one.items())
    assert (loaded.atomic_energies == model.atomic_energies).all()
    graph = build_graph(structure("crystal"), model.config.r_max)
    graph = graph.with_edge_vec(graph.edge_vec.to(dtype))
    torch.testing.assert_close(loaded(graph), model(graph).detach(), rtol=2e-5 if dtype == torch.float32 else 1e-13, atol=0)
    save_model(tmp_path / "again.pt", loaded, PROVENANCE)
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()


def test_every_buffer_is_rebuilt(make_model, tmp_path):
    """Nothing but parameters is stored; what is derived from the configuration comes out the same."""
    model = make_model()
    save_model(tmp_path / "m.pt", model, {})
    for (name, one), (other_name, other) in zip(
        model.named_buffers(), load_model(tmp_path / "m.pt", torch.float64).named_buffers(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_float32_model_keeps_its_weights_in_float64(make_model, tmp_path):
    model = make_model(dtype=torch.float32)
    save_model(tmp_path / "m.pt", model, {})
    loaded = load_model(tmp_path / "m.pt", torch.float64)
    assert all(torch.equal(p.double(), dict(loaded.named_parameters())[name]) for name, p in model.named_parameters())


def test_the_header_tells_everything_but_the_weights(make_model, tmp_path):
    model = make_model()
    save_model(tmp_path / "m.pt", model, PROVENANCE)
    header = read_header(tmp_path / "m.pt")
    assert header["provenance"] == PROVENANCE
    assert header["format"] == FORMAT
    assert header["atomic_energies"] == model.e0
    assert header["num_parameters"] == sum(p.numel() for p in model.parameters())


def test_shortest_distances_come_back(make_model, tmp_path):
    model = make_model(shortest_distances={"C-Si": 1.75, "Si-Si": 2.25})
    save_model(tmp_path / "m.pt", model, {})
    loaded = load_model(tmp_path / "m.pt", torch.float64)
    assert loaded.shortest_distances == model.shortest_distances
    assert loaded.shortest.tolist() == [[4.0, 1.75], [1.75, 2.25]]  # C, Si; no C-C within the cutoff


def test_the_energy_bound_comes_back(make_model, tmp_path):
    model = make_model()
    for bound in (12.5, math.inf):
        model.energy_bound = bound
        save_model(tmp_path / "m.pt", model, {})
        assert load_model(tmp_path / "m.pt", torch.float64).energy_bound == bound


def test_models_from_before_bounds_have_none():
    model = load_model(DATA / "format-1.pt", torch.float64)
    assert not model.config.bounded
    assert model.energy_bound == math.inf
    assert model.layers[0].limits == UNBOUNDED
    assert model.layers[0].attention.own_weight == 1.0


def test_models_are_shared_by_content(make_model, tmp_path):
    one, copy = tmp_path / "one.pt", tmp_path / "copy.pt"
    save_model(one, make_model(seed=11), {})
    copy.write_bytes(one.read_bytes())
    model = share_model(one, torch.float64, "cpu")
    assert share_model(copy, torch.float64, "cpu") is model
    assert share_model(one, torch.float32, "cpu") is not model
    assert load_model(one, torch.float64) is not model


def test_saving_replaces_a_file_whole_or_not_at_all(make_model, tmp_path, model_file):
    path = tmp_path / "m.pt"
    path.write_bytes(model_file.read_bytes())
    with pytest.raises(TypeError):
        save_model(path, make_model(), {"not JSON": object()})
    assert path.read_bytes() == model_file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_loading_draws_no_random_numbers(model_file):
    state = torch.random.get_rng_state()
    load_model(model_file)
    assert (torch.random.get_rng_state() == state).all()


# What is not a model file


def both_refuse(path, message, error=FlashACEError):
    for call in (load_model, read_header, FlashACE):
        with pytest.raises(error, match=message):
            call(path)


def test_a_missing_file(tmp_path):
    both_refuse(tmp_path / "no.pt", "no.pt: no such file", FileNotFoundError)
    with pytest.raises(FlashACEError, match=r"expected a model file, got a folder; `flashace fit` leaves one as model\.pt"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        FlashACE(tmp_path)  # a calculator looks for the model.pt of a run folder


@pytest.mark.parametrize("part", [0.0, 1e-4, 4e-4, 0.05, 0.5, 0.999])
def test_a_truncated_file(model_file, tmp_path, part):
    whole = model_file.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: int(part * len(whole))])
    both_refuse(path, re.escape(f"{path}: expected a FlashACE model file, but it is truncated or of another kind"))


FOREIGN = {
    "text": lambda path: path.write_text("a structure file\n" * 20),
    "pickle": lambda path: torch.save({"weight": torch.zeros(2)}, path),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "safetensors": lambda path: save_file({"weight": torch.zeros(2)}, path),
    "safetensors with metadata": lambda path: save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"}),
    "no JSON": lambda path: save_file({"weight": torch.zeros(2)}, path, metadata={"flashace": "{"}),
    "a list": lambda path: save_file({"weight": torch.zeros(2)}, path, metadata={"flashace": "[1]"}),
    "format as text": lambda path: save_file({"weight": torch.zeros(2)}, path, metadata={"flashace": '{"format": "1"}'}),
    "deep JSON": lambda path: save_file({"weight": torch.zeros(2)}, path, metadata={"flashace": "[" * 100_000}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file(tmp_path, kind):
    path = tmp_path / "foreign.pt"
    FOREIGN[kind](path)
    both_refuse(path, "expected a FlashACE model file")


def rewritten(model_file, path, change):
    """The model file with another header. `change` gets our part of it as a dict."""
    whole = model_file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    outer = json.loads(whole[8 : 8 + length])
    inner = json.loads(outer["__metadata__"]["flashace"])
    change(inner)
    outer["__metadata__"]["flashace"] = json.dumps(inner)
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    return path


def test_a_newer_file_asks_for_a_newer_program(model_file, tmp_path):
    path = rewritten(model_file, tmp_path / "new.pt", lambda header: header.update(format=FORMAT + 1, config="not known yet"))
    both_refuse(path, f"has format {FORMAT + 1}, and this version of FlashACE reads up to format {FORMAT}; pip install -U")


WRONG = {
    "no config": lambda h: h.pop("config"),
    "unknown option": lambda h: h["config"].update(colour="red"),
    "wrong kind": lambda h: h["config"].update(num_layers="many"),
    "other size": lambda h: h["config"].update(hidden_dim=32),
    "other depth": lambda h: h["config"].update(num_layers=3),
    "fewer elements": lambda h: h["atomic_energies"].pop("C"),
    "no such element": lambda h: h["atomic_energies"].update(Xy=1.0),
    "elements as a list": lambda h: h.update(atomic_energies=["C", "Si"]),
    "energy of no number": lambda h: h["atomic_energies"].update(C=None),
    "scale of no number": lambda h: h.update(scale="large"),
    "scale beyond numbers": lambda h: h.update(scale=10**400),
    "no scale": lambda h: h.pop("scale"),
    "config as a list": lambda h: h.update(config=[1]),
    "distances as a list": lambda h: h.update(shortest_distances=[1.0]),
    "distance of one element": lambda h: h.update(shortest_distances={"C": 1.0}),
    "distance to an element that is not there": lambda h: h.update(shortest_distances={"C-H": 1.0}),
    "distance of no number": lambda h: h.update(shortest_distances={"C-Si": "near"}),
    "distance of nothing": lambda h: h.update(shortest_distances={"C-Si": 0.0}),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_header_that_does_not_fit_the_weights(model_file, tmp_path, case):
    path = rewritten(model_file, tmp_path / "wrong.pt", WRONG[case])
    with pytest.raises(
        FlashACEError, match=r"wrong.pt: this model file is damaged: its content is not what was written; copy or fit it again"
    ):
        load_model(path)


@pytest.mark.parametrize("case", WRONG)
def test_a_header_that_was_written_wrong(make_model, tmp_path, case, monkeypatch):
    """The same, with a hash that fits: written by another version, say."""
    wrong = describe(make_model())
    WRONG[case](wrong)
    monkeypatch.setattr(model_file_module, "describe", lambda model: wrong)
    save_model(tmp_path / "wrong.pt", make_model(), {})
    with pytest.raises(
        FlashACEError, match=r"(?s)wrong.pt: header and weights of this model file do not fit together \(.*write it anew with `fl"
    ):
        load_model(tmp_path / "wrong.pt")


WRONG_PROVENANCE = {
    "training data as text": {"training_data": "a.xyz"},
    "files as text": {"training_data": {"files": "a.xyz"}},
    "errors as a number": {"errors": 3},
    "errors without a number": {"errors": {"train": [{"config_type": "all", "frames": 3}]}},
    "versions of no text": {"versions": {"torch": [2, 13]}},
    "reference energies of no text": {"reference_energies": {"C": 1.0}},
}


@pytest.mark.parametrize("case", WRONG_PROVENANCE)
def test_a_provenance_that_nobody_could_show(make_model, tmp_path, case):
    save_model(tmp_path / "wrong.pt", make_model(), WRONG_PROVENANCE[case])
    both_refuse(tmp_path / "wrong.pt", r"wrong.pt: header and weights of this model file do not fit together")


def test_info_shows_names_as_they_are(make_model, tmp_path, flashace):
    """Brackets and colons are no markup."""
    files = ["run[1].xyz", "[/red].xyz", ":smile:.xyz"]
    save_model(tmp_path / "m.pt", make_model(), {"training_data": {"files": files, "kept": [1, 2]}, "note": "[/]"})
    assert ", ".join(files) in flashace("info", tmp_path / "m.pt").output


def test_bytes_flipped_in_the_header_are_harmless(model_file, tmp_path, flashace):
    """It loads or it is refused; it never crashes, and `flashace info` never shows a traceback."""
    whole = model_file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.pt"
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(0 if trial % 5 == 0 else 8, 8 + length, size=1 + trial % 3):
            damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_model(path)
        except FlashACEError:
            refused += 1
        info = flashace("info", path)
        assert info.exit_code == 0 or info.output.startswith("Error: "), info.output
    assert refused > 50


def test_a_changed_number_in_the_header_is_noticed(model_file, tmp_path):
    """Weights and header belong together: a cutoff that was altered on the way gives another potential, silently."""
    path = tmp_path / "altered.pt"
    path.write_bytes(model_file.read_bytes().replace(b'\\"r_max\\": 4.0', b'\\"r_max\\": 5.0'))
    assert path.read_bytes() != model_file.read_bytes()
    with pytest.raises(FlashACEError):
        load_model(path)


# What is kept for ever


DATA = Path(__file__).parent / "model_files"


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_files_of_every_format_stay_readable(number):
    """Written once, by the first version with that format (tests/potential/model_files/write_format.py)."""
    path = DATA / f"format-{number}.pt"
    assert read_header(path)["format"] == number
    stored = json.loads(path.with_suffix(".json").read_text())
    atoms = Atoms(**stored["structure"], calculator=FlashACE(path, device="cpu", dtype="float64", kernel="plain"))
    for name, expected in stored["results"].items():
        np.testing.assert_allclose(atoms.calc.get_property(name, atoms), expected, rtol=1e-10, atol=1e-11)


def test_mutated_files_are_refused_or_fit_to_use(tmp_path):
    """The first files of benchmarks/fuzz_model_file.py, which goes on for thousands."""
    fuzz = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/fuzz_model_file.py")))
    whole, path, marker = (DATA / "format-1.pt").read_bytes(), tmp_path / "mutant.pt", tmp_path / "executed"
    verdicts = {}
    for seed in range(330):
        kind, content = fuzz.mutant(whole, seed, marker)
        path.write_bytes(content)
        verdicts[kind, seed] = fuzz.judge(path)
    assert {case: verdict for case, verdict in verdicts.items() if verdict not in ("refused", "loaded")} == {}
    assert not marker.exists()
    kinds = {kind for kind, _ in verdicts}
    assert kinds == set(fuzz.KINDS)
    assert all("refused" in {verdicts[case] for case in verdicts if case[0] == kind} for kind in kinds)
    assert "loaded" in verdicts.values()


def test_a_model_that_no_memory_holds_is_refused_before_it_is_built(model_file, tmp_path):
    with safe_open(model_file, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["flashace"])
    for size in ({"hidden_dim": 4 * 10**9}, {"num_layers": 10**9}, {"correlation": 10**9}, {"num_channels": 4 * 10**12}):
        changed = {name: value for name, value in header.items() if name != "sha256"} | {"config": header["config"] | size}
        changed["sha256"] = _digest(changed, tensors)
        save_file(tensors, tmp_path / "giant.pt", metadata={"flashace": json.dumps(changed)})
        with pytest.raises(FlashACEError, match="do not fit together"):
            load_model(tmp_path / "giant.pt")
