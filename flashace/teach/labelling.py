"""Structures and a teacher in; a file with the teacher's energies, forces and stresses, and a file of what has none and why, out."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from flashace.data.files import structures
from flashace.data.labels import LABELS
from flashace.data.origin import FrameError, Origin
from flashace.data.shards import Shards, is_shards
from flashace.data.sound import check_structure
from flashace.data.sources import sources_in
from flashace.errors import FlashACEError
from flashace.files import undone_by_signals
from flashace.teach.journal import Journal
from flashace.teach.task import APART, Failure, Label
from flashace.teach.workers import Cluster, Workers, failure

DECIMALS = 8  # of positions and cells, as extended XYZ has them: a structure is the same before and after it was written
MAX_FORCE = 100.0  # eV/Å; atoms of a hot melt feel 30, those of an SCF that went wrong thousands


@dataclass
class Summary:
    """What a run has met and made."""

    frames: int = 0  # that were given
    twice: int = 0  # of which are copies of others
    had_labels: int = 0  # of which came with labels of their own, which are left behind
    charged: int = 0  # of which have charges or magnetic moments, which the teacher does not hear of
    already: int = 0  # structures that were labelled before
    aside_before: int = 0  # structures that were put aside before
    labelled: int = 0
    aside: Counter[str] = field(default_factory=Counter)  # kind of reason -> structures
    apart: float = 0.0  # eV/atom; the largest difference of free energy and energy

    @property
    def structures(self) -> int:
        """Different ones that were given."""
        return self.frames - self.twice


def label(
    paths: Sequence[str | Path],
    workers: Workers | Cluster,
    output: str | Path,
    max_force: float = MAX_FORCE,
    plan: Callable[[Summary, int], Any] = lambda summary, left: None,
    progress: Callable[[int], Any] = lambda done: None,
) -> Summary:
    """Append the labels of all structures that `output` does not have yet, as they are made; `Journal` says how that file looks.

    Of a structure go elements, positions, cell, periodicity and `config_type` to the teacher and to the file, besides `origin`, the place
    that it was read from. Charges, magnetic moments, other arrays and labels of its own stay behind. A force above `max_force` (eV/Å) is no
    label. A file is read twice, structure by structure. `plan` hears how many structures are left to label before the first of them is,
    `progress` how many are done.
    Raises FlashACEError for files that cannot be read, a teacher that cannot be made, and for an `output` of another teacher.
    """
    if Path(output).suffix not in (".extxyz", ".xyz"):
        raise FlashACEError(f"output {output}: expected a name that ends in .extxyz, since that is what is written; correct it")
    with undone_by_signals(), Journal(output, workers.teacher.source) as journal:
        summary = Summary()
        left = _survey(paths, journal, summary)
        plan(summary, len(left))
        with closing(workers.run(_tasks(paths, left))) as results:
            for done, (task, result) in enumerate(results, 1):
                if not isinstance(result, Failure) and (force := _largest_force(result)) > max_force:
                    result = failure(task, f"a force of {force:.4g} eV/Å is more than {max_force:g} (--max-force)")
                if isinstance(result, Failure):
                    journal.put_aside(result)
                    summary.aside[_kind(result.reason)] += 1
                else:
                    journal.append(task.key, result)
                    summary.labelled += 1
                    summary.apart = max([summary.apart, *(abs(frame.info.get(APART, 0.0)) / len(frame) for frame in result)])
                progress(done)
    return summary


def key_of(atoms: Atoms) -> str:
    """A name for elements, positions, cell and periodicity, whatever the file and the order of the structures."""
    digest = hashlib.sha256(np.asarray([*atoms.numbers, *atoms.pbc], dtype="<i8").tobytes())
    for numbers in (atoms.positions, atoms.cell.array):
        digest.update((np.round(numbers, DECIMALS) + 0.0).astype("<f8").tobytes())  # + 0: there is a zero with a minus
    return digest.hexdigest()[:24]


def is_charged(atoms: Atoms) -> bool:
    """Whether it has charges or magnetic moments, or says that it has a charge, which a teacher does not hear of."""
    arrays = [atoms.arrays[name] for name in ("initial_charges", "initial_magmoms") if name in atoms.arrays]
    told = [np.asarray(atoms.info[name]) != 0 for name in ("charge", "total_charge") if name in atoms.info]
    return any(np.any(values) for values in [*arrays, *told])


def _survey(paths: Sequence[str | Path], journal: Journal, summary: Summary) -> set[str]:
    """The keys of the structures that are left to label; the journal gets those that are none."""
    seen: set[str] = set()
    for atoms, origin in read_structures(paths):
        key = key_of(atoms)
        summary.frames += 1
        summary.twice += key in seen
        summary.had_labels += any(sources_in(atoms, label, (*label.named, *label.found)) for label in LABELS.values())
        summary.charged += is_charged(atoms)
        if key in seen:
            continue
        seen.add(key)
        summary.already += key in journal.labelled
        summary.aside_before += key in journal.failed
        if key not in journal.done:
            try:
                check_structure(atoms, origin)
            except FrameError as error:
                journal.put_aside(Failure(key, error.fault.text, _plain(atoms, origin)))
                summary.aside[_kind(error.fault.text)] += 1
    return seen - journal.done


def _tasks(paths: Sequence[str | Path], left: set[str]) -> Iterator[Label]:
    for atoms, origin in read_structures(paths):
        key = key_of(atoms)
        if key in left:
            left.discard(key)
            yield Label(key, _plain(atoms, origin))


def read_structures(paths: Sequence[str | Path]) -> Iterator[tuple[Atoms, Origin]]:
    """Of files, folders and shards, whether they have labels or not, and where each stands. Raises as `structures` and `Shards` do."""
    for path in paths:
        if is_shards(path):
            yield from ((frame.atoms, frame.origin) for frame in Shards(path))
        else:
            yield from structures([path])


def _plain(atoms: Atoms, origin: Origin) -> Atoms:
    info = {name: atoms.info[name] for name in ("config_type",) if name in atoms.info}
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info={**info, "origin": str(origin)})


def _largest_force(frames: Sequence[Atoms]) -> float:
    return max(float(np.linalg.norm(frame.calc.results["forces"], axis=1).max()) for frame in frames)


def _kind(reason: str) -> str:
    """The reason without its numbers, so that like ones can be counted."""
    return re.sub(r"[-+]?\b\d+(\.\d+)?(e[-+]?\d+)?\b", "…", reason)
