"""Options: checked where they enter, one flat list in YAML, and a file that runs as it stands."""

from dataclasses import asdict, fields

import pytest
import yaml

from flashace.errors import FlashACEError
from flashace.potential.model import ModelConfig
from flashace.train.config import SIZES, TrainConfig, load_config, make_config, write_config

EVERYTHING = {
    "data": ["a.extxyz", "b.extxyz"],
    "valid": ["v.extxyz"],
    "atomic_energies": {"Si": -5.0, "No": -1.0},
    "isolated_atoms": "atoms.extxyz",
    "output": "runs/1",
    "energy_key": "E",
    "seed": 3,
    "epochs": 7,
    "max_time": 2.5,
    "batch_size": 4,
    "dtype": "float64",
    "hidden_dim": 24,
    "num_channels": 8,
    "num_heads": 2,
    "radial_basis_type": "gaussian",
    "gaussian_width": 0.5,
    "learning_rate": 1e-4,
}


def test_yaml_comes_back_as_it_was(tmp_path):
    for options in ({}, EVERYTHING):
        config = make_config(options)
        write_config(tmp_path / "config.yaml", config)
        assert load_config(tmp_path / "config.yaml", {"output": options.get("output")}) == config  # it runs into a new folder
        for name, value in options.items():
            found = getattr(config.train, name, getattr(config.model, name, None))
            assert (list(found) if isinstance(found, tuple) else found) == value


def test_flags_overrule_the_file_and_none_does_not(tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 3\nseed: 1\nr_max: 4.0\ndata: a.extxyz\n")
    config = load_config(tmp_path / "c.yaml", {"epochs": 9, "seed": None, "r_max": 3.5, "data": (), "valid": ("v.xyz",)})
    assert (config.train.epochs, config.train.seed, config.model.r_max) == (9, 1, 3.5)
    assert (config.train.data, config.train.valid) == (("a.extxyz",), ("v.xyz",))


def test_a_size_sets_what_no_option_gives(tmp_path):
    assert make_config({"size": "medium"}) == make_config({})
    small = make_config({"size": "small", "num_layers": 3})
    assert (small.model.hidden_dim, small.model.num_channels, small.model.num_layers) == (64, 16, 3)
    write_config(tmp_path / "c.yaml", small)
    assert load_config(tmp_path / "c.yaml", {}) == small


def test_a_flag_brings_what_it_sets_beside_itself(tmp_path):
    """The file of a run has all sizes, and the learning rate of a fit from scratch."""
    write_config(tmp_path / "config.yaml", make_config({"size": "small", "data": ["a.extxyz"], "key_dim": 8}))
    large = load_config(tmp_path / "config.yaml", {"size": "large"})
    assert large.model == make_config({"size": "large", "key_dim": 8}).model
    assert load_config(tmp_path / "config.yaml", {"size": "large", "num_layers": 2}).model.num_layers == 2
    tuned, expected = load_config(tmp_path / "config.yaml", {"resume_from": "m.pt"}), make_config({"resume_from": "m.pt"})
    assert (tuned.train.learning_rate, tuned.train.energy_weight) == (expected.train.learning_rate, expected.train.energy_weight)
    write_config(tmp_path / "mine.yaml", make_config({"learning_rate": 1e-5}))
    assert load_config(tmp_path / "mine.yaml", {"resume_from": "m.pt"}).train.learning_rate == 1e-5


def test_sizes_ascend():
    models = [make_config({"size": size}).model for size in SIZES]
    for name in {name for sizes in SIZES.values() for name in sizes}:
        values = [getattr(model, name) for model in models]
        assert values == sorted(values), name


def test_model_and_training_share_no_name():
    assert not {f.name for f in fields(ModelConfig)} & {f.name for f in fields(TrainConfig)}


def test_every_option_is_described():
    for kind in (ModelConfig, TrainConfig):
        assert all(f.default.description for f in fields(kind))


@pytest.mark.parametrize(
    ("key", "nearest"), [("rmax", "r_max"), ("epoch", "epochs"), ("lmax", "l_max"), ("learning-rate", "learning_rate"), ("sead", "seed")]
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(FlashACEError, match=f"^unknown key `{key}`; did you mean `{nearest}`\\?$"):
        make_config({key: 1})


def test_an_unknown_key_far_from_all_shows_them_all():
    with pytest.raises(FlashACEError, match=r"^unknown key `qqq`; known are .*energy_key.*r_max.*weight_decay") as error:
        make_config({"qqq": 1})
    assert all(name in str(error.value) for name in asdict(TrainConfig()) | asdict(ModelConfig()))
    with pytest.raises(FlashACEError, match="unknown key `3`"):
        make_config({3: 1})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": "many"}, "`epochs`: .*integer.*got 'many'"),
        ({"epochs": 0}, "`epochs`: .*greater than or equal to 1, got 0"),
        ({"epochs": 2.5}, "`epochs`: .*got 2.5"),
        ({"max_time": -1}, "`max_time`: .*greater than 0, got -1"),
        ({"valid_fraction": 1.0}, "`valid_fraction`: .*less than 1, got 1.0"),
        ({"dtype": "float16"}, "`dtype`: .*'float32' or 'float64', got 'float16'"),
        ({"size": "huge"}, "`size`: .*'small', 'medium' or 'large', got 'huge'"),
        ({"optimizer": "sgd"}, "`optimizer`: .*'muon' or 'adamw', got 'sgd'"),
        ({"atomic_energies": [1.0]}, r"`atomic_energies`: .*dictionary, got \[1.0\]"),
        ({"atomic_energies": {"Si": "low"}}, "`atomic_energies.Si`: .*number.*got 'low'"),
        ({"data": 3}, "`data`: .*got 3"),
        ({"output": 5}, "`output`: .*string, got 5"),
        ({"r_max": "far"}, "`r_max`: .*number.*got 'far'"),
        ({"num_heads": 3, "num_channels": 8}, "num_channels=8 must be a multiple of num_heads=3"),
        ({"learning_rate": float("nan")}, "`learning_rate`: .*got nan"),
        ({"learning_rate": float("inf")}, "`learning_rate`: .*got inf"),
    ],
    ids=str,
)
def test_a_wrong_kind_is_named_with_what_came(option, message):
    with pytest.raises(FlashACEError, match=message) as error:
        make_config(option)
    assert "\n" not in str(error.value)


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(FlashACEError, match="; ") as error:
        make_config({"epochs": 0, "seed": -1})
    assert "`epochs`: " in str(error.value)
    assert "`seed`: " in str(error.value)


@pytest.mark.parametrize("text", ["compile: no", "compile: 'no'"])
def test_no_is_no_in_yaml(tmp_path, text):
    """YAML reads a bare `no` as false; who writes what the option's description says must be understood."""
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml", {}) == make_config({"compile": "no"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2", "c.yaml: expected `name: value` lines, got a list"),
        ("just text", "c.yaml: expected `name: value` lines, got a str"),
        ("a: [1", "c.yaml: expected YAML, got"),
        ("!!python/object/apply:os.system ['true']", "c.yaml: expected YAML, got"),
        ("b\x00", "c.yaml: expected YAML, got"),
    ],
)
def test_what_is_not_yaml_says_so(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(FlashACEError, match=message):
        load_config(tmp_path / "c.yaml", {})


def test_a_file_in_another_encoding_says_so(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"output: \xff\xfe")
    with pytest.raises(FlashACEError, match=r"c\.yaml: expected YAML"):
        load_config(tmp_path / "c.yaml", {})


def test_an_empty_file_is_the_defaults_and_a_missing_one_an_error(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "c.yaml", {}) == make_config({})
    with pytest.raises(FlashACEError, match=r"no\.yaml: no such file"):
        load_config(tmp_path / "no.yaml", {})


def test_numbers_as_people_write_them(tmp_path):
    """PyYAML takes 1e-3 for text."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"r_max": 5}) + "learning_rate: 1e-3\n")
    config = load_config(tmp_path / "c.yaml", {})
    assert (config.train.learning_rate, config.model.r_max) == (1e-3, 5.0)


def test_weights_are_numbers_or_schedules(tmp_path):
    (tmp_path / "c.yaml").write_text("energy_weight: {0.75: 10, 0.0: 0.1}\nforces_weight: 1e2\nstress_weight: 0\n")
    config = load_config(tmp_path / "c.yaml", {})
    assert (config.train.energy_weight, config.train.forces_weight, config.train.stress_weight) == ({0.0: 0.1, 0.75: 10.0}, 100.0, 0.0)
    write_config(tmp_path / "again.yaml", config)
    assert load_config(tmp_path / "again.yaml", {}) == config
    assert load_config(tmp_path / "c.yaml", {"energy_weight": 3.0}).train.energy_weight == 3.0


@pytest.mark.parametrize("name", ["energy_weight", "forces_weight", "stress_weight"])
@pytest.mark.parametrize(
    "value", [-1, "heavy", {}, {0.5: 1}, {0.0: 1, 1.0: 2}, {0.0: -1}, {0.0: "x"}, {"x": 1}, [1], float("nan")], ids=str
)
def test_a_weight_that_is_none_says_what_one_is(name, value):
    with pytest.raises(
        FlashACEError, match=rf"^`{name}`: .*expected a weight, or {{progress: weight}} from progress 0.0 on.*, got "
    ) as error:
        make_config({name: value})
    assert ";" not in str(error.value)


@pytest.mark.parametrize(("old", "check"), [({"force": True}, "warn"), ({"force": False}, "stop"), ({"check": False}, "off")])
def test_older_configurations_and_yaml_without_quotes_load(old: dict[str, bool], check: str) -> None:
    assert make_config(old).train.check == check
