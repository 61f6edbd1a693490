"""Who imports whom in flashace/, against the floors of CONTRIBUTING.md and the requirements of setup.cfg."""

import ast
import configparser
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flashace"
# The name to import, where it is not the name to install.
DISTRIBUTION = {"torch_sim": "torch-sim-atomistic", "yaml": "pyyaml"}


def test_files_import_from_floors_below_their_own() -> None:
    assert violations(PACKAGE) == []


def test_every_import_is_declared() -> None:
    undeclared = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources(PACKAGE)
        for name in foreign_imports(file)
        if DISTRIBUTION.get(name, name) not in declared()
    }
    assert undeclared == set()


@pytest.mark.parametrize(("name", "home"), [("matscipy", "structure/"), ("click", "cli/"), ("torch_sim", "engines/torchsim.py")])
def test_one_place_alone_knows_the_package(name: str, home: str) -> None:
    knowing = [file.relative_to(PACKAGE).as_posix() for file in sources(PACKAGE) if name in foreign_imports(file)]
    assert knowing
    assert all(file.startswith(home) for file in knowing), knowing


UPWARDS = {
    "plain": "import flashace.calculator",
    "renamed": "import flashace.calculator as c",
    "name from file": "from flashace.calculator import FlashACE",
    "file from package": "from flashace import calculator",
    "name from package": "from flashace import FlashACE",
    "relative": "from ..calculator import FlashACE",
    "lazy": "def f():\n    from flashace.calculator import FlashACE",
    "for types": "if TYPE_CHECKING:\n    from flashace.calculator import FlashACE",
    "by string": "importlib.import_module('flashace.calculator')",
    "same floor": "from flashace.files import whole_file",
    "folder above": "from flashace.train import loop",
}


@pytest.mark.parametrize("line", UPWARDS.values(), ids=UPWARDS.keys())
def test_an_import_upwards_is_caught(house: Path, line: str) -> None:
    (house / "structure/graph.py").write_text(line)
    assert any(found.startswith("structure/graph.py (floor 0) imports") for found in violations(house)), violations(house)


def test_imports_downwards_and_within_a_folder_are_fine(house: Path) -> None:
    (house / "nn/attention.py").write_text("from flashace.nn.radial import Bessel\nfrom .. import structure, errors\nimport torch")
    (house / "train/loop.py").write_text("from flashace.train import step\nfrom .step import take\nfrom ..potential import M")
    (house / "__init__.py").write_text("from flashace.calculator import FlashACE")
    assert violations(house) == []


def test_a_circle_within_a_folder_is_caught(house: Path) -> None:
    (house / "train/loop.py").write_text("from flashace.train import step")
    (house / "train/step.py").write_text("def f():\n    from .loop import fit")
    assert [found for found in violations(house) if found.startswith("circle: ")]


def test_a_file_without_a_floor_is_caught(house: Path) -> None:
    (house / "magic.py").write_text("")
    assert violations(house) == ["magic.py has no floor; give it a row in CONTRIBUTING.md"]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """An empty flashace/ with a file for each row of the table."""
    for row in [*floors(), "structure/graph.py", "train/step.py", "train/loop.py"]:
        file = tmp_path / (f"{row}__init__.py" if row.endswith("/") else row)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert violations(tmp_path) == []
    return tmp_path


def violations(package: Path) -> list[str]:
    """What breaks the rule in `package`, a folder laid out like flashace/; a sentence each."""
    found = []
    graph: dict[str, set[str]] = {}
    for path in sources(package):
        file = path.relative_to(package).as_posix()
        if floor_of(file) is None:
            found.append(f"{file} has no floor; give it a row in CONTRIBUTING.md")
            continue
        graph[file] = house_imports(path, package) - {file}
        for target in sorted(graph[file]):
            floor, below = floor_of(file), floor_of(target)
            if below is None or (below >= floor and row_of(file) != row_of(target)):
                found.append(f"{file} (floor {floor}) imports {target} (floor {below})")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        found.append("circle: " + " → ".join(circle.args[1]))
    return found


def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def floors() -> dict[str, int]:
    """Row of the table in CONTRIBUTING.md (a file, or a folder with a slash) → floor."""
    table = re.findall(r"^\| (-?\d+) \| `([^`]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert table, "no table of floors in CONTRIBUTING.md"
    return {row: int(floor) for floor, row in table}


def row_of(file: str) -> str:
    """The folder that has a row of its own, or else the file."""
    return next((row for row in floors() if row.endswith("/") and file.startswith(row)), file)


def floor_of(file: str) -> int | None:
    return floors().get(row_of(file))


def house_imports(path: Path, package: Path) -> set[str]:
    """Files of the package that `path` imports, at the top or lazily."""
    return {
        file_of(module.removeprefix("flashace").removeprefix("."), package)
        for module in imported_modules(path, package)
        if module.split(".")[0] == "flashace"
    }


def foreign_imports(path: Path) -> set[str]:
    """Packages that `path` imports from neither flashace nor the standard library."""
    names = {module.split(".")[0] for module in imported_modules(path, PACKAGE)}
    return names - {"flashace"} - sys.stdlib_module_names


def imported_modules(path: Path, package: Path) -> set[str]:
    """Dotted names; `from a import b` gives `a.b`, which names the file b.py or something in a.py."""
    here = ["flashace", *path.relative_to(package).with_suffix("").parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=module):
                names.update(f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom(level=level, module=module):
                base = here[:-level] + ([module] if module else [])
                names.update(".".join([*base, alias.name]) for alias in node.names)
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                names.add(name)
            case ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(name)), *_]):
                names.add(name)
    return names


def file_of(module: str, package: Path) -> str:
    """File that `module`, a dotted name below flashace, stands in: the longest part that is a file or a folder."""
    parts = module.split(".") if module else []
    while parts:
        file = Path(*parts).with_suffix(".py")
        if (package / file).is_file():
            return file.as_posix()
        if (package / Path(*parts)).is_dir():
            return Path(*parts, "__init__.py").as_posix()
        parts.pop()
    return "__init__.py"


def declared() -> set[str]:
    """Names that setup.cfg asks pip to install, extras included, in lower case."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return {re.split(r"[<>=!~\[; ]", line)[0].lower() for text in lists for line in text.split("\n") if line.strip()}
