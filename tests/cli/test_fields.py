"""Every field of the options is a flag of `fit`, with what stands in the field."""

from dataclasses import fields

import click
import pytest

from flashace.cli.check import check
from flashace.cli.fields import LABEL_KEYS
from flashace.cli.fit import fit
from flashace.potential.config import ModelConfig
from flashace.teach.config import SampleConfig
from flashace.train.config import TrainConfig, load_config

KNOWN = {f.name: f for kind in (TrainConfig, ModelConfig) for f in fields(kind)}
OF_A_TEACHER = {f.name for f in fields(SampleConfig)} - set(KNOWN)


def flags(command):
    params = command.get_params(click.Context(command))
    return {param.name: param for param in params if isinstance(param, click.Option) and "--help" not in param.opts}


def test_every_field_but_mappings_is_a_flag_without_a_default_of_its_own():
    made = flags(fit)
    assert set(KNOWN) - set(made) == {"data", "atomic_energies"}  # the argument; and what a command line has no form for
    assert set(made) - set(KNOWN) == {"config", "overwrite", "dry_run", "resume"} | OF_A_TEACHER
    assert set(flags(check)) == {"json_file", *LABEL_KEYS}
    given = fit.make_context("fit", []).params
    assert all(given[name] in (None, ()) for name in set(made) & set(KNOWN))  # a default would overrule the file


def test_what_a_field_says_is_the_help_of_its_flag():
    for name, flag in flags(fit).items():
        if name in KNOWN:
            description = KNOWN[name].default.description
            assert flag.help.startswith(description[0].upper() + description[1:] + "."), name
    texts = {name: flag.help for name, flag in flags(fit).items()}
    assert texts["lr_factor"].endswith("[default: 0.5]")
    assert texts["zbl"].endswith("[default: true]")
    assert "default" not in texts["epochs"]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("num_layers", ["--num-layers", 1], 1),
        ("energy_weight", ["--energy-weight", 2.5], 2.5),
        ("optimizer", ["--optimizer", "adamw"], "adamw"),
        ("zbl", ["--no-zbl"], False),
        ("compile", ["--compile", "false"], False),
        ("compile", ["--compile", "auto"], "auto"),
        ("valid", ["--valid", "a.xyz", "--valid", "b.xyz"], ("a.xyz", "b.xyz")),
        ("output", ["-o", "run"], "run"),
    ],
)
def test_flags_of_every_kind_reach_the_configuration(name, given, expected):
    params = fit.make_context("fit", [*map(str, given)]).params
    options = load_config(None, {field: params[field] for field in KNOWN if field in params})
    assert getattr(options.train if hasattr(options.train, name) else options.model, name) == expected
