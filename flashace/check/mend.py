"""Frames, a label and the formula for its right value in; a short ASE script that writes a mended copy of their files out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flashace.check.finding import by_file
from flashace.data.frames import Labelled, LabelSummary
from flashace.data.labels import LABELS
from flashace.data.sources import lookup


def mend_script(frames: Sequence[Labelled], labels: LabelSummary, codes: Mapping[str, str], which: str) -> str:
    """`codes`: label -> Python for the mended value of `x` of a frame `a`; a stress is brought to Voigt's six numbers first.

    `which` is "every" for all frames of these files that have the label, or "these" for none but `frames`.
    """
    lines = ["from ase.io import read, write"]
    for file in by_file(f.origin for f in frames):
        members = [f for f in frames if f.origin.file == file]
        mended = Path(file).with_name(f"{Path(file).stem}-mended.extxyz")
        lines.append(f'frames = read("{file}", ":")')
        for label, code in codes.items():
            for source in labels.counts[label].used:
                having = [f for f in members if lookup(f.atoms, source) is not None]
                if having:
                    lines += _loop(having, label, source, code, which)
        lines.append(f'write("{mended}", frames)')
    if not any(line.startswith("    ") for line in lines):  # shards name their labels anew
        code = ", ".join(f"{label} x: {code}" for label, code in codes.items())
        return f"Mend the files that were converted ({code}), and convert them again: {', '.join(by_file(f.origin for f in frames))}"
    if any("voigt" in line for line in lines):
        lines.insert(1, "from ase.stress import full_3x3_to_voigt_6_stress as voigt")
    return "\n".join(lines)


def _loop(frames: Sequence[Labelled], label: str, source: str, code: str, which: str) -> list[str]:
    atoms = frames[0].atoms
    place, _, name = source.rpartition(" ")
    holder = "a.calc.results" if place == "calculator" else "a.arrays" if name in atoms.arrays else "a.info"
    value = f'{holder}["{name}"]'
    x = f"voigt({value}.reshape(3, 3))" if LABELS[label].rank == 2 and np.size(lookup(atoms, source)) == 9 else value
    (indices,) = by_file(f.origin for f in frames).values()
    has = f'"{name}" in {"(a.calc.results if a.calc else {})" if place == "calculator" else holder}'
    chosen = f"(a for a in frames if {has})" if which == "every" else f"(frames[i] for i in {_python(indices)})"
    return [f"for a in {chosen}:", f"    x = {x}", f"    {value} = {code}"]


def _python(indices: Sequence[int]) -> str:
    """[*range(195, 213)] and the like."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return f"[{', '.join(f'*range({run[0]}, {run[-1] + 1})' if len(run) > 2 else ', '.join(map(str, run)) for run in runs)}]"
