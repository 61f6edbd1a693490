"""docs/options.md: written by the dataclasses, complete, and about options that something reads."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from flashace.data.labels import LABELS
from flashace.potential.model import ModelConfig
from flashace.train.config import TrainConfig
from flashace.train.options import option_tables

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = {"t", "c", "config", "train", "model"}  # what a configuration is called where it is read
NAMES = [f.name for kind in (TrainConfig, ModelConfig) for f in fields(kind)]


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/options.md").read_text() == option_tables(), "python -m flashace.train.options > docs/options.md"


def test_no_option_is_missing():
    assert re.findall(r"^\| `(\w+)` \|", option_tables(), re.MULTILINE) == NAMES


@pytest.fixture(scope="module")
def read():
    return options_read(ROOT / "flashace")


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_read(name, read):
    assert name in read


def test_an_option_that_nothing_reads_is_caught(tmp_path):
    (tmp_path / "a.py").write_text("config.seed\nfoo.epochs\nconfig.dtype = 3\nself.config.train.warmup")
    assert options_read(tmp_path) == {"seed", "warmup", "train"}
    (tmp_path / "b.py").write_text('[getattr(t, f"{label}_key") for label in LABELS]; getattr(foo, f"{label}_weight")')
    assert options_read(tmp_path) == {"seed", "warmup", "train", "energy_key", "forces_key", "stress_key"}


def options_read(package):
    """Attributes of a configuration, or of `self` in the class of a configuration, that occur in an expression."""
    found = set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
        for root, owners in [(tree, CONFIGURATIONS), *((c, {"self"}) for c in classes)]:
            for node in ast.walk(root):
                match node:
                    case ast.Attribute(value=owner, attr=name, ctx=ast.Load()) if named(owner) in owners:
                        found.add(name)
                    case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.JoinedStr(values=[_, ast.Constant(value=ending)])]) if (
                        named(owner) in owners
                    ):
                        found |= {f"{label}{ending}" for label in LABELS}  # the options of each label of the table
    return found


def named(node):
    return getattr(node, "attr", getattr(node, "id", None))
