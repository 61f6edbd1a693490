"""The README as a newcomer follows it: every command and every snippet, in a folder that holds examples/ alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What sets up a machine is not run here but, to the letter, in .ci/run.
SET_UP = [
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "pip install -c constraints.txt .",
    "make fit",
    "make test",
]


def test_only_the_set_up_is_left_out_and_ci_runs_it() -> None:
    left_out = [code for language, code in steps((ROOT / "README.md").read_text()) if is_set_up(language, code)]
    assert left_out == SET_UP
    ci = [re.sub(r" 2>&1 \|.*", "", line).strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    assert set(SET_UP) <= set(ci)


def test_steps_are_found_as_they_stand() -> None:
    text = "```bash\nls  # remark\n# more\necho a \\\n  b\n```\n\n```yaml\nr: 5\n```\n```python\nif x:\n    y\n```\n"
    assert steps(text) == [("bash", "ls"), ("bash", "echo a b"), ("python", "if x:\n    y\n")]


@pytest.mark.slow
def test_every_command_and_snippet_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    # `flashace` and `python` are those of the environment that runs the tests.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    todo = [(language, code) for language, code in steps((ROOT / "README.md").read_text()) if not is_set_up(language, code)]
    assert {language for language, _ in todo} == {"bash", "python"}
    for language, code in todo:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else ["python", "-c", code]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{code}\n\n{done.stdout}\n{done.stderr}"
    pictures = {path.stem for path in (tmp_path / "runs/sic").glob("*.png")}
    assert pictures >= {"learning_curve", "parity", "relax", "equation_of_state", "phonons", "md"}


def steps(markdown: str) -> list[tuple[str, str]]:
    """(language, code) in the order of the text; a bash block gives its commands one by one, a Python block is one."""
    found = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL):
        if language == "python":
            found.append((language, block))
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = re.sub(r"(^|\s+)#.*", "", line)
            if command:
                found.append((language, command))
    return found


def is_set_up(language: str, code: str) -> bool:
    return language == "bash" and re.match(r"make |git clone |pip install |python3? -m venv |(\.|source) ", code) is not None
